"""Permutations by torch, for tests/input_pipelines/test_igbh_split.py.

    python scripts/make_igbh_reference.py          # seconds; needs torch (2.13 made the stored ones), not the package

Writes tests/input_pipelines/data/igbh_permutations.npz: whole permutations of small n, and of larger ones the first
and last places with the sum of i * place i, for seeds up to the largest that fits 32 bits.
"""

from __future__ import annotations

import pathlib

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

TARGET = pathlib.Path(__file__).parent.parent / "tests/input_pipelines/data/igbh_permutations.npz"
WHOLE = ((1, 42), (2, 42), (3, 0), (10, 42), (200, 7), (1009, 42), (1009, 2**32 - 1))
LARGE = ((70_001, 42), (3_000_017, 42), (3_000_017, 123_456_789))
ENDS = 64


def main() -> None:
    found = {}
    for count, seed in WHOLE + LARGE:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(count, generator=generator).numpy()
        if (count, seed) in LARGE:
            weighted = int(order @ np.arange(count))
            order = np.concatenate([order[:ENDS], order[-ENDS:], [weighted]])
        found[f"{count}_{seed}"] = order
    np.savez_compressed(TARGET, **found)
    print(f"torch {torch.__version__}: {', '.join(found)} -> {TARGET.name}")


if __name__ == "__main__":
    main()
