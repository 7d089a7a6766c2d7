"""RetinaNet with Adam: ResNeXt with frozen norms, a feature pyramid, two heads, focal and L1 loss.

Anchors are matched image by image with the boxes that are there, as torchvision does it.

B images · S side · N anchors of all levels · K classes · G places for boxes
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from mlperf_jax.models import resnext
from mlperf_jax.models.retinanet import ANCHORS, PRIOR
from scripts.twins import training


class FrozenNorm(torch.nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(features))
        self.register_buffer("shift", torch.zeros(features))

    def forward(self, x):
        scale, shift = (y.to(x.dtype)[:, None, None] for y in (self.scale, self.shift))
        return x * scale + shift


def conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> Any:
    """A convolution of the body, with its norm."""
    made = torch.nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return torch.nn.Sequential(made, FrozenNorm(outputs))


class Bottleneck(torch.nn.Module):
    def __init__(self, shape: Any, groups: int) -> None:
        super().__init__()
        self.one = conv(shape.features_in, shape.inner, 1)
        self.two = conv(shape.inner, shape.inner, 3, shape.stride, groups)
        self.three = conv(shape.inner, shape.features, 1)
        self.skip = torch.nn.Identity()
        if shape.project:
            self.skip = conv(shape.features_in, shape.features, 1, shape.stride)

    def forward(self, x):
        y = self.three(F.relu(self.two(F.relu(self.one(x)))))
        return F.relu(self.skip(x) + y)


def head(width: int, depth: int, outputs: int) -> torch.nn.Sequential:
    layers: list[torch.nn.Module] = []
    for _ in range(depth):
        layers += [torch.nn.Conv2d(width, width, 3, padding=1), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.Conv2d(width, ANCHORS * outputs, 3, padding=1))


class Network(torch.nn.Module):
    """Images to logits [B, N, K] and deltas [B, N, 4]."""

    def __init__(self, given: Any) -> None:
        super().__init__()
        shapes = resnext.block_shapes(given.stages, given.width)
        self.stem = conv(3, given.width, 7, 2)
        self.stages = torch.nn.ModuleList(
            torch.nn.Sequential(*(Bottleneck(shape, given.groups) for shape in stage))
            for stage in shapes
        )
        frozen = [*([self.stem] if given.trainable_stages < 5 else [])]
        frozen += self.stages[: max(0, 4 - given.trainable_stages)]
        for part in frozen:
            part.requires_grad_(False)
        width, features = given.pyramid_width, [stage[-1].features for stage in shapes][-3:]
        self.inner = torch.nn.ModuleList(torch.nn.Conv2d(f, width, 1) for f in features)
        self.outer = torch.nn.ModuleList(
            torch.nn.Conv2d(width, width, 3, padding=1) for _ in features
        )
        self.p6, self.p7 = (torch.nn.Conv2d(width, width, 3, 2, 1) for _ in range(2))
        self.classes = head(width, given.head_depth, given.classes)
        self.boxes = head(width, given.head_depth, 4)
        torch.nn.init.constant_(self.classes[-1].bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, image):
        x, maps = F.max_pool2d(F.relu(self.stem(image)), 3, 2, 1), []
        for stage in self.stages:
            maps.append(x := stage(x))
        inner = [conv(x) for conv, x in zip(self.inner, maps[-3:], strict=True)]
        for finer in (1, 0):
            inner[finer] = inner[finer] + F.interpolate(inner[finer + 1], inner[finer].shape[2:])
        pyramid = [conv(x) for conv, x in zip(self.outer, inner, strict=True)]
        pyramid.append(self.p6(pyramid[-1]))
        pyramid.append(self.p7(F.relu(pyramid[-1])))
        return self._joined(self.classes, pyramid), self._joined(self.boxes, pyramid)

    def _joined(self, head: Any, pyramid: Any) -> Any:
        each = (head(x).permute(0, 2, 3, 1) for x in pyramid)
        return torch.cat([y.unflatten(3, (ANCHORS, -1)).flatten(1, 3) for y in each], 1)


def sides(boxes: Any) -> Any:
    return boxes[..., 2:] - boxes[..., :2]


def code(boxes: Any, anchors: Any) -> Any:
    """Of boxes relative to anchors."""
    size, whole = sides(anchors), sides(boxes)
    centre = (boxes[..., :2] + whole / 2 - anchors[..., :2] - size / 2) / size
    return torch.cat([centre, torch.log(whole / size)], -1)


def losses(logits: Any, deltas: Any, anchors: Any, state: Any, label: Any, boxes: Any) -> Any:
    """Focal and L1 loss; state [B, N] is 1 where an anchor has a box, 0 where none, -1 ignored."""
    inside = state == 1
    share = 1 / inside.sum(1).clamp(min=1) / len(logits)
    true = F.one_hot(label.clamp(min=0), logits.shape[-1]).float() * inside[..., None]
    wide = logits.float()
    chance = wide.sigmoid()
    right = chance * true + (1 - chance) * (1 - true)
    each = F.binary_cross_entropy_with_logits(wide, true, reduction="none")
    each = each * (1 - right) ** 2 * (0.25 * true + 0.75 * (1 - true))
    first = (each.sum(-1) * (state >= 0) * share[:, None]).sum()
    off = (deltas.float() - code(torch.where(inside[..., None], boxes, anchors), anchors)).abs()
    return first + (off.sum(-1) * inside * share[:, None]).sum()


class Model(training.Model):
    def __init__(self, given: Any) -> None:
        super().__init__()
        self.side, self.losses = given.image_size, losses
        self.net = Network(given).to(memory_format=torch.channels_last)
        anchors = torch.from_numpy(np.concatenate(given.anchors()))
        self.register_buffer("anchors", anchors.to(torch.get_default_device()))

    def compile_parts(self):
        self.net.compile()
        self.losses = torch.compile(losses)

    def forward(self, batch):
        logits, deltas = self.net(batch["image"].permute(0, 3, 1, 2))
        sizes = batch["size"].flip(1).repeat(1, 2)[:, None]  # width, height, width, height
        boxes = batch["boxes"] * (self.side / sizes)
        pairs = zip(boxes, batch["label"], strict=True)
        matched = [self.match(some[label >= 0], label[label >= 0]) for some, label in pairs]
        state, label, found = (torch.stack(part) for part in zip(*matched, strict=True))
        return self.losses(logits, deltas, self.anchors, state, label, found)

    @torch.no_grad()
    def match(self, boxes: Any, label: Any) -> Any:
        """State, class and box [N] of each anchor, from the boxes of one image."""
        corner = torch.maximum(self.anchors[:, None, :2], boxes[:, :2])
        shared = (torch.minimum(self.anchors[:, None, 2:], boxes[:, 2:]) - corner).clamp(min=0)
        shared = shared.prod(-1)
        areas = sides(self.anchors).prod(-1)[:, None], sides(boxes).prod(-1)
        overlap = shared / (areas[0] + areas[1] - shared)  # [N, boxes]
        best, which = overlap.max(1)
        state = (best >= 0.5).long() - ((best >= 0.4) & (best < 0.5)).long()
        lifted = (overlap == overlap.max(0).values).any(1)
        return torch.where(lifted, 1, state), label[which], boxes[which]


def optimizer(model: Model, given: Any) -> Any:
    return torch.optim.Adam(training.trained(model), lr=training.RATE, fused=True)
