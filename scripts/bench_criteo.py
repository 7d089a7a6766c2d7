"""Criteo's click logs: samples a second that are read per core, and what a linear model makes of tiny's.

    python scripts/bench_criteo.py                 # half a minute, 1 GB of disk in the temporary folder
    python scripts/bench_criteo.py --regression    # area under the ROC curve of a logistic regression

The first writes random samples of the official bag sizes (214 ids, 912 bytes) as day files and as records,
reads them once so that they lie in the page cache, and then reads batches of 65,536. "per core" is samples
per second of processor time, in all threads, so that other work on the machine disturbs it little.
The second fits scikit-learn's logistic regression to the tiny data set, once on the one-hot ids and once on
how often each id is in a bag, with the dense features each time: a target must lie well above.
"""

from __future__ import annotations

import argparse
import itertools
import pathlib
import tempfile
import time
from collections.abc import Iterator

import numpy as np

from mlperf_jax.input_pipelines import criteo, pipeline
from mlperf_jax.input_pipelines.criteo import files, multi_hot
from mlperf_jax.input_pipelines.criteo.click_log import ClickLog

BATCH = 65_536


def write(folder: pathlib.Path, samples: int) -> tuple[ClickLog, ClickLog]:
    """Random samples in both forms; bags from tables of at most a million rows."""
    rng = np.random.default_rng(0)
    rows = tuple(min(n, 1_000_000) for n in criteo.ROWS)
    labels, dense, sparse = (folder / name for name in files.day_files(0))
    np.save(labels, rng.integers(0, 2, (samples, 1), np.int32))
    np.save(dense, rng.standard_normal((samples, files.DENSE), np.float32))
    ids = np.stack([rng.integers(0, n, samples, np.int32) for n in rows])
    multi_hot.write_npz(sparse, ids, list(multi_hot.bag_matrices(rows, criteo.BAGS)))
    days = ClickLog((files.open_day(str(folder), 0, criteo.BAGS),), criteo.ROWS, criteo.BAGS)
    with open(folder / "train_data.bin", "wb") as file:
        for batch in pipeline.evaluation(days).batched(BATCH):
            label = batch["label"].astype(np.int32)[:, None]
            words = [label, batch["dense"].view(np.int32), batch["ids"]]
            np.concatenate(words, 1)[batch["mask"]].tofile(file)
    part = files.open_records(str(folder / "train_data.bin"), criteo.BAGS)
    return days, ClickLog((part,), criteo.ROWS, criteo.BAGS)


def bench(samples: int, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        logs = dict(zip(("day files", "records"), write(pathlib.Path(folder), samples)))
        for name, log in logs.items():
            for threads in (0, 1, 2):
                data = pipeline.training(log, shuffle=False)
                batches = data.batched(BATCH).stream(threads=threads)
                for _ in itertools.islice(batches, data.steps_per_epoch(BATCH)):
                    pass
                rates = sorted(_rates(batches, seconds))
                cpu, wall = rates[-1]
                middle = rates[len(rates) // 2][0]
                print(
                    f"{name:10} {threads} threads: {cpu / 1e6:6.2f} M samples/s/core at best, "
                    f"{middle / 1e6:.2f} median of {len(rates)} passes, {wall / 1e6:6.2f} M/s of wall time, "
                    f"{912 * cpu / 1e9:.1f} GB/s/core"
                )


def _rates(batches: Iterator, seconds: float, count: int = 4) -> Iterator[tuple[float, float]]:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in itertools.islice(batches, count):
            pass
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        yield count * BATCH / cpu, count * BATCH / wall


def regression() -> None:
    from sklearn.linear_model import LogisticRegression

    from mlperf_jax.metrics.auc import roc_auc

    rows, bags = criteo.TINY_ROWS, criteo.TINY_BAGS
    with tempfile.TemporaryDirectory() as folder:
        data = criteo.Criteo(rows, bags, tiny=True)
        data.build(folder)
        logs = data.train(folder), data.validation(folder)
        train, test = (log.batched(len(log))[0] for log in logs)
    for kind, counted in (("one-hot ids", False), ("ids counted in bags", True)):
        model = LogisticRegression(max_iter=300).fit(_inputs(train, counted), train["label"])
        scores = model.predict_proba(_inputs(test, counted))[:, 1]
        print(f"logistic regression, dense and {kind}: AUC {roc_auc(test['label'], scores):.4f}")


def _inputs(batch: dict[str, np.ndarray], counted: bool) -> np.ndarray:
    found = [batch["dense"]]
    starts = itertools.accumulate(criteo.TINY_BAGS, initial=0)
    for start, rows, size in zip(starts, criteo.TINY_ROWS, criteo.TINY_BAGS):
        columns = range(start, start + (size if counted else 1))
        one_hot = np.eye(rows, dtype=np.float32)
        found.append(np.sum([one_hot[batch["ids"][:, column]] for column in columns], 0))
    return np.concatenate(found, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--samples", type=int, default=500_000)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each measurement")
    parser.add_argument("--regression", action="store_true")
    options = parser.parse_args()
    if options.regression:
        regression()
    else:
        bench(options.samples, options.seconds)


if __name__ == "__main__":
    main()
