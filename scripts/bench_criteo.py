"""Criteo's click logs: what reading costs beside plain copying, and what a linear model makes of tiny's.

    python scripts/bench_criteo.py --cores 1       # half a minute, 1 GB of disk in the temporary folder
    python scripts/bench_criteo.py --regression    # area under the ROC curve of a logistic regression

The first writes random samples of the official bag sizes (214 ids, 912 bytes) as day files and as records,
reads them once so that they lie in the page cache, and then reads batches of 65,536 in turns with a copy of as
many bytes from memory to memory. Samples a second, as planning takes them, are bench_input.py's to say.
The second fits scikit-learn's logistic regression to the tiny data set, once on the one-hot ids and once on
how often each id is in a bag, with the dense features each time: a target must lie well above.
"""

from __future__ import annotations

import itertools
import pathlib
import tempfile
from collections.abc import Iterator

import measuring

# isort: split

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


def stream(log: ClickLog, threads: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Its batches, from the second epoch on: the first brought the files into the page cache."""
    data = pipeline.training(log, shuffle=False)
    batches = data.batched(BATCH).stream(threads=threads)
    for _ in itertools.islice(batches, data.steps_per_epoch(BATCH)):
        pass
    return batches


def bench(samples: int, rounds: int, seconds: float) -> None:
    print(measuring.header())
    with tempfile.TemporaryDirectory() as folder:
        logs = dict(zip(("day files", "records"), write(pathlib.Path(folder), samples)))
        read = {name: stream(log) for name, log in logs.items()}
        source = np.ones((BATCH, 228), np.float32)
        target = np.zeros_like(source)
        sides = {name: lambda batches=batches: next(batches) for name, batches in read.items()}
        spent = measuring.in_turns(
            {"a copy": lambda: np.copyto(target, source), **sides}, rounds, seconds
        )
    print(f"batches of {BATCH:,} samples of 912 bytes:")
    measuring.report(spent, "a copy", "a sample", BATCH, long=True)


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
    parser = measuring.parser(__doc__, rounds=9)
    parser.add_argument("--samples", type=int, default=400_000)
    parser.add_argument("--regression", action="store_true")
    options = parser.parse_args()
    if options.regression:
        regression()
    else:
        bench(options.samples, options.rounds, options.seconds)


if __name__ == "__main__":
    main()
