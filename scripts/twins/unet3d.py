"""The 3D U-Net with momentum; the network is that of scripts/make_unet3d_reference.py.

B patches · S side
"""

from __future__ import annotations

from typing import Any

import torch

from scripts import make_unet3d_reference
from scripts.twins import training


class Model(training.Model):
    def __init__(self, given: Any) -> None:
        super().__init__()
        shapes = make_unet3d_reference.shapes(given.filters, given.classes)
        self.names = {name: name.replace(".", "/") for name in shapes}  # no dot in PyTorch's
        state = {}
        for name, shape in shapes.items():
            norm = name.endswith("1.weight")
            value = torch.ones(shape) if norm else torch.zeros(shape)
            if len(shape) == 5:
                value = torch.nn.init.kaiming_uniform_(value).to(
                    memory_format=torch.channels_last_3d
                )
            state[self.names[name]] = torch.nn.Parameter(value)
        self.weights = torch.nn.ParameterDict(state)

    def forward(self, batch):
        state = {name: self.weights[key] for name, key in self.names.items()}
        logits = make_unet3d_reference.forward(state, batch["image"].permute(0, 4, 1, 2, 3))
        return make_unet3d_reference.loss_of(logits.float(), batch["label"])


def optimizer(model: Model, given: Any) -> Any:
    return torch.optim.SGD(
        model.parameters(),
        lr=training.RATE,
        momentum=given.momentum,
        nesterov=True,
        weight_decay=given.weight_decay,
        fused=True,
    )
