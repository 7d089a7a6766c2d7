"""R-GAT with Adam: attention along each relation by gathers and scattered sums, each layer cut to what the seeds see.

R samples of a batch · n nodes of a type · e edges of a relation · N heads · C width of a head
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from scripts.twins import training

NOTE = "scatters of PyTorch, no fused kernels of PyG; features as float8, as ours"


def place(given: Any, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The samples of a batch side by side: nodes in the order of local numbers, and edges without padding.

    A loader does this on the host; a layer's edges are those that its depth needs.
    """
    shape, size = given.shape(), given.size_of_graph
    rows = np.arange(len(batch["labels"]))[:, None]
    found = {"labels": np.where(batch["mask"][:, None], batch["labels"], -1)}
    for kind in size.nodes:
        ids = batch[f"ids/{kind}"]
        if f"place/{kind}" in batch:
            ids = np.take_along_axis(ids, batch[f"place/{kind}"], 1)
        found[f"ids/{kind}"] = np.maximum(ids, 0)
    layers = len(given.fanouts)
    for layer in range(layers):
        depth = layers - 1 - layer
        for key, room in shape.edges.items():
            source, _, target = key.split("__")
            real = batch[f"real/{key}"][:, : room[depth]]
            ends = ((source, depth + 1, "source"), (target, depth, "target"))
            for kind, hops, name in ends:
                at = batch[f"{name}/{key}"][:, : room[depth]]
                found[f"{name}/{layer}/{key}"] = (at + rows * shape.nodes[kind][hops])[real]
    return found


def attend(source, first, kernel, of_sources, of_targets, sources, targets):
    """One relation: nodes [R, n, I] and [R, m, I] and its edges -> sums [R, m, N, C]."""
    heads, width = of_sources.shape
    z = (source @ kernel).flatten(0, 1).unflatten(1, (heads, width))
    own = (kernel.unflatten(1, (heads, width)) * of_targets).sum(-1)
    scores = (z * of_sources).sum(-1).float()[sources]
    scores = F.leaky_relu(scores + (first @ own).flatten(0, 1).float()[targets], 0.2)
    rows = first.shape[0] * first.shape[1]
    at = targets[:, None].expand_as(scores)
    most = scores.new_full((rows, heads), -torch.inf)
    most = most.scatter_reduce(0, at, scores.detach(), "amax")
    weights = torch.exp(scores - most[targets])
    total = torch.zeros_like(most).index_add(0, targets, weights)
    weights = (weights / total[targets])[..., None].to(z.dtype)
    sums = z.new_zeros(rows, heads, width).index_add(0, targets, weights * z[sources])
    return sums.unflatten(0, first.shape[:2])


class Layer(torch.nn.Module):
    """The weights of all relations."""

    def __init__(self, given: Any, inputs: int, relations: Any) -> None:
        super().__init__()
        self.relations, self.attend = relations, attend
        width = given.heads * given.head_width
        glorot = torch.nn.init.xavier_uniform_
        form = len(relations), given.heads, given.head_width
        self.kernel = torch.nn.Parameter(torch.empty(len(relations), inputs, width))
        for kernel in self.kernel:
            glorot(kernel.data)
        self.source, self.target = (torch.nn.Parameter(glorot(torch.empty(form))) for _ in "ab")
        self.bias = torch.nn.Parameter(torch.zeros(len(relations), width))

    def forward(self, h: Any, wanted: Mapping[str, int], edges: Any) -> dict[str, Any]:
        """h by type [R, n, I]; the first `wanted` nodes of each type, [R, wanted, N C]."""
        out = {}
        weights = zip(self.relations, self.kernel, self.source, self.target, self.bias, strict=True)
        for relation, kernel, of_sources, of_targets, bias in weights:
            if relation.key not in edges:
                continue
            first = h[relation.target][:, : wanted[relation.target]]
            vectors = kernel, of_sources, of_targets
            sums = self.attend(h[relation.source], first, *vectors, *edges[relation.key])
            out[relation.target] = out.get(relation.target, 0) + sums.flatten(2) + bias
        return out


class Model(training.Model):
    def __init__(self, given: Any) -> None:
        super().__init__()
        size, self.shape, self.dropout = given.size_of_graph, given.shape(), given.dropout
        self.kinds, self.hops = tuple(size.nodes), len(given.fanouts)
        width = given.heads * given.head_width
        inputs = (size.width, *(width,) * (self.hops - 1))
        relations = size.relations
        self.layers = torch.nn.ModuleList(Layer(given, each, relations) for each in inputs)
        self.head = torch.nn.Linear(width, given.classes)
        self.dtype = getattr(torch, given.dtype)
        self.stored = getattr(torch, given.feature_dtype)
        for kind, count in size.nodes.items():
            # as bytes, which PyTorch can look up in any type
            values = torch.empty(count, size.width, dtype=self.stored)
            for part in values.split(1 << 20):
                part.copy_(torch.randn(part.shape).to(self.stored))
            self.register_buffer(f"features_{kind}", values.view(torch.uint8))

    def compile_parts(self):
        compiled = torch.compile(attend, dynamic=True)  # once for all relations
        for layer in self.layers:
            layer.attend = compiled

    def forward(self, batch):
        h = {}
        for kind in self.kinds:
            found = getattr(self, f"features_{kind}")[batch[f"ids/{kind}"].flatten()]
            form = batch[f"ids/{kind}"].shape
            h[kind] = found.view(self.stored).to(self.dtype).unflatten(0, form)
        for i, layer in enumerate(self.layers):
            depth = self.hops - 1 - i
            edges = {
                key: pair
                for key in self.shape.edges
                if len((pair := tuple(batch[f"{e}/{i}/{key}"] for e in ("source", "target")))[0])
            }
            known = {kind: x[:, : self.shape.nodes[kind][depth + 1]] for kind, x in h.items()}
            wanted = {kind: counts[depth] for kind, counts in self.shape.nodes.items()}
            h = layer(known, wanted, edges)
            if depth:
                h = {k: F.dropout(F.leaky_relu(x), self.dropout) for k, x in h.items()}
        labels = batch["labels"]
        logits = self.head(h["paper"][:, : labels.shape[1]])
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-1)


def optimizer(model: Model, given: Any) -> Any:
    betas = given.beta_1, given.beta_2
    return torch.optim.Adam(
        model.parameters(), lr=training.RATE, betas=betas, eps=given.epsilon, fused=True
    )
