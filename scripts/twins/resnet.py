"""ResNet v1.5 with LARS; torchvision's network, as scripts/make_resnet_reference.py writes it out.

B images · S side
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from scripts import make_resnet_reference
from scripts.twins import training

NOTE = "statistics of batch norm over the whole batch"


class Model(training.Model):
    def __init__(self, given: Any) -> None:
        super().__init__()
        self.smoothing = given.smoothing
        net = make_resnet_reference.network(given.stages, given.width, given.classes, given.padding)
        self.net = net.to(memory_format=torch.channels_last)

    def forward(self, batch):
        logits = self.net(batch["image"].permute(0, 3, 1, 2))  # channels last as it lies
        return F.cross_entropy(logits.float(), batch["label"], label_smoothing=self.smoothing)


def optimizer(model: Model, given: Any) -> Any:
    return training.Lars(model, given.weight_decay, given.momentum)
