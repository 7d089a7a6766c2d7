"""Writes tests/models/data/dlrm_reference.npz: DLRM-DCNv2 in PyTorch, before and after two steps.

A transcription of the reference's network (mlcommons/training, recommendation_v2/torchrec_dlrm) at small
sizes in float64: embedding bags that sum, bottom layers, low-rank cross layers, top layers, the mean
binary cross-entropy, and `torch.optim.Adagrad` with its epsilon of 1e-8. Names and layouts are ours.

    python scripts/make_dlrm_reference.py
"""

import pathlib

import numpy as np
import torch
from torch import nn

ROWS, BAGS, WIDTH = (50, 7, 30), (3, 1, 5), 8
DENSE, BOTTOM, TOP, LAYERS, RANK, BATCH, RATE = 13, (16, 8), (12, 6), 3, 4, 24, 0.004
FILE = pathlib.Path(__file__).parent.parent / "tests" / "models" / "data" / "dlrm_reference.npz"


class Twin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        features = (len(ROWS) + 1) * WIDTH
        self.tables = nn.ModuleList(nn.EmbeddingBag(n, WIDTH, mode="sum") for n in ROWS)
        self.bottom = chain(DENSE, BOTTOM)
        self.v = nn.ModuleList(nn.Linear(features, RANK, bias=False) for _ in range(LAYERS))
        self.w = nn.ModuleList(nn.Linear(RANK, features) for _ in range(LAYERS))
        self.top = chain(features, TOP)
        self.head = nn.Linear(TOP[-1], 1)

    def forward(self, dense: torch.Tensor, ids: list[torch.Tensor]) -> torch.Tensor:
        bags = [table(one) for table, one in zip(self.tables, ids, strict=True)]
        x0 = torch.cat([relus(self.bottom, dense), *bags], 1)
        x = x0
        for v, w in zip(self.v, self.w, strict=True):
            x = x0 * w(v(x)) + x
        return self.head(relus(self.top, x)).squeeze(1)


def chain(features: int, widths: tuple[int, ...]) -> nn.ModuleList:
    pairs = zip((features, *widths), widths, strict=False)
    return nn.ModuleList(nn.Linear(a, b) for a, b in pairs)


def relus(layers: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
    for layer in layers:
        x = torch.relu(layer(x))
    return x


def weights(twin: Twin, prefix: str) -> dict[str, np.ndarray]:
    """Arrays by our paths; kernels have their output axis last."""
    layers = {f"bottom/linears/{i}": layer for i, layer in enumerate(twin.bottom)}
    layers |= {f"top/linears/{i}": layer for i, layer in enumerate(twin.top)}
    layers |= {f"interaction/cross/{i}/v": layer for i, layer in enumerate(twin.v)}
    layers |= {f"interaction/cross/{i}/w": layer for i, layer in enumerate(twin.w)}
    layers["head"] = twin.head
    found = {f"table_{i}": table.weight for i, table in enumerate(twin.tables)}
    for path, layer in layers.items():
        found[f"{path}/kernel"] = layer.weight.T
        if layer.bias is not None:
            found[f"{path}/bias"] = layer.bias
    return {f"{prefix}/{path}": leaf.detach().numpy().copy() for path, leaf in found.items()}


def main() -> None:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    twin = Twin()
    for table in twin.tables:  # the benchmark's law; torch's own is a normal distribution
        nn.init.uniform_(table.weight, -(table.num_embeddings**-0.5), table.num_embeddings**-0.5)
    dense = torch.log(torch.randint(0, 50, (BATCH, DENSE)) + 3.0)
    ids = [torch.randint(0, n, (BATCH, k)) for n, k in zip(ROWS, BAGS, strict=True)]
    ids[0][0] = ids[0][1] = 4  # an id thrice in a bag, and in two samples
    labels = torch.randint(0, 2, (BATCH,)).to(torch.float64)
    saved = {
        "dense": dense.numpy(),
        "ids": torch.cat(ids, 1).numpy().astype(np.int32),
        "label": labels.numpy(),
        **weights(twin, "before"),
    }
    optimizer = torch.optim.Adagrad(twin.parameters(), lr=RATE, eps=1e-8)
    for step in range(2):
        logits = twin(dense, ids)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, labels)
        saved |= {f"logits_{step}": logits.detach().numpy(), f"loss_{step}": loss.detach().numpy()}
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        saved |= weights(twin, f"after_{step}")
    np.savez_compressed(FILE, **saved)
    print(f"{FILE}: {FILE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
