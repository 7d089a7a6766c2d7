"""Writes tests/models/data/rgat_reference.npz: what PyG computes with a small R-GAT in float64.

Run by hand, with torch and torch_geometric installed, from the root of the repository:

    PYTHONPATH=. python scripts/make_rgat_reference.py

Weights and samples follow from names and seeds, hence the file holds results only: outputs, losses, of every
gradient its norm and a projection, and where thirty steps of Adam lead. The tests import this file for the rest;
torch and torch_geometric are imported where they are used.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from scripts.make_bert_reference import drawn, summary

OUTPUT = Path(__file__).parents[1] / "tests/models/data/rgat_reference.npz"

# as the reference names them, the reversed ones behind those of the data set
RELATIONS = tuple(
    tuple(line.split())
    for line in """paper cites paper
    paper written_by author
    author affiliated_to institute
    paper topic fos
    paper published journal
    paper venue conference
    author rev_written_by paper
    institute rev_affiliated_to author
    fos rev_topic paper
    journal rev_published paper
    conference rev_venue paper""".splitlines()
)
FULL = {"features": 1024, "heads": 4, "head_width": 128, "classes": 2983}
# the small network leaves out journals and conferences, which are to papers as fields of study are
FEW = tuple(r for r in RELATIONS if not {"journal", "conference"} & set(r))
SIZES = {"features": 6, "heads": 2, "head_width": 3, "classes": 5}
LAYERS = 3
# rows by type that are first seen at hop 0, 1, 2 and 3, with padding and without
ROWS = {
    "paper": (5, 8, 8, 10),
    "author": (0, 5, 6, 6),
    "institute": (0, 0, 3, 3),
    "fos": (0, 4, 3, 3),
}
REAL = {
    "paper": (4, 6, 7, 8),
    "author": (0, 4, 5, 5),
    "institute": (0, 0, 2, 3),
    "fos": (0, 3, 2, 3),
}
FANOUT = 3
ABSENT = {0: "fos__rev_topic__paper", 1: "", 2: "author__rev_written_by__paper"}  # by sample
STEPS, RATE = 30, 1e-3


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 array that goes by a name of ours; kernels are [inputs, outputs]."""
    return drawn(name, shape) * np.float32(0.1 if name.endswith("bias") else 0.5)


# -- samples ---------------------------------------------------------------------------------------


def edges(draw: Any, relation: tuple[str, ...], absent: bool) -> tuple[np.ndarray, list[int]]:
    """Source, target and whether it is real, as one array [E, 3], and edges within 1, 2 and 3 hops.

    A target has up to three in-edges, some of them twice; the first of a hop has one at least, since PyG
    cannot go on without a type. Padding is spread over the hops, and points from anywhere.
    """
    (source, _, target), found, counts = relation, [], []
    starts = {name: np.cumsum([0, *rows]) for name, rows in ROWS.items()}
    for hop in range(LAYERS):
        rows = REAL[target][hop]
        known = np.concatenate(
            [starts[source][k] + np.arange(REAL[source][k]) for k in range(hop + 2)]
        )
        section, size = [], 0 if not rows else (FANOUT + 1) * rows + 1
        for row in range(rows if not absent and len(known) else 0):
            for at in draw.choice(known, draw.randint(row == 0, FANOUT + 1)):
                section += [(at, starts[target][hop] + row, 1)] * (1 + (draw.rand() < 0.15))
        section = section[:size]
        last = section[-1][1] if section else starts[target][hop]
        end = sum(ROWS[source])
        section += [(draw.randint(end), last, 0) for _ in range(size - len(section))]
        found += section
        counts.append(len(found))
    return np.array(found, np.int32).reshape(-1, 3), counts


def sample(number: int) -> dict[str, Any]:
    """Features by type, `edges` by relation, how many of either lie within some hops, labels and their weights."""
    features = {
        name: drawn(f"sample {number} {name}", (sum(rows), SIZES["features"]))
        for name, rows in ROWS.items()
    }
    draw = np.random.RandomState(number)
    found = {}
    for relation in FEW:
        key = "__".join(relation)
        found[key] = edges(draw, relation, key == ABSENT[number])
    seeds = ROWS["paper"][0]
    return {
        "features": features,
        "edges": {key: rows for key, (rows, _) in found.items()},
        "node_counts": {name: np.cumsum(rows).tolist() for name, rows in ROWS.items()},
        "edge_counts": {key: counts for key, (_, counts) in found.items()},
        "labels": draw.randint(0, SIZES["classes"], seeds),
        "weights": (np.arange(seeds) < REAL["paper"][0]).astype(np.float64),
    }


def alone(bipartite: bool) -> dict[str, np.ndarray]:
    """One relation's layer: sources, targets and edges [2, E], of which the last is there twice."""
    draw = np.random.RandomState(20 + bipartite)
    name = f"alone {bipartite}"
    sources = drawn(f"{name} sources", (9, SIZES["features"]))
    targets = drawn(f"{name} targets", (6, SIZES["features"])) if bipartite else sources
    target = np.sort(draw.randint(1, len(targets), 15))  # 0 has no in-edge
    pairs = np.stack([draw.randint(0, 9, 15), target])
    return {"sources": sources, "targets": targets, "edges": np.c_[pairs, pairs[:, -1]]}


# -- PyG -------------------------------------------------------------------------------------------


def convolution(inputs: int, sizes: dict[str, int]) -> Any:
    from torch_geometric.nn import GATConv

    return GATConv(inputs, sizes["head_width"], heads=sizes["heads"], add_self_loops=False)


def build(relations: tuple[tuple[str, ...], ...], sizes: dict[str, int]) -> Any:
    import torch
    from torch_geometric.nn import HeteroConv

    width = sizes["heads"] * sizes["head_width"]
    layers = [
        HeteroConv({r: convolution(inputs, sizes) for r in relations}, aggr="sum")
        for inputs in (sizes["features"], *(width,) * (LAYERS - 1))
    ]
    modules = {
        "layers": torch.nn.ModuleList(layers),
        "head": torch.nn.Linear(width, sizes["classes"]),
    }
    return torch.nn.ModuleDict(modules)


def named(model: Any) -> dict[str, tuple[Any, str]]:
    """By our name a parameter of the model and what to do with it: transpose a matrix, drop an axis."""
    found = {"head/kernel": (model["head"].weight, "t"), "head/bias": (model["head"].bias, "")}
    for i, layer in enumerate(model["layers"]):
        for relation in FEW:
            start = f"hetero/{i}/relations/{'__'.join(relation)}/"
            found |= parts(layer.convs[relation], start)
    return found


def parts(conv: Any, start: str) -> dict[str, tuple[Any, str]]:
    return {
        f"{start}project/kernel": (conv.lin.weight, "t"),
        f"{start}source": (conv.att_src, "0"),
        f"{start}target": (conv.att_dst, "0"),
        f"{start}bias": (conv.bias, ""),
    }


def ours(x: Any, how: str) -> Any:
    return x.T if how == "t" else x[0] if how == "0" else x


def fill(found: dict[str, tuple[Any, str]]) -> None:
    import torch

    with torch.no_grad():
        for name, (parameter, how) in found.items():
            inside = ours(parameter, how)
            inside.copy_(torch.from_numpy(weight(name, tuple(inside.shape))))


def gradients(found: dict[str, tuple[Any, str]]) -> dict[str, np.ndarray]:
    """By our name; what the loss does not see has zeros."""
    import torch

    slopes = {
        n: ours(torch.zeros_like(p) if p.grad is None else p.grad, how)
        for n, (p, how) in found.items()
    }
    return {name: slope.numpy() for name, slope in slopes.items()}


def logits(model: Any, one: dict[str, Any]) -> Any:
    """Of all seeds; every layer computes everything, and a relation without edges is skipped."""
    import torch
    from torch.nn import functional as F

    h = {name: torch.from_numpy(x).double() for name, x in one["features"].items()}
    index = {}
    for relation in FEW:
        rows = one["edges"]["__".join(relation)]
        real = rows[rows[:, 2] > 0]
        if len(real):
            index[relation] = torch.from_numpy(real[:, :2].T.astype(np.int64))
    for i, layer in enumerate(model["layers"]):
        h = layer(h, index)
        if i < LAYERS - 1:
            h = {name: F.leaky_relu(x) for name, x in h.items()}
    return model["head"](h["paper"][: len(one["labels"])])


def loss(found: Any, one: dict[str, Any]) -> Any:
    import torch
    from torch.nn import functional as F

    each = F.cross_entropy(found, torch.from_numpy(one["labels"]), reduction="none")
    weights = torch.from_numpy(one["weights"])
    return (each * weights).sum() / weights.sum()


def text(value: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def main() -> None:
    import torch

    torch.set_num_threads(1)
    saved: dict[str, Any] = {}
    with torch.device("meta"):
        saved["full size"] = np.array(sum(p.numel() for p in build(RELATIONS, FULL).parameters()))

    for bipartite in (False, True):
        one, name = alone(bipartite), f"alone {bipartite}"
        conv = convolution(SIZES["features"], SIZES).double()
        found = parts(conv, f"{name} ")
        fill(found)
        ends = [torch.from_numpy(one[end]).double() for end in ("sources", "targets")]
        out = conv(tuple(ends), torch.from_numpy(one["edges"]))
        out.backward(torch.from_numpy(drawn(f"slope {name}", tuple(out.shape))).double())
        saved[name] = out.detach().numpy()
        saved[f"{name} gradients"] = text(summary(gradients(found)))

    model = build(FEW, SIZES).double()
    found = named(model)
    fill(found)
    samples = [sample(number) for number in range(3)]
    adam, losses = torch.optim.Adam(model.parameters(), RATE), []
    for (
        parameter
    ) in model.parameters():  # torch would count steps of each from its first gradient on
        parameter.grad = torch.zeros_like(parameter)
    for step in range(STEPS):
        one = samples[step % 3]
        adam.zero_grad(set_to_none=False)
        out = logits(model, one)
        value = loss(out, one)
        value.backward()
        losses.append(value.item())
        if step < 3:
            saved[f"logits {step}"] = out.detach().numpy()
            saved[f"gradients {step}"] = text(summary(gradients(found)))
        adam.step()
    saved["losses"] = np.array(losses)
    after = {name: ours(p.detach(), how).numpy() for name, (p, how) in found.items()}
    saved["trained"] = text(summary(after))
    np.savez_compressed(OUTPUT, **saved)
    print(
        f"{OUTPUT.name}: {OUTPUT.stat().st_size:,} bytes, losses {losses[0]:.4f} to {losses[-1]:.4f}"
    )


if __name__ == "__main__":
    main()
