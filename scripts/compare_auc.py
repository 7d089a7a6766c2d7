"""Exact area under the ROC curve: our time, memory and value beside scikit-learn's.

    python scripts/compare_auc.py --cores 1            # 5 M scores, two minutes
    python scripts/compare_auc.py --samples 89137319 --ours    # Criteo's validation set

Both take the same float32 scores and int32 labels. Memory is what a process of its own needed at its peak
beyond the arrays it was given. Three kinds of scores: clicks as rare as Criteo's, as many clicks as others, and
scores of three decimals (ties).
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial

import measuring

# isort: split

import numpy as np

KINDS = ("rare", "even", "ties")


def make(kind: str, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores f32 and labels i32 of a kind: logits of clicks lie 1.2 above the others'."""
    rng = np.random.default_rng(0)
    labels = (rng.random(samples, np.float32) < (0.5 if kind == "even" else 0.032)).astype(np.int32)
    scores = rng.standard_normal(samples, np.float32)
    scores += 1.2 * labels - 3
    scores = 1 / (1 + np.exp(-scores))
    return (np.round(scores, 3) if kind == "ties" else scores), labels


def area_of(method: str) -> Callable[[np.ndarray, np.ndarray], float]:
    if method == "ours":
        from mlperf_jax.metrics.auc import roc_auc as area
    else:
        from sklearn.metrics import roc_auc_score as area
    return area


def measure(folder: str, method: str) -> None:
    """Prints {"bytes", "area"} of one computation on the arrays in a folder."""
    area = area_of(method)
    scores, labels = (np.load(f"{folder}/{name}.npy") for name in ("scores", "labels"))
    area(labels[:1000], scores[:1000])  # loads what is loaded late
    before = peak_bytes()
    value = float(area(labels, scores))
    print(json.dumps({"bytes": peak_bytes() - before, "area": value}))


def peak_bytes() -> int:
    """The most memory this process held so far (Linux); `getrusage` would count its parent's too."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def child(folder: str, method: str) -> dict[str, float]:
    words = [sys.executable, __file__, "--measure", folder, method]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--samples", type=int, default=5_000_000)
    parser.add_argument("--ours", action="store_true", help="leave scikit-learn out")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure)
        return
    methods = ("ours",) if options.ours else ("scikit-learn", "ours")
    print(measuring.header())
    for kind in KINDS:
        scores, labels = make(kind, options.samples)
        with tempfile.TemporaryDirectory() as folder:
            for name, array in (("scores", scores), ("labels", labels)):
                np.save(pathlib.Path(folder, name), array)
            found = {method: child(folder, method) for method in methods}
        sides = {method: partial(area_of(method), labels, scores) for method in methods}
        spent = measuring.in_turns(sides, options.rounds, 0, settle=False)
        print(f"{kind}, {options.samples:,} scores:")
        measuring.report(spent, methods[0], "a score", options.samples)
        for method, one in found.items():
            print(
                f"  {method:13} {one['bytes'] / options.samples:.1f} bytes a score, area {one['area']:.12f}"
            )


if __name__ == "__main__":
    main()
