"""DLRM-DCNv2 with Adagrad: a sparse `EmbeddingBag` a table, low-rank cross layers.

B samples · T tables · W width of an embedding · F = (T + 1) W
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from mlperf_jax.benchmarks.dlrm_dcnv2 import DENSE
from scripts.twins import training

NOTE = "torch.nn.EmbeddingBag, not TorchRec's fused tables"


def mlp(features: int, widths: Sequence[int]) -> torch.nn.Sequential:
    pairs = itertools.pairwise((features, *widths))
    return torch.nn.Sequential(
        *(m for pair in pairs for m in (torch.nn.Linear(*pair), torch.nn.ReLU()))
    )


class Cross(torch.nn.Module):
    """x0 * (W (V x) + b) + x."""

    def __init__(self, features: int, rank: int) -> None:
        super().__init__()
        self.v = torch.nn.Linear(features, rank, bias=False)
        self.w = torch.nn.Linear(rank, features)

    def forward(self, x0, x):
        return x0 * self.w(self.v(x)) + x


class Dense(torch.nn.Module):
    """Everything but the tables."""

    def __init__(self, given: Any) -> None:
        super().__init__()
        features = (len(given.table_rows) + 1) * given.width
        self.bottom, self.top = mlp(DENSE, given.bottom), mlp(features, given.top)
        crosses = (Cross(features, given.cross_rank) for _ in range(given.cross_layers))
        self.cross = torch.nn.ModuleList(crosses)
        self.logit = torch.nn.Linear(given.top[-1], 1)

    def forward(self, dense, bags):
        x0 = x = torch.cat([self.bottom(dense), *bags], 1)  # [B, F]
        for layer in self.cross:
            x = layer(x0, x)
        return self.logit(self.top(x))[:, 0]


class Model(training.Model):
    def __init__(self, given: Any) -> None:
        super().__init__()
        self.bags = given.bag_sizes
        self.tables = torch.nn.ModuleList(
            torch.nn.EmbeddingBag(rows, given.width, mode="sum", sparse=True)
            for rows in given.table_rows
        )
        self.dense = Dense(given)

    def layers_to_compile(self):
        return (self.dense,)

    def forward(self, batch):
        parts = batch["ids"].split(self.bags, 1)
        bags = [table(ids) for table, ids in zip(self.tables, parts, strict=True)]
        logits = self.dense(batch["dense"], bags)
        return F.binary_cross_entropy_with_logits(logits.float(), batch["label"])


class Both:
    """Adagrad over the tables' rows and over all else: sparse and dense gradients want one each."""

    def __init__(self, model: Model, given: Any) -> None:
        how: Any = {"lr": given.base_lr, "eps": given.adagrad_epsilon}
        self.each = [
            torch.optim.Adagrad(model.tables.parameters(), **how),
            torch.optim.Adagrad(model.dense.parameters(), foreach=True, **how),
        ]

    def step(self) -> None:
        for optimizer in self.each:
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.each:
            optimizer.zero_grad(set_to_none=set_to_none)


def optimizer(model: Model, given: Any) -> Any:
    return Both(model, given)
