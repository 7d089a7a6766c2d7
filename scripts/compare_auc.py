"""Exact area under the ROC curve: our time, memory and value beside scikit-learn's.

    python scripts/compare_auc.py                      # 20 M scores, a minute on two cores
    python scripts/compare_auc.py --samples 89137319 --ours    # Criteo's validation set

Both take the same float32 scores and int32 labels. Each measurement runs in a process of its own, one
after another; memory is what the process needed at its peak beyond the arrays it was given. Three kinds
of scores: clicks as rare as Criteo's, as many clicks as others, and scores of three decimals (ties).
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

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


def measure(folder: str, method: str) -> None:
    """Prints {"seconds", "cpu", "bytes", "area"} of one computation on the arrays in a folder."""
    if method == "ours":
        from mlperf_jax.metrics.auc import roc_auc as area
    else:
        from sklearn.metrics import roc_auc_score as area
    scores, labels = (np.load(f"{folder}/{name}.npy") for name in ("scores", "labels"))
    area(labels[:1000], scores[:1000])  # loads what is loaded late
    before = peak_bytes()
    start, cpu = time.perf_counter(), time.process_time()
    value = float(area(labels, scores))
    times = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    print(json.dumps({**times, "bytes": peak_bytes() - before, "area": value}))


def peak_bytes() -> int:
    """The most memory this process held so far (Linux); `getrusage` would count its parent's too."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def child(folder: str, method: str) -> dict[str, float]:
    words = [sys.executable, __file__, "--measure", folder, method]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--samples", type=int, default=20_000_000)
    parser.add_argument("--ours", action="store_true", help="leave scikit-learn out")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure)
        return
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            for name, array in zip(("scores", "labels"), make(kind, options.samples)):
                np.save(pathlib.Path(folder, name), array)
            methods = ("ours",) if options.ours else ("ours", "scikit-learn")
            found = {method: child(folder, method) for method in methods}
        for method, f in found.items():
            print(
                f"{kind:5} {options.samples:,} {method:13}{f['seconds']:7.2f} s "
                f"({f['cpu']:6.2f} s of processors) {f['bytes'] / 2**20:8.0f} MiB   {f['area']:.12f}"
            )
        if not options.ours:
            ours, theirs = found["ours"], found["scikit-learn"]
            print(
                f"      {theirs['seconds'] / ours['seconds']:.1f} times as fast "
                f"({theirs['cpu'] / ours['cpu']:.1f} in processor time), "
                f"{ours['bytes'] / theirs['bytes']:.2f} of the memory, "
                f"apart by {abs(ours['area'] - theirs['area']):.1e}"
            )


if __name__ == "__main__":
    main()
