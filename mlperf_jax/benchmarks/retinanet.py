"""RetinaNet with ResNeXt50_32x4d on Open Images (264 classes, 800 x 800): MLPerf Training v2.0 to v5.1.

Train until the mean average precision of boxes over the 24,781 validation images is 0.340 (COCO's, IoU .5 to .95).
Reference: mlcommons/training, retired_benchmarks/retinanet; reference convergence points of ruleset 5.1.0.
The official logs of rounds v2.0 to v4.1 call it "ssd".
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

import jax.numpy as jnp
import optax

from mlperf_jax.core.benchmark import Benchmark, Example, Start, Target, f32, i32
from mlperf_jax.core.fields import Count, Range, Rate, Samples, Several, Share, Whole
from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import images
from mlperf_jax.input_pipelines.openimages import OpenImages
from mlperf_jax.metrics import coco
from mlperf_jax.models import retinanet as models
from mlperf_jax.ops import anchors as anchorlib, detections
from mlperf_jax.optimizers import schedules
from mlperf_jax.pictures import detection

BACKBONE = "resnext50_32x4d.safetensors"
BACKBONE_HELP = (
    "fetch https://download.pytorch.org/models/resnext50_32x4d-7cdf4587.pth and convert it, where torch is "
    'installed: python -c "import torch, safetensors.torch as s; '
    "s.save_file(dict(torch.load('resnext50_32x4d-7cdf4587.pth', weights_only=True)), "
    f"'{BACKBONE}')\""
)


@dataclass(frozen=True, kw_only=True)
class RetinaNet(Benchmark):
    """The defaults are the reference convergence point for batch 256: 4 epochs.

    Adam without weight decay; one epoch of linear warm-up, then a constant rate. Stem, first stage and
    all norms keep torchvision's ImageNet weights, read from `resnext50_32x4d.safetensors` in the data
    folder. Boxes travel in pixels of the original image: the loss scales them to the network's input,
    and what is found is scaled back.
    """

    name = "retinanet"
    ruleset = "5.1.0"  # last round that ran it
    metric = coco.CocoMAP("mAP")
    parameters = 36_849_004
    sized_by = "image_size"
    scales = ({"batch_size": 32},)
    pictured = 6
    records_per_core = 88  # scripts/bench_input.py: 91.4 (88.3 … 97.4)

    # hyperparameters
    batch_size: Samples = 256
    base_lr: Rate = 1e-4
    warmup_epochs: Whole = 1
    warmup_factor: Share = 0.001
    epochs: Annotated[Count, "the reference gives up after these"] = 26
    # the reference's post-processing
    score_threshold: Share = 0.05
    overlap_threshold: Share = 0.5
    candidates: Annotated[Count, "of each level"] = 1000
    detections: Count = 300
    # sizes: what tiny() shrinks
    pretrained: bool = True
    trainable_stages: Annotated[int, Range(0, 5)] = (
        3  # of the body, from its end; 5 trains the stem too
    )
    stages: tuple[Count, Count, Count, Count] = (3, 4, 6, 3)
    width: Count = 64
    groups: Count = 32
    pyramid_width: Count = 256
    head_depth: Count = 4
    classes: Count = 264
    image_size: Annotated[Count, "pixels"] = 800
    anchor_size: Annotated[Count, "pixels", "the smallest, on P3; doubled from level to level"] = 32
    max_boxes: Count = (
        1024  # places for an image's boxes; what is empty costs nothing but its bytes
    )
    flip: bool = True
    train_samples: Samples = 1_170_301
    eval_samples: Samples = 24_781
    targets: Several[Target] = (Target("mAP", at_least=0.34),)

    @property
    def frozen(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return models.frozen_patterns(self.trainable_stages)

    def example(self) -> Example:
        side, places = self.image_size, self.max_boxes
        return {
            "image": f32(side, side, 3),
            "size": i32(2),  # height and width of the original
            "boxes": f32(places, 4),
            "label": i32(places),
            "crowd": i32(places),
            "image_id": i32(),
        }

    def _sizes(self) -> dict[str, Any]:
        names = ("stages", "width", "groups", "pyramid_width", "head_depth", "classes")
        return {name: getattr(self, name) for name in names}

    def model(self, rngs: Any) -> models.RetinaNet:
        return models.RetinaNet(**self._sizes(), dtype=self.dtype, rngs=rngs)

    def anchors(self) -> list[Any]:
        return anchorlib.pyramid(self.image_size, self.anchor_size)

    def learning_rate(self) -> schedules.Schedule:
        """Step -> rate: linear from factor times base over the warm-up epochs, then constant."""
        steps, start = self.warmup_epochs * self.epoch_steps, self.warmup_factor * self.base_lr
        return schedules.warmup_constant(self.base_lr, steps, start_lr=start)

    def optimizer(self, tree: Any) -> Any:
        return optax.adam(self.learning_rate(), b1=0.9, b2=0.999, eps=1e-8)

    def loss(self, model: Any, batch: Any, key: Any) -> Any:
        boxes = batch["boxes"] * self._stretch(batch)
        outputs = model(batch["image"], flat=False)
        classification, box = models.detection_loss(outputs, self.anchors(), boxes, batch["label"])
        return classification + box, {"classification_loss": classification, "box_loss": box}

    def _stretch(self, batch: Any) -> Any:
        """[B, 1, 4]: what takes corners in the original image to the network's input."""
        height, width = batch["size"][:, 0], batch["size"][:, 1]
        sides = jnp.stack([width, height, width, height], -1).astype(batch["boxes"].dtype)
        return (self.image_size / sides)[:, None]

    # -- quality -------------------------------------------------------------------------------

    def predict(self, model: Any, batch: Any, key: Any) -> Any:
        raw = model(batch["image"], wide=True)
        found = detections.detect(
            raw.logits,
            raw.deltas,
            self.anchors(),
            self.image_size,
            outputs=self.detections,
            candidates=self.candidates,
            score_threshold=self.score_threshold,
            overlap_threshold=self.overlap_threshold,
        )
        return {
            "boxes": found.boxes / self._stretch(batch),
            "scores": found.scores,
            "classes": found.classes,
            "image_id": batch["image_id"],
            "true_boxes": batch["boxes"],
            "true_classes": batch["label"],
            "crowd": batch["crowd"],
        }

    # -- pictures ------------------------------------------------------------------------------

    def find(self, model: Any, batch: Any) -> Any:
        """As `predict`."""
        return self.predict(model, batch, None)

    def picture(self, batch: Any, names: Sequence[str] = (), found: Any = None) -> Any:
        pixels = images.denormalise(batch["image"], "imagenet_std")
        drawn = {**batch, "image": pixels}
        return detection.boxes(drawn, found, names=names, most=len(pixels))

    # -- schedule ------------------------------------------------------------------------------

    def eval_steps(self) -> Iterator[int]:
        return schedules.every_epochs(1, self.train_samples, self.batch_size)

    @property
    def schedule_end(self) -> int:
        return self.samples(self.epochs * self.epoch_steps)

    @property
    def flops_per_sample(self) -> float:
        return models.flops_per_sample(
            **self._sizes(), image_size=self.image_size, trainable_stages=self.trainable_stages
        )

    # -- the log and the recipes ---------------------------------------------------------------

    def optimizer_log(self) -> Mapping[str, Any]:
        return {
            "opt_name": "adam",
            "opt_base_learning_rate": self.base_lr,
            "opt_weight_decay": 0,
            "opt_learning_rate_warmup_epochs": self.warmup_epochs,
            "opt_learning_rate_warmup_factor": self.warmup_factor,
        }

    @classmethod
    def recipes(cls) -> Mapping[int, Self]:
        """The reference convergence points of ruleset 5.1.0; a warm-up of one epoch from 0.001 in all."""
        return cls.recipe_table(
            "batch_size base_lr",
            (256, 1e-4),
            (320, 1e-4),
            (512, 1e-4),
            (768, 1.3e-4),
            (1024, 1.1e-4),
            (1280, 1.3e-4),
            (2048, 1.35e-4),
            (2560, 1.45e-4),
            (4096, 1e-4),
        )

    # -- data and start ------------------------------------------------------------------------

    def capacities(self) -> Mapping[str, int]:
        return {"boxes": self.max_boxes}

    def data(self) -> OpenImages:
        return OpenImages(
            self.image_size, self.max_boxes, self.classes, self.flip, tiny=self.is_tiny
        )

    def start(self, data_dir: str) -> Start | None:
        """torchvision's ImageNet weights of the body; everything else stays random.

        Raises:
            UserError: the file is missing, damaged or of another network; pycocotools is missing, which
                would show after the first epoch.
        """
        coco.evaluator()
        if not self.pretrained:
            return None
        path = os.path.join(os.path.expanduser(data_dir), BACKBONE)
        if not os.path.isfile(path):
            raise UserError(
                f"{path} is missing: the benchmark starts from torchvision's ImageNet weights; {BACKBONE_HELP}"
            )
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            tensors = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(
                f"{path} is no whole safetensors file ({error}); {BACKBONE_HELP}"
            ) from error
        sizes = {"stages": self.stages, "width": self.width, "groups": self.groups}
        weights = models.from_torchvision(tensors, **sizes, trainable_stages=self.trainable_stages)
        return Start(weights)

    def tiny(self) -> Self:
        """Scenes of shapes in the same files: less than a minute on two cores.

        Nothing is pretrained, hence nothing frozen but the norms, which do nothing.
        """
        return self.replace(
            size="tiny",
            pretrained=False,
            trainable_stages=5,
            stages=(1, 1, 1, 1),
            width=8,
            groups=4,
            pyramid_width=32,
            head_depth=1,
            classes=3,
            image_size=96,
            anchor_size=16,
            candidates=100,
            detections=20,
            max_boxes=8,
            train_samples=512,
            eval_samples=96,
            batch_size=16,
            eval_batch_size=32,
            base_lr=2e-3,
            warmup_epochs=1,
            epochs=16,
            targets=(Target("mAP", at_least=0.4),),
        )
