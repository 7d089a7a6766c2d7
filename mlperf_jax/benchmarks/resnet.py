"""ResNet-50 v1.5 on ImageNet: MLPerf Training v0.5 to v4.0.

Train until 75.9 % of the 50,000 validation images are classified correctly.
Reference: mlcommons/training, retired_benchmarks/resnet-tf2; reference convergence points of ruleset
4.0.0, and the learning-rate conventions of the submitter each of them comes from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from mlperf_jax import metrics, pictures
from mlperf_jax.core.benchmark import Benchmark, Example, Target, f32, i32
from mlperf_jax.core.fields import Count, Fraction, Range, Rate, Samples, Several, Whole
from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import images
from mlperf_jax.input_pipelines.imagenet import ImageNet, Normalise
from mlperf_jax.models import resnet as models
from mlperf_jax.ops import losses
from mlperf_jax.optimizers import lars, schedules, sgd

END_LR = 1e-4  # of all recipes, by rule


@dataclass(frozen=True, kw_only=True)
class ResNet50(Benchmark):
    """The defaults are the reference convergence point for batch 3,264: 35 epochs.

    `convention` says whose counting the learning rate follows: "mxnet" (NVIDIA: rate outside the
    momentum buffer, updates counted from 1, a last partial batch makes an epoch longer) or "tf2" (the
    reference and Google: rate inside, counted from 0, remainder dropped). Both were accepted in closed,
    "mxnet" with LARS alone.
    """

    name = "resnet"
    ruleset = "4.0.0"  # last round that ran it
    metric = metrics.Mean("accuracy", range=(0, 1))
    parameters = 25_557_032
    pictured = 32
    smooths_labels = True
    sized_by = "image_size"
    scales = tuple(
        {"batch_size": batch, "bn_span": span}
        for batch, span in ((408, 204), (204, 204), (102, 102), (32, 32), (8, 8))
    )
    records_per_core = 360  # scripts/bench_input.py: 416 (368 … 433)

    # hyperparameters
    batch_size: Samples = 3264
    opt_name: Literal["lars", "sgd"] = "lars"
    base_lr: Rate = 10.5
    warmup_epochs: Whole = 2
    lr_epochs: Annotated[Count, "warm-up included"] = 37
    weight_decay: Rate = 5e-5
    momentum: Fraction = 0.9
    convention: Literal["mxnet", "tf2"] = "mxnet"
    label_smoothing: Fraction = 0.1
    bn_span: Annotated[Count, "images"] = 204
    eval_every: Annotated[Count, "epochs"] = 4
    eval_offset: Annotated[Whole, "epochs"] = 3
    # the network's and the pipeline's accepted variants
    padding: Literal["same", "symmetric"] = "same"
    zero_gamma: bool = False
    normalise: Normalise = "reference"
    # sizes: what tiny() shrinks
    stages: Several[Count] = (3, 4, 6, 3)
    width: Count = 64
    classes: Count = 1000
    image_size: Annotated[Count, "pixels"] = 224
    min_crop_area: Annotated[float, Range(above=0, most=1)] = 0.05
    flip: bool = True
    train_samples: Samples = 1_281_167
    eval_samples: Samples = 50_000
    targets: Several[Target] = (Target("accuracy", at_least=0.759),)

    def __post_init__(self) -> None:
        super().__post_init__()
        micro = self.rows // self.gradient_accumulation_steps
        if micro % self.bn_span:
            raise UserError(
                f"batch size {micro} is not a multiple of bn_span {self.bn_span}: batch-norm statistics "
                "are taken over that many images; choose a bn_span that divides it"
            )
        if self.opt_name == "sgd" and self.convention == "mxnet":
            raise UserError(
                "opt_name sgd in convention mxnet is an optimizer that no rule knows: give convention tf2"
            )

    def example(self) -> Example:
        side = self.image_size
        return {"image": f32(side, side, 3), "label": i32()}

    def model(self, rngs: Any) -> models.ResNet:
        return models.ResNet(
            self.stages,
            self.width,
            self.classes,
            self.bn_span,
            self.dtype,
            padding=self.padding,
            zero_gamma=self.zero_gamma,
            rngs=rngs,
        )

    def _steps(self, epochs: int) -> int:
        """Steps of so many epochs of the learning rate, as the recipe's submitter counts them."""
        last_batch = "pad" if self.convention == "mxnet" else "drop"
        return epochs * schedules.steps_per_epoch(self.train_samples, self.batch_size, last_batch)

    def learning_rate(self) -> schedules.Schedule:
        """Step -> rate: linear warm-up, then a polynomial of power 2 down to 1e-4."""
        return schedules.poly_decay(
            self.base_lr,
            self._steps(self.warmup_epochs),
            self._steps(self.lr_epochs),
            power=2,
            end_lr=END_LR,
            first_step=1 if self.convention == "mxnet" else 0,
        )

    def optimizer(self, tree: Any) -> Any:
        rate = self.learning_rate()
        order = "lr_outside" if self.convention == "mxnet" else "lr_inside"
        if self.opt_name == "lars":
            skip = tree.norms | tree.biases
            return lars(
                rate, self.weight_decay, skip=skip, momentum=self.momentum, momentum_order=order
            )
        return sgd(  # L2 in the loss, over all but batch norm: gradient 2·wd·w
            rate,
            self.momentum,
            momentum_order=order,
            weight_decay=self.weight_decay,
            l2_factor=2,
            skip=tree.norms,
        )

    def data(self) -> ImageNet:
        return ImageNet(
            self.image_size,
            self.min_crop_area,
            self.flip,
            self.normalise,
            self.classes,
            tiny=self.is_tiny,
        )

    def loss(self, model: Any, batch: Any, key: Any) -> Any:
        logits = model(batch["image"])  # [B, classes]
        return losses.softmax_xent(logits, batch["label"], smoothing=self.smoothing)

    def predict(self, model: Any, batch: Any, key: Any) -> Any:
        return model(batch["image"]).argmax(-1) == batch["label"]

    # -- pictures ------------------------------------------------------------------------------

    def find(self, model: Any, batch: Any) -> Any:
        """The likeliest class of each image, i32 [B]."""
        return model(batch["image"]).argmax(-1)

    def picture(self, batch: Any, names: Sequence[str] = (), found: Any = None) -> Any:
        pixels = images.denormalise(batch["image"], self.normalise)
        return pictures.classified(pixels, batch["label"], names, found)

    # -- schedule, log and recipes -------------------------------------------------------------

    def eval_steps(self) -> Iterator[int]:
        return schedules.every_epochs(
            self.eval_every, self.train_samples, self.batch_size, offset=self.eval_offset
        )

    @property
    def schedule_end(self) -> int:
        """The reference's loop ends with the first evaluation at or after the schedule's end."""
        end = self._steps(self.lr_epochs)
        return self.samples(next(step for step in self.eval_steps() if step >= end))

    @property
    def flops_per_sample(self) -> float:
        return models.flops_per_sample(self.stages, self.width, self.classes, self.image_size)

    def log(self) -> Mapping[str, Any]:
        return {"model_bn_span": self.bn_span}

    def optimizer_log(self) -> Mapping[str, Any]:
        prefix = "lars_" * (self.opt_name == "lars")
        own = {
            "base_learning_rate": self.base_lr,
            "end_learning_rate": END_LR,
            "learning_rate_decay_poly_power": 2,
            "learning_rate_decay_steps": self._steps(self.lr_epochs),
            "weight_decay": self.weight_decay,
            "momentum": self.momentum,
        }
        return {
            "opt_name": self.opt_name,
            **{f"{self.opt_name}_opt_{key}": value for key, value in own.items()},
            **({"lars_epsilon": 0.0} if prefix else {}),
            f"{prefix}opt_learning_rate_warmup_epochs": self.warmup_epochs,
        }

    @classmethod
    def recipes(cls) -> Mapping[int, Self]:
        """The reference convergence points of ruleset 4.0.0.

        Their decay steps mix two meanings, so `lr_epochs` is recomputed from them (warm-up included),
        and `eval_offset` puts an evaluation on the expected epoch.
        """
        return cls.recipe_table(
            "batch_size base_lr warmup_epochs lr_epochs weight_decay momentum bn_span eval_offset convention",
            (1632, 7.4, 2, 37, 5e-5, 0.9, 204, 3, "mxnet"),
            (3264, 10.5, 2, 37, 5e-5, 0.9, 204, 3, "mxnet"),
            (4096, 10.0, 5, 42, 2e-4, 0.9, 64, 2, "tf2"),
            (8192, 17.0, 5, 44, 2e-4, 0.9, 64, 2, "tf2"),
            (13056, 12.8, 9, 48, 2.5e-5, 0.9, 204, 2, "mxnet"),
            (32768, 21.2, 16, 58, 2.5e-5, 0.94, 128, 0, "tf2"),
            (49152, 19.405, 24, 71, 1e-4, 0.951807, 256, 0, "mxnet"),
            (58880, 23.246, 29, 82, 1e-4, 0.951807, 230, 0, "mxnet"),
            (65536, 24.699, 31, 89, 1e-4, 0.951807, 128, 1, "tf2"),
            (67840, 24.699, 31, 91, 1e-4, 0.951807, 424, 2, "mxnet"),
        )

    def tiny(self) -> Self:
        """Scikit-learn's handwritten digits as JPEGs in the same files: half a minute on two cores."""
        return self.replace(
            size="tiny",
            stages=(1, 1, 1, 1),
            width=16,
            classes=10,
            image_size=32,
            min_crop_area=0.6,
            flip=False,
            train_samples=1437,
            eval_samples=360,
            batch_size=64,
            bn_span=64,
            base_lr=2.5,
            warmup_epochs=2,
            lr_epochs=24,
            eval_offset=0,
            targets=(Target("accuracy", at_least=0.95),),
        )
