"""A batch is a function of its number, whoever reads it, and nobody is left behind."""

import dataclasses
import itertools
import threading

import grain
import numpy as np
import pytest
from pipeline_toys import (
    PLAN,
    SPLITS,
    B,
    N,
    Noisy,
    Stretched,
    Windows,
    all_of,
    assert_equal,
    plan_of,
    source,
    take,
)

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import pipeline
from mlperf_jax.input_pipelines.orders import BatchPlan
from mlperf_jax.input_pipelines.sources import Arrays

both = pytest.mark.parametrize("kind", SPLITS)


# -- a function of its number ------------------------------------------------------------------


@both
def test_batches_do_not_depend_on_threads(kind):
    batches = SPLITS[kind].batched(B, seed=3)
    alone = [batches[k] for k in range(min(12, len(batches)))]
    for threads in (0, 1, 3):
        assert_equal(take(SPLITS[kind], 12, threads=threads), alone)


@both
def test_shares_make_up_the_batch(kind):
    """A share follows the rows of the batch's bucket."""

    def part(index):
        cuts = {5: (0, 2, 4, 5), 3: (0, 1, 2, 3)}
        return lambda rows: (cuts[rows][index], cuts[rows][index + 1])

    parts = [take(SPLITS[kind], 12, share=part(index)) for index in range(3)]
    joined = [{k: np.concatenate([p[k] for p in ps]) for k in ps[0]} for ps in zip(*parts)]
    assert_equal(joined, take(SPLITS[kind], 12))


@both
def test_start_resumes_anywhere(kind):
    assert_equal(take(SPLITS[kind], 5, start=3), take(SPLITS[kind], 8)[3:])


def test_rows_are_datasets_of_grain():
    """What Grain makes of the same steps, batched by Grain."""
    split = pipeline.training(source(), Noisy(), shuffle=False, last_batch="mix")
    own = grain.MapDataset.source(source()).seed(3).repeat().random_map(Noisy())
    batches = split.batched(B, seed=3)
    assert_equal([batches[k] for k in range(9)], list(own[: 9 * B].batch(B)))
    shuffled = SPLITS["mix"].batched(B, seed=3)
    assert isinstance(shuffled.rows[0], grain.MapDataset)
    assert_equal([shuffled[8]], list(shuffled.rows[0][8 * B : 9 * B].batch(B)))


# -- order -------------------------------------------------------------------------------------


def test_drop_takes_distinct_records_and_reshuffles():
    steps = N // B
    batches = take(SPLITS["drop"], 2 * steps)
    epochs = [np.concatenate([b["x"] for b in batches[i : i + steps]]) for i in (0, steps)]
    for epoch in epochs:
        assert len(set(epoch)) == steps * B
    assert not np.array_equal(*epochs)


def test_mix_takes_every_record_once_in_each_epoch():
    rows = np.concatenate([b["x"] for b in take(SPLITS["mix"], 3 * N // B + 1)])
    for epoch in range(3):
        assert sorted(rows[epoch * N : (epoch + 1) * N]) == list(range(N))


def test_keep_pads_the_last_batch_of_every_epoch():
    batches = take(SPLITS["keep"], 10)
    assert [b["mask"].sum() for b in batches] == [5, 5, 5, 5, 3] * 2
    for epoch in (batches[:5], batches[5:]):
        assert sorted(np.concatenate([b["x"][b["mask"]] for b in epoch])) == list(range(N))
    assert not batches[4]["noise"][3:].any()


def test_no_shuffle_keeps_the_order():
    split = pipeline.training(source(), shuffle=False, last_batch="mix")
    assert np.concatenate([b["x"] for b in take(split, 9)]).tolist() == [i % N for i in range(45)]


def test_seeds_and_epochs_draw_differently():
    def draws(seed):
        rows = take(SPLITS["mix"], 2 * N, seed=seed)  # B epochs and more
        return np.concatenate([b["x"] for b in rows]), np.concatenate([b["noise"] for b in rows])

    drawn = [draws(seed) for seed in range(4)]
    noise = np.stack([n for _, n in drawn])
    assert len(np.unique(noise)) == noise.size  # no draw is repeated, in any epoch of any seed
    # Grain's shuffle takes "seed + epoch" for a seed: run s + 1 must not repeat run s an epoch later
    orders = {tuple(x[e * N : (e + 1) * N]) for x, _ in drawn for e in range(B)}
    assert len(orders) == 4 * B


@both
def test_steps_per_epoch(kind):
    wanted = {"drop": 4, "keep": 5, "mix": 4, "mix, larger than the data": 0, "plan": 4}
    wanted |= {"runs": 4, "runs, shuffled": 4, "runs, planned": 4}
    wanted |= dict.fromkeys(("evaluation", "evaluation in runs"), 5) | {"evaluation, planned": 7}
    split = SPLITS[kind]
    assert split.steps_per_epoch(B) == wanted[kind]
    if "evaluation" in kind:
        assert len(split.batched(B)) == len(take(split, 99)) == wanted[kind]
        with pytest.raises(IndexError):
            split.batched(B)[wanted[kind]]
    else:
        assert len(split.batched(B)) > 1 << 60


# -- plans and evaluation ----------------------------------------------------------------------


def test_plan_gives_the_records_the_bucket_and_the_padding():
    batches = take(SPLITS["plan"], 4 + 5)
    for batch, (_bucket, ids) in zip(batches, plan_of(3, 0) + plan_of(3, 1)):
        np.testing.assert_array_equal(batch["mask"], ids >= 0)
        np.testing.assert_array_equal(batch["x"][batch["mask"]], ids[ids >= 0])
        assert batch["noise"].shape == (len(ids), 3) and not batch["noise"][ids < 0].any()


def test_transforms_and_sources_are_told_the_bucket():
    split = pipeline.training(source(), Stretched(), plan=PLAN)
    assert [b["row"].shape for b in take(split, 4)] == [(5, 2), (3, 3), (5, 2), (3, 3)]
    assert [b["x"].shape for b in take(SPLITS["runs, planned"], 2)] == [(5, 3), (3, 4)]


def test_augmentation_of_a_plan_differs_by_row_and_epoch():
    noise = np.concatenate([b["noise"][b["mask"]] for b in take(SPLITS["plan"], 40)])
    assert len(np.unique(noise)) == noise.size


@pytest.mark.parametrize("kind", [k for k in SPLITS if "evaluation" in k])
def test_evaluation_counts_every_record_once(kind):
    batches = take(SPLITS[kind], 99, seed=0)
    seen = np.concatenate([b["x"].reshape(len(b["x"]), -1)[b["mask"], 0] for b in batches])
    assert sorted(seen) == list(range(N))
    assert_equal(take(SPLITS[kind], 99, seed=1) if "runs" not in kind else batches, batches)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batches: batches[1:], r"holds arrays, row 14 0 times, and so 5 of 23"),
        (lambda batches: [*batches, batches[0]], r"row 14 2 times"),
        (lambda batches: [], "no batch"),
        (lambda batches: [(2, batches[0][1])], "bucket 2; there are 2"),
        (lambda batches: [(1, batches[0][1])], r"shape \(5,\); bucket 1 has 3 rows"),
        (lambda batches: [(1, np.array([0, N, 1]))], r"0\.\.23; allowed are 0\.\.22"),
        (lambda batches: [(1, np.array([0, -2, 1]))], r"-2\.\.1"),
        (lambda batches: [(1, np.array([-1, -1, -1]))], "at least one of them"),
    ],
)
def test_plans_that_do_not_fit_are_refused(change, message):
    wrong = BatchPlan((5, 3), lambda seed, epoch: change(all_of(seed, epoch)))
    with pytest.raises(UserError, match=message):
        pipeline.evaluation(source(), Stretched(), plan=wrong).batched(B).ready()


def test_plans_are_made_before_the_first_batch_and_then_by_epoch():
    asked = []

    def plan(seed, epoch):
        asked.append((seed, epoch))
        return plan_of(seed, epoch)

    batches = pipeline.training(source(), plan=BatchPlan((5, 3), plan)).batched(B, seed=8)
    assert asked == []
    batches.ready()
    assert asked == [(8, 0)]
    for number in range(9):
        batches[number]
    assert asked == [(8, 0), (8, 1)]


def test_shapes_may_differ_between_batches_but_not_within():
    @dataclasses.dataclass
    class Ragged(grain.transforms.Map):
        def map(self, element):
            return {"x": np.zeros(1 + element["x"] // 2)}

    def of(*batches):
        plan = BatchPlan((2,), lambda seed, epoch: [(0, np.array(ids)) for ids in batches])
        return pipeline.training(source(4), Ragged(), plan=plan)

    shapes = [b["x"].shape for b in take(of([0, 1], [2, 3]), 3)]
    assert shapes == [(2, 1), (2, 2), (2, 1)]
    batch = of([2, -1]).batched(2, share=lambda rows: (1, 2))[0]  # padding alone, same bucket
    assert (batch["x"].shape, batch["mask"].tolist()) == ((1, 2), [False])
    later = r"row 3: 'x' is float64\[2\], other .* have float64\[1\]"
    first = r"row 0: 'x' is float64\[1\], other .* have float64\[2\]"
    with pytest.raises(UserError, match=later):
        take(of([0, 3]), 1, threads=0)
    with pytest.raises(UserError, match=f"{later}|{first}"):  # whichever thread is faster
        take(of([0, 3]), 1, threads=2)


# -- whom it reads with ------------------------------------------------------------------------


def test_arrays_keep_their_types():
    arrays = {"image": np.zeros((9, 2), np.float16), "label": np.zeros(9, np.int32)}
    batch = pipeline.training(Arrays(arrays)).batched(4)[0]
    assert {k: v.dtype for k, v in batch.items()} == {k: v.dtype for k, v in arrays.items()}


def test_a_source_may_follow_the_seed_and_be_readied():
    made = []

    @dataclasses.dataclass(frozen=True)
    class Ordered(Windows):
        def ready(self):
            made.append(self.seed)

    split = pipeline.training(Ordered(N), shuffle=False)
    split.batched(B, seed=9).ready()
    assert made == [9]
    assert split.batched(B, seed=9)[0]["seed"].tolist() == [9] * B


def threads_of_ours():
    return [t for t in threading.enumerate() if t.name.startswith("grain-prefetch")]


class Reads(grain.transforms.Map):
    """Notes what was read; record 11 is bad, perhaps."""

    def __init__(self, bad=None):
        self.read, self.bad = [], bad

    def map(self, element):
        self.read.append(element["x"])
        if self.bad == element["x"]:
            raise ValueError("bad")
        return element


@pytest.mark.parametrize("how", ["close", "drop", "error"])
def test_threads_end_with_the_iterator(how):
    reads = Reads(bad=11 if how == "error" else None)
    split = pipeline.training(source(1000), reads, shuffle=False, last_batch="mix")
    others = set(threads_of_ours())
    batches = split.batched(8).stream(threads=3)
    next(batches)
    running = set(threads_of_ours()) - others
    assert running
    if how == "close":
        batches.close()
    elif how == "drop":
        del batches
    else:
        with pytest.raises(UserError, match=r"arrays, row 11: bad"):
            list(itertools.islice(batches, 5))
    for thread in running:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_reads_ahead_by_a_bounded_number_of_rows():
    reads = Reads()
    split = pipeline.training(source(100_000), reads, shuffle=False, last_batch="mix")
    batches = split.batched(100).stream(threads=2)
    for _ in range(3):
        next(batches)
    batches.close()
    assert max(reads.read) < 3 * 100 + 100 + 5 * 32


def test_bugs_are_not_blamed_on_the_data():
    class Lacks(grain.transforms.Map):
        def map(self, element):
            return element["y"].nope

    class Bug(grain.transforms.Map):
        def map(self, element):
            return element["x"].nope

    with pytest.raises(UserError, match="row 0"):  # KeyError: the record lacks a field
        pipeline.evaluation(source(), Lacks()).batched(B)[0]
    with pytest.raises(AttributeError) as caught:
        take(pipeline.evaluation(source(), Bug()), 1, threads=1)
    assert "row 0" in "".join(caught.value.__notes__)


def test_a_damaged_row_of_a_run_names_itself():
    split = pipeline.training(Windows(N, damaged=7), shuffle=False)
    with pytest.raises(UserError, match="window 7: bad"):
        take(split, 2)


def test_bad_arguments_are_refused_at_once():
    split = SPLITS["drop"]
    cases = [
        (lambda: split.batched(N + 1), "larger than the 23"),
        (lambda: split.batched(0), "batch_size is 0"),
        (lambda: split.batched(B, share=lambda rows: (3, 9)), "do not lie within"),
        (lambda: split.batched(B, seed=-1), "at least 0"),
        (lambda: split.batched(B).stream(-1), "at least 0"),
        (lambda: pipeline.evaluation(source(0)).batched(B), "empty"),
        (lambda: pipeline.training(source(), last_batch="pad"), "'pad'"),
        (lambda: Arrays({"a": np.zeros(2), "b": np.zeros(3)}), "same number of rows"),
    ]
    for call, message in cases:
        with pytest.raises(UserError, match=message):
            call()
    with pytest.raises(TypeError, match="no transforms"):
        pipeline.training(Windows(N), Stretched())
