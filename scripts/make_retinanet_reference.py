"""Writes tests/models/data/retinanet_reference.npz: what torchvision computes with RetinaNet.

Run by hand, with torch and torchvision installed, from the root of the repository:

    python scripts/make_retinanet_reference.py

The network has torchvision's ResNeXt body with fewer blocks; weights, images and boxes follow from names and
seeds, hence the file holds results only. The tests import this file for them; torch is imported where
it is used.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

OUTPUT = Path(__file__).parents[1] / "tests/models/data/retinanet_reference.npz"

STAGES, CLASSES = (1, 2, 1, 1), 12
IMAGES, SIDE = 2, 128
SAMPLED = slice(None, None, 7)  # anchors whose outputs are kept
# boxes in pixels of the input: overlapping, tiny, huge; and an image with one
BOXES = (
    np.array(
        [[4, 6, 60, 50], [10, 8, 64, 56], [90, 90, 97, 99], [0, 0, 128, 128], [70, 20, 120, 45]],
        np.float32,
    ),
    np.array([[30.5, 40.25, 71.75, 99.5]], np.float32),
)
LABELS = (np.array([3, 3, 0, 11, 7]), np.array([5]))


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 array that goes by a torchvision name."""
    draw = np.random.RandomState(zlib.crc32(name.encode()))
    noise = draw.standard_normal(shape).astype(np.float32)
    if len(shape) == 4:
        return noise * np.float32(np.sqrt(1.5 / np.prod(shape[1:])))
    if name.endswith("running_var"):
        return np.exp(noise / 4)
    if name.endswith("weight"):
        return 1 + noise / 4
    return noise / 4


def images() -> np.ndarray:
    """f32 [images, 3, S, S]."""
    return np.random.RandomState(1).standard_normal((IMAGES, 3, SIDE, SIDE)).astype(np.float32)


def raw_outputs(counts: list[int]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Logits [images, N, K] and deltas [images, N, 4] by level, for the post-processing."""
    draw = np.random.RandomState(2)
    shape = lambda n, k: (IMAGES, n, k)  # noqa: E731
    logits = [draw.standard_normal(shape(n, CLASSES)) * 2 - 4 for n in counts]
    deltas = [draw.standard_normal(shape(n, 4)) * 0.3 for n in counts]
    deltas[0][:, :5, 2:] = 6.0  # beyond the cap
    return [x.astype(np.float32) for x in logits], [x.astype(np.float32) for x in deltas]


def build() -> Any:
    """The network in torch, holding `weight`s."""
    import torch
    from torchvision.models import resnet
    from torchvision.models.detection import retinanet
    from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
    from torchvision.ops import misc
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    body = resnet.ResNet(
        resnet.Bottleneck,
        list(STAGES),
        groups=32,
        width_per_group=4,
        norm_layer=misc.FrozenBatchNorm2d,
    )
    extra = LastLevelP6P7(256, 256)
    backbone = _resnet_fpn_extractor(body, 3, returned_layers=[2, 3, 4], extra_blocks=extra)
    model = retinanet.RetinaNet(backbone, CLASSES).eval()
    model.load_state_dict(
        {n: torch.from_numpy(weight(n, tuple(t.shape))) for n, t in model.state_dict().items()}
    )
    return model


def names_and_shapes() -> Mapping[str, tuple[int, ...]]:
    """Of the network's state dict, read from the reference file."""
    saved = np.load(OUTPUT)
    return {str(n): tuple(int(v) for v in s if v) for n, s in zip(saved["names"], saved["shapes"])}


def main() -> None:
    import torch
    from torchvision.models.detection.image_list import ImageList

    torch.set_num_threads(1)
    model = build()
    saved: dict[str, Any] = {}
    tensors = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    saved["names"] = np.array(list(tensors))
    saved["shapes"] = np.array([(*s, 0, 0, 0, 0)[:4] for s in tensors.values()], np.int32)
    pixels = torch.from_numpy(images())
    with torch.no_grad():
        features = list(model.backbone(pixels).values())
        outputs = model.head(features)
        anchors = model.anchor_generator(ImageList(pixels, [(SIDE, SIDE)] * IMAGES), features)
        saved["anchors"] = anchors[0].numpy()
        saved["logits"] = outputs["cls_logits"][:, SAMPLED].numpy()
        saved["deltas"] = outputs["bbox_regression"][:, SAMPLED].numpy()
        targets = [
            {"boxes": torch.from_numpy(b), "labels": torch.from_numpy(k)}
            for b, k in zip(BOXES, LABELS)
        ]
        losses = model.compute_loss(targets, outputs, anchors)
        saved["losses"] = np.array(
            [losses["classification"].item(), losses["bbox_regression"].item()]
        )
        saved["matched"] = np.stack(
            [matched(model, t["boxes"], a) for t, a in zip(targets, anchors)]
        ).astype(np.int8)
        saved |= detected(model, anchors, [f.shape[2] ** 2 * 9 for f in features])
    OUTPUT.parent.mkdir(exist_ok=True)
    np.savez_compressed(OUTPUT, **saved)
    print(f"{OUTPUT}: {OUTPUT.stat().st_size / 1e3:.0f} kB")


def matched(model: Any, boxes: Any, anchors: Any) -> np.ndarray:
    """The matcher's result: box, -1 background or -2 ignored, by anchor."""
    from torchvision.ops import boxes as box_ops

    return model.proposal_matcher(box_ops.box_iou(boxes, anchors)).numpy()


def detected(model: Any, anchors: Any, counts: list[int]) -> dict[str, np.ndarray]:
    """The post-processing's result for `raw_outputs`, padded to 300."""
    import torch

    logits, deltas = ([torch.from_numpy(x) for x in part] for part in raw_outputs(counts))
    heads = {"cls_logits": logits, "bbox_regression": deltas}
    levels = [list(a.split(counts)) for a in anchors]
    found = model.postprocess_detections(heads, levels, [(SIDE, SIDE)] * IMAGES)
    parts = {}
    for name, filler in (("boxes", 0), ("scores", 0), ("labels", -1)):
        rows = [f[name].numpy() for f in found]
        whole = np.full((IMAGES, 300, *rows[0].shape[1:]), filler, rows[0].dtype)
        for row, values in zip(whole, rows):
            row[: len(values)] = values
        parts[f"detected_{name}"] = whole
    return parts


if __name__ == "__main__":
    main()
