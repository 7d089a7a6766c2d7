"""Splits of every kind, in memory: rows and runs, counted and planned."""

import dataclasses
import itertools

import grain
import numpy as np

from mlperf_jax.input_pipelines import pipeline
from mlperf_jax.input_pipelines.orders import BatchPlan
from mlperf_jax.input_pipelines.sources import Arrays

N, B = 23, 5  # divisible by nothing, on purpose


class Noisy(grain.transforms.RandomMap):
    """Adds what the generator draws."""

    def random_map(self, element, rng):
        return {"x": element["x"], "noise": rng.random(3)}


@dataclasses.dataclass(frozen=True)
class Stretched(grain.transforms.Map):
    """As many values as the bucket says; the record decides within it nothing but the values."""

    length: int = 1

    def for_bucket(self, bucket):
        return Stretched(2 + bucket)

    def map(self, element):
        return {"x": element["x"], "row": np.full(self.length, element["x"], np.float32)}


@dataclasses.dataclass(frozen=True)
class Windows:
    """A source of whole batches: row r is r, r + 1, … in as many columns as the bucket says."""

    n: int
    columns: int = 3
    seed: int = 0
    rows_at_once: int = 4
    damaged: int = -1

    def for_seed(self, seed):
        return dataclasses.replace(self, seed=seed)

    def for_bucket(self, bucket):
        return dataclasses.replace(self, columns=3 + bucket)

    def __len__(self):
        return self.n

    def begin(self, ids):
        return {"x": np.zeros((len(ids), self.columns), np.int32), "seed": np.zeros(len(ids), int)}

    def read(self, ids, out):
        assert (ids >= 0).all() and len(ids) <= max(self.rows_at_once, B)
        if self.damaged in ids:
            raise ValueError("bad")
        out["x"][...] = ids[:, None] + np.arange(self.columns)
        out["seed"][...] = self.seed

    def describe(self, index):
        return f"window {index}"


def source(n=N):
    return Arrays({"x": np.arange(n)})


def plan_of(seed, epoch):
    """Batches of five rows and of three in turn, of random records, some of them padding."""
    rng = np.random.default_rng([seed, epoch])
    found = []
    for number in range(4 + epoch % 2):
        ids = rng.permutation(N)[: (5, 3)[number % 2]]
        ids[1 + number :] = -1
        found.append((number % 2, ids))
    return found


def all_of(seed, epoch):
    """Every record once: odd ones in threes, even ones in fives."""
    found = []
    for bucket, (rows, start) in enumerate(((5, 0), (3, 1))):
        ids = np.arange(start, N, 2)[::-1]
        for first in range(0, len(ids), rows):
            some = ids[first : first + rows]
            found.append((bucket, np.append(some, [-1] * (rows - len(some)))))
    return found


PLAN = BatchPlan((5, 3), plan_of)
SPLITS = {
    "drop": pipeline.training(source(), Noisy()),
    "keep": pipeline.training(source(), Noisy(), last_batch="keep"),
    "mix": pipeline.training(source(), Noisy(), last_batch="mix"),
    "mix, larger than the data": pipeline.training(source(2), Noisy(), last_batch="mix"),
    "plan": pipeline.training(source(), Stretched(), Noisy(), plan=PLAN),
    "runs": pipeline.training(Windows(N), shuffle=False),
    "runs, shuffled": pipeline.training(Windows(N), last_batch="mix"),
    "runs, planned": pipeline.training(Windows(N), plan=PLAN),
    "evaluation": pipeline.evaluation(source(), Stretched(4)),
    "evaluation, planned": pipeline.evaluation(
        source(), Stretched(), plan=BatchPlan((5, 3), all_of)
    ),
    "evaluation in runs": pipeline.evaluation(Windows(N)),
}


def take(split, count, start=0, *, seed=3, share=None, **how):
    batches = split.batched(B, seed=seed, share=share)
    return list(itertools.islice(batches.stream(start, **({"threads": 2} | how)), count))


def assert_equal(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dtype == b[name].dtype
            np.testing.assert_array_equal(a[name], b[name])


# -- transforms as users write them ----------------------------------------------------------


class Doubled(grain.transforms.Map):
    def map(self, element):
        return element | {"x": element["x"] * 2}


class Many(grain.transforms.Map):
    """The same for many rows at once; they are never padding."""

    batched = True

    def map(self, element):
        assert all(len(rows) == len(element["x"]) for rows in element.values())
        return element | {"x": element["x"] * 2}


class Jittered(grain.transforms.RandomMap):
    def random_map(self, element, rng):
        return element | {"x": element["x"] + rng.integers(1, 1 << 30, dtype=element["x"].dtype)}
