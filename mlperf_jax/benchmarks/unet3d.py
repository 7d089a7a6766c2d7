"""3D U-Net on KiTS19: MLPerf Training v1.0 to v4.0.

Train until kidneys and tumours of the 42 validation cases are segmented with a mean DICE of 0.908.
Reference: mlcommons/training, retired_benchmarks/unet3d/pytorch; reference convergence points of ruleset
4.0.0, and of 3.1.0 for the reference's own batch of 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp

from mlperf_jax import pictures
from mlperf_jax.core.benchmark import Benchmark, Example, Shape, Target, f32, i32
from mlperf_jax.core.fields import Count, Fraction, Positive, Rate, Samples, Several, Share, Whole
from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.kits19 import Augmentation, Kits19
from mlperf_jax.metrics import dice as metrics
from mlperf_jax.models import unet3d as models
from mlperf_jax.ops import sliding_window
from mlperf_jax.ops.dice import dice_xent
from mlperf_jax.optimizers import schedules, sgd

OVERLAP = 0.5  # of neighbouring windows, along each axis
START_LR = 1e-4
Side = Annotated[Count, "voxels"]


@dataclass(frozen=True, kw_only=True)
class UNet3D(Benchmark):
    """The defaults are the reference convergence point for batch 56.

    A sample is one random patch of one volume, and an epoch a patch of each of the 168, its last batch
    filled up with patches of the next. Rates change with the epoch.
    """

    name = "unet3d"
    ruleset = "4.0.0"  # last round that ran it
    metric: ClassVar[metrics.Dice] = metrics.Dice(("kidney", "tumour"))
    parameters = 31_190_243
    sized_by = "patch"
    scales = ({"batch_size": 8},)
    pictured = 3
    records_per_core = 110  # scripts/bench_input.py: 144 (114 … 182)

    # hyperparameters
    batch_size: Samples = 56
    eval_batch_size: Annotated[
        Samples | None, "one a device at a time; the mesh must divide it"
    ] = 8
    base_lr: Rate = 2.0
    warmup_epochs: Whole = 1000
    lr_decay_epochs: tuple[Count, ...] = ()
    lr_decay_factor: Positive = 1.0
    momentum: Fraction = 0.9
    weight_decay: Rate = 0.0
    oversampling: Share = 0.4
    augmentation: Augmentation = "reference"
    # the schedule, in samples: whole epochs that hold at least so many
    eval_first: Samples = 168_000
    eval_every: Samples = 3360
    give_up: Samples = 1_680_000
    # sizes: what tiny() shrinks
    filters: Several[Count] = (32, 64, 128, 256, 320)
    classes: Annotated[Literal[3], "background, kidney, tumour"] = 3
    patch: Side = 128
    # holds the largest volume, 456 x 416 x 416
    eval_shape: tuple[Side, Side, Side] = (448, 448, 448)
    train_samples: Samples = 168
    eval_samples: Samples = 42
    targets: Several[Target] = (Target("mean_dice", at_least=0.908),)

    def __post_init__(self) -> None:
        super().__post_init__()
        halvings = 2 ** len(self.filters)
        if self.patch % halvings:
            raise UserError(
                f"patch {self.patch} cannot be halved {len(self.filters)} times: give a multiple of "
                f"{halvings}"
            )
        stride = self.patch // 2
        if any(side % stride or side < self.patch for side in self.eval_shape):
            raise UserError(
                f"eval_shape {'x'.join(map(str, self.eval_shape))} holds no whole windows: each side must be "
                f"a multiple of {stride}, at least {self.patch}"
            )

    def example(self) -> Example:
        side = self.patch
        return {"image": f32(side, side, side, 1), "label": _u8(side, side, side)}

    def eval_example(self) -> Example:
        """A whole volume, padded, and its windows along each axis."""
        shape = self.eval_shape
        return {"image": f32(*shape, 1), "label": _u8(*shape), "windows": i32(3)}

    def model(self, rngs: Any) -> models.UNet3D:
        return models.UNet3D(self.filters, self.classes, self.dtype, rngs=rngs)

    @property
    def epoch_steps(self) -> int:
        """The last batch is filled up."""
        return schedules.steps_per_epoch(self.train_samples, self.batch_size, "pad")

    def learning_rate(self) -> schedules.Schedule:
        """Step -> rate: 1e-4 + (base - 1e-4) e / W in epoch e of a warm-up of W, then constant.

        A decay epoch m is the last one of the higher rate, as in the reference's MultiStepLR.
        """
        by_epoch = schedules.step_decay(
            self.base_lr,
            [epoch + 1 for epoch in self.lr_decay_epochs],
            self.lr_decay_factor,
            warmup_steps=self.warmup_epochs,
            start_lr=START_LR,
        )
        return schedules.by_epoch(by_epoch, self.epoch_steps)

    def optimizer(self, tree: Any) -> Any:
        return sgd(
            self.learning_rate(),
            self.momentum,
            momentum_order="lr_outside",
            nesterov=True,
            weight_decay=self.weight_decay,
        )

    def data(self) -> Kits19:
        return Kits19(
            self.patch, self.eval_shape, self.oversampling, self.augmentation, tiny=self.is_tiny
        )

    def loss(self, model: Any, batch: Any, key: Any) -> Any:
        return dice_xent(model(batch["image"]), batch["label"])

    def predict(self, model: Any, batch: Any, key: Any) -> Any:
        """Voxels in common, predicted and true, int32 [B, 3, K - 1]."""

        def volume(image: jax.Array, label: jax.Array, windows: jax.Array) -> jax.Array:
            def count(total: jax.Array, start: jax.Array, logits: jax.Array) -> jax.Array:
                part = jax.lax.dynamic_slice_in_dim(label, start, logits.shape[0])
                return total + metrics.overlap(logits.argmax(-1), part, self.classes)

            nothing = jnp.zeros((3, self.classes - 1), jnp.int32)
            return sliding_window.over_volume(model, image, windows, self.patch, count, nothing)

        return sliding_window.each_row(volume, batch["image"], batch["label"], batch["windows"])

    # -- pictures ------------------------------------------------------------------------------

    def find(self, model: Any, batch: Any) -> Any:
        """As `segment`; a training patch is a volume of one window."""
        one = jnp.ones((len(batch["image"]), 3), jnp.int32)
        return self.segment(model, {"windows": one, **batch})

    def picture(self, batch: Any, names: Sequence[str] = (), found: Any = None) -> Any:
        return pictures.volumes(batch, found, names=names, most=len(batch["image"]))

    def segment(self, model: Any, batch: Any) -> Any:
        """The class of every voxel of whole volumes, u8 [B, D, H, W]: to look at, not to score."""

        def volume(image: jax.Array, windows: jax.Array) -> jax.Array:
            def fill(found: jax.Array, start: jax.Array, logits: jax.Array) -> jax.Array:
                part = logits.argmax(-1).astype(jnp.uint8)
                return jax.lax.dynamic_update_slice_in_dim(found, part, start, 0)

            nothing = jnp.zeros(image.shape[:3], jnp.uint8)
            return sliding_window.over_volume(model, image, windows, self.patch, fill, nothing)

        return sliding_window.each_row(volume, batch["image"], batch["windows"])

    # -- schedule, log and recipes -------------------------------------------------------------

    def eval_steps(self) -> Iterator[int]:
        first, every = self._epochs_of(self.eval_first), self._epochs_of(self.eval_every)
        return schedules.every_epochs(
            every, self.train_samples, self.batch_size, offset=first, last_batch="pad"
        )

    def _epochs_of(self, samples: int) -> int:
        """Whole padded epochs that hold at least so many samples."""
        return -(-samples // self.samples(self.epoch_steps))

    def diverged(self, quality: Mapping[str, float]) -> bool:
        """The reference gives a run up whose model no longer finds anything."""
        return quality["mean_dice"] < 1e-6

    @property
    def schedule_end(self) -> int:
        return self.samples(self._epochs_of(self.give_up) * self.epoch_steps)

    @property
    def flops_per_sample(self) -> float:
        return models.flops_per_sample(self.filters, self.classes, (self.patch,) * 3)

    def log(self) -> Mapping[str, Any]:
        return {
            "oversampling": self.oversampling,
            "training_input_shape": [self.patch] * 3,
            "validation_input_shape": [self.patch] * 3,
            "validation_overlap": OVERLAP,
        }

    def optimizer_log(self) -> Mapping[str, Any]:
        return {
            "opt_name": "sgd",
            "opt_base_learning_rate": self.base_lr,
            "opt_initial_learning_rate": START_LR,
            "opt_learning_rate_warmup_epochs": self.warmup_epochs,
            "opt_learning_rate_decay_boundary_epochs": list(self.lr_decay_epochs),
            "opt_learning_rate_decay_factor": self.lr_decay_factor,
            "opt_momentum": self.momentum,
            "opt_weight_decay": self.weight_decay,
        }

    @classmethod
    def recipes(cls) -> Mapping[int, Self]:
        """The reference convergence points; their warm-up in samples as epochs, which logs show."""
        return cls.recipe_table(
            "batch_size base_lr warmup_epochs",
            (2, 0.8, 200),
            (28, 2.0, 1000),
            (56, 2.0, 1000),
            (64, 2.0, 875),  # 168,000 samples in epochs of 192
            (84, 1.5, 1500),
        )

    def tiny(self) -> Self:
        """Phantoms of ellipsoids, written as NIfTI and prepared like the real ones: half a minute."""
        return self.replace(
            size="tiny",
            filters=(8, 16),
            patch=16,
            eval_shape=(32, 32, 32),
            train_samples=36,
            eval_samples=8,
            batch_size=8,
            base_lr=0.25,
            warmup_epochs=4,
            eval_first=480,
            eval_every=120,
            give_up=4800,
            targets=(Target("mean_dice", at_least=0.75),),
        )


def _u8(*shape: int) -> Shape:
    return jax.ShapeDtypeStruct(shape, jnp.uint8)
