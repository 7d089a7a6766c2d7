"""Writes tests/metrics/data/fid_reference.json: what pytorch-fid computes with SciPy's `sqrtm`.

Run by hand, with pytorch-fid and SciPy installed, from the root of the repository:

    python scripts/make_fid_reference.py

Features follow from seeds; the tests import this file for them. pytorch-fid 0.3.0 and SciPy from 1.18 on do not fit
each other (`sqrtm` has lost an argument), which is mended here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

OUTPUT = Path(__file__).parents[1] / "tests/metrics/data/fid_reference.json"

# name -> rows generated, rows real, features, decades between the largest and the least deviation
CASES = {
    "even": (400, 500, 48, 0.0),
    "uneven": (400, 500, 48, 1.5),
    "few_more_rows": (60, 500, 48, 1.0),
}


def features(case: str, kind: str) -> np.ndarray:
    """Rows of a case, float32: "generated" or "real"."""
    made, real, width, decades = CASES[case]
    draw = np.random.RandomState(len(case) + (kind == "real"))
    rows = draw.standard_normal((real if kind == "real" else made, width))
    turned = np.linalg.qr(draw.standard_normal((width, width)))[0]
    rows = rows @ (10 ** -np.linspace(0, decades, width)[:, None] * turned)
    return (rows + (0.3 if kind == "real" else 0.5)).astype(np.float32)


def distance(generated: np.ndarray, real: np.ndarray) -> float:
    """By pytorch-fid's formula from float64 statistics."""
    import scipy.linalg
    from pytorch_fid import fid_score

    root = scipy.linalg.sqrtm

    def sqrtm(matrix: np.ndarray, disp: bool = True) -> Any:
        return root(matrix) if disp else (root(matrix), None)

    given = []
    for rows in (generated, real):
        wide = rows.astype(np.float64)
        given += [wide.mean(0), np.cov(wide, rowvar=False)]
    scipy.linalg.sqrtm = sqrtm
    try:
        return float(fid_score.calculate_frechet_distance(*given))
    finally:
        scipy.linalg.sqrtm = root


def main() -> None:
    found = {case: distance(features(case, "generated"), features(case, "real")) for case in CASES}
    OUTPUT.write_text(json.dumps(found, indent=1) + "\n")
    print(found)


if __name__ == "__main__":
    main()
