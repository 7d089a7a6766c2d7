"""What holds of every benchmark: each check raises an AssertionError of one sentence where it does not."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np

from mlperf_jax import benchmarks
from mlperf_jax.core import evaluation, feed, mesh as meshes, preflight, state
from mlperf_jax.core.benchmark import Absence, Benchmark
from mlperf_jax.errors import UserError
from mlperf_jax.results import log as logs, rules
from mlperf_jax.results.runs import Scalars
from mlperf_jax.testing import runs

MOST_FIELDS = 40


def must(holds: bool, sentence: str) -> None:
    """Nothing, if it holds; pytest or not, and whatever `python -O` leaves out.

    Raises:
        AssertionError: the sentence.
    """
    if not holds:
        raise AssertionError(sentence)


# -- without training ------------------------------------------------------------------------------


def configuration_is_plain(benchmark: Benchmark) -> None:
    """At most 40 fields, which JSON keeps."""
    count = len(dataclasses.fields(benchmark))
    must(count <= MOST_FIELDS, f"{benchmark.name} has {count} fields, {MOST_FIELDS} are allowed")
    try:
        again = benchmarks.from_config(json.loads(json.dumps(benchmark.config(), default=str)))
    except UserError as error:
        raise AssertionError(f"JSON does not keep the configuration: {error}") from error
    for field in dataclasses.fields(benchmark):
        was, now = getattr(benchmark, field.name), getattr(again, field.name)
        must(
            was == now,
            f"{field.name} is {was!r} and comes back from JSON as {now!r}: use plain values",
        )


def evaluation_steps_increase(benchmark: Benchmark) -> None:
    """The first twenty, beginning with 1 at the earliest."""
    steps = list(itertools.islice(benchmark.eval_steps(), 20))
    rises = all(a < b for a, b in itertools.pairwise([0, *steps]))
    must(
        rises and len(steps) == 20,
        f"eval_steps() must increase from 1 without end, and begins {steps}",
    )


def absences_are_stated(cls: type[Benchmark]) -> None:
    """What is not there is said to be absent, and what is absent is not there.

    A benchmark of no official name has neither recipes nor a ruleset by nature, nor need it have pictures.
    """
    known = get_args(Absence)
    must(set(cls.absent) <= set(known), f"absent is {cls.absent}; it may name {', '.join(known)}")
    official = rules.resolve(cls.name, cls.ruleset) if cls.ruleset else None
    has = {
        "recipes": bool(cls.recipes()),
        "ruleset": bool(official) and rules.checker(official.suite, official.ruleset) is not None,
        "pictures": cls.picture is not Benchmark.picture,
        "training files": cls.generate is None,
    }
    excused = set() if cls.ruleset else {"recipes", "ruleset", "pictures"}
    for what, there in has.items():
        must(
            there or what in {*cls.absent, *excused},
            f"{cls.name} has no {what} and does not say so: give what is missing, or name it in absent",
        )
        must(not there or what not in cls.absent, f"{cls.name} names {what} in absent, and has it")


def data_give_what_example_says(benchmark: Benchmark, data_dir: str) -> None:
    """The first batch of evaluation, and of training where it has files: names, shapes and dtypes."""
    data, one, size = benchmark.data(), meshes.make_mesh("data=1"), benchmark.eval_rows
    tested = data.validation(data_dir).batched(size)[0]
    splits = [("evaluation", tested, benchmark.eval_buckets())]
    if benchmark.generate is None:
        train = data.train(data_dir).batched(benchmark.rows)[0]
        splits.append(("training", train, benchmark.buckets()))
    for split, batch, buckets in splits:
        forms = [feed.Form.of(bucket, one, split == "evaluation") for bucket in buckets]
        try:
            feed.fitting(batch, forms)
        except UserError as error:
            raise AssertionError(f"in {split}, {error}") from error


def evaluation_counts_every_sample_once(benchmark: Benchmark, data_dir: str) -> None:
    """The masks of an evaluation's batches leave as many rows as there are samples."""
    size = benchmark.eval_rows
    batches = benchmark.data().validation(data_dir).batched(size).stream(threads=2)
    counted, wanted = sum(map(benchmark.samples_in, batches)), benchmark.eval_samples
    must(counted == wanted, f"an evaluation sees {counted:,} samples, eval_samples says {wanted:,}")


def untrained_model_misses_the_target(benchmark: Benchmark, data_dir: str) -> None:
    """A target that random weights meet says nothing."""
    benchmark = preflight.resolve_dtype(benchmark)
    assembly = state.assemble(benchmark, meshes.make_mesh("data=1"))
    evaluator = evaluation.Evaluator(assembly, runs.SEED, data_dir, threads=2)
    untrained = assembly.with_data(assembly.create(runs.SEED), data_dir)
    quality = evaluator.quality(untrained, 1)
    met = benchmark.meets_targets(quality)
    must(not met, f"an untrained model meets the target already: {quality}")


# -- three steps in float64, as `runs.few_steps` leaves them ---------------------------------------


def same_weights_on_one_and_eight_devices(folder: pathlib.Path) -> None:
    """All shards of a batch, and of parameters too, give what one device gives, to 1e-12."""
    one, eight = (runs.weights(folder / f"{mesh}.npz") for mesh in ("one", "eight"))
    single = [path for path, leaf in one.items() if leaf.dtype == np.float32]
    must(
        not single,
        f"{', '.join(single)} is float32 in a run of float64: give its layer dtype and param_dtype",
    )
    off = runs.distance(eight, one)
    must(
        off < 1e-12,
        f"after {runs.STEPS} steps in float64 the weights of eight devices are {off:.1e} from those of one, "
        "relative L2: something depends on how the rows are split, or is computed in float32",
    )
    lines = [_scalars(folder / mesh) for mesh in ("one", "eight")]
    steps = [line["step"] for line in lines[0]]
    must(steps == list(range(1, runs.STEPS + 1)), f"{runs.STEPS} steps logged scalars of {steps}")
    for first, second in zip(*lines, strict=True):
        for key in first.keys() | second.keys():
            a, b = (line.get(key, np.nan) for line in (first, second))
            same = np.isclose(b, a, rtol=1e-12, atol=0, equal_nan=key in first and key in second)
            must(
                bool(same),
                f"{key} after step {first['step']} is {b} on eight devices and {a} on one",
            )


def killed_and_resumed_ends_equal(folder: pathlib.Path, *, stopped: bool = True) -> None:
    """Killed while it wrote a checkpoint and resumed, a run ends with the same bits and scalars; as `log_is_whole`."""
    one, resumed = (runs.weights(folder / f"{end}.npz") for end in ("one", "resumed"))
    for path in one.keys() | resumed.keys():
        both = path in one and path in resumed
        same = both and np.array_equal(one[path], resumed[path], equal_nan=True)
        must(same, f"{path} is another after the run was killed and resumed")
    must(any(np.any(leaf != 0) for leaf in one.values()), "all weights are zero")
    log_is_whole(folder / "resumed" / "result_0.txt", stopped=stopped)
    same = _scalars(folder / "one") == _scalars(folder / "resumed")
    must(same, "the scalars of a killed and resumed run are others")


def log_is_whole(path: pathlib.Path, *, stopped: bool = True) -> None:
    """Nothing that belongs there once is there twice, and no evaluation; `stopped` unless it waits to be scored."""
    lines = logs.read(path)
    keys = [line.key for line in lines]
    for key in "init_start init_stop run_start run_stop seed submission_benchmark".split():
        wanted = int(stopped or key != "run_stop")
        must(keys.count(key) == wanted, f"{path.name} has {keys.count(key)} lines {key}")
    evaluated = [
        (line.metadata["samples_count"], line.metadata.get("metric"))
        for line in lines
        if line.key == "eval_accuracy"
    ]
    samples = [count for count, _ in evaluated]
    once = samples == sorted(samples) and len({*evaluated}) == len(evaluated)
    must(once, f"an evaluation was logged twice: after {samples} samples")


def _scalars(output: pathlib.Path) -> list[dict[str, Any]]:
    return Scalars.read(output / "run_0" / "scalars.jsonl")


# -- whole runs ------------------------------------------------------------------------------------


def reaches_its_target(result: Mapping[str, Any]) -> None:
    """Of the result of a tiny run, as a dictionary."""
    must(
        result["reached"],
        f"the tiny run ended at {result['quality']} after {result['samples']:,} samples, without its target",
    )


def two_runs_end_equal(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """Two runs with the same seed: the same quality, and the same bits."""
    for what in ("samples", "quality", "parameters_sha256"):
        was, now = first[what], second[what]
        must(was == now, f"two runs with the same seed end with {what} {was} and {now}")
