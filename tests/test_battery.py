"""The battery's short half, over every benchmark: registering one in `benchmarks` is all it takes to be in it.

Its other half, which trains to the target, is test_battery_whole.py.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Callable

import battery
import make_golden
import numpy as np
import pytest

from mlperf_jax import benchmarks
from mlperf_jax.core import evaluation, feed, preflight, state
from mlperf_jax.core import mesh as meshes
from mlperf_jax.results import keys, rules, runs
from mlperf_jax.results.closed import required_keys

# keys that the run itself writes, around the benchmark's own
RUN_KEYS = """submission_benchmark submission_division submission_org submission_platform
submission_status cache_clear init_start init_stop run_start run_stop block_start block_stop eval_start
eval_stop eval_accuracy eval_error seed weights_initialization""".split()
RUN_KEYS += list(keys.Disclosure("float32", "float32", "float32", 1, "config.json").values())

pytestmark = pytest.mark.parametrize("name", benchmarks.names())
FewSteps = Callable[[str], pathlib.Path]


# -- without training ------------------------------------------------------------------------------


def test_configuration_is_valid_json_and_small(name: str) -> None:
    for benchmark in (benchmarks.get(name), benchmarks.get(name, tiny=True)):
        assert len(dataclasses.fields(benchmark)) <= 40
        assert json.loads(json.dumps(benchmark.config()))["benchmark"] == name
    assert benchmarks.get(name, tiny=True).size == "tiny"
    assert benchmarks.get(name).size == "full"


def test_official_recipes_pass_the_closed_rules(name: str) -> None:
    cls = benchmarks.benchmark_class(name)
    assert cls.recipes(), "a benchmark states its reference convergence points"
    for size, recipe in cls.recipes().items():
        assert recipe.batch_size == size
        resolved = preflight.resolve_dtype(recipe)
        assert preflight.resolve_division(resolved, benchmarks.RunOptions()) == "closed"


def test_log_has_every_required_key(name: str) -> None:
    benchmark = benchmarks.get(name)
    logged = preflight.full_log(benchmark)
    wanted = required_keys(name, benchmark.ruleset, log_values=logged)
    assert set(wanted) - set(logged) - set(RUN_KEYS) == set()


def test_evaluation_steps_increase(name: str) -> None:
    for benchmark in (benchmarks.get(name), benchmarks.get(name, tiny=True)):
        steps = list(itertools.islice(benchmark.eval_steps(), 20))
        assert steps[0] >= 1
        assert all(a < b for a, b in itertools.pairwise(steps))


def test_targets_are_those_of_the_rules(name: str) -> None:
    benchmark = benchmarks.get(name)
    official = rules.entry(name).targets(benchmark.ruleset)
    assert {(t.name, t.at_least, t.at_most, t.above) for t in benchmark.targets} == {
        (t.name, t.at_least, t.at_most, t.above) for t in official
    }


def test_a_tiny_target_leaves_values_below_one(name: str) -> None:
    """The checkers of open logs want an evaluation below 1, and a run ends with its first that passes."""
    for target in benchmarks.get(name, tiny=True).targets:
        assert target.at_least is None or target.at_least < 1


def test_parameter_count_tree_and_shardings(name: str) -> None:
    """What each leaf is and where it lives; regenerate with `python tests/make_golden.py`."""
    assembly = make_golden.assembly(name)
    assert assembly.parameters == benchmarks.get(name).parameters
    golden = pathlib.Path(__file__).parent / "golden" / f"{name}.txt"
    assert make_golden.describe(assembly) == golden.read_text()


def test_data_give_what_example_says(name: str, data_dir: str) -> None:
    benchmark = benchmarks.get(name, tiny=True)
    size = benchmark.rows
    train = benchmark.train_data(data_dir).batches(size, rows=(0, size), seed=0, start=0, threads=1)
    size = benchmark.eval_rows
    evaluation = benchmark.eval_data(data_dir).eval_batches(size, rows=(0, size), threads=1)
    one = meshes.make_mesh("data=1")
    for batches, buckets, padded in (
        (train, benchmark.buckets(), False),
        (evaluation, benchmark.eval_buckets(), True),
    ):
        feed.fitting(next(iter(batches)), [feed.Form.of(b, one, padded) for b in buckets])


def test_evaluation_counts_every_sample_once(name: str, data_dir: str) -> None:
    benchmark = benchmarks.get(name, tiny=True)
    size = benchmark.eval_rows
    batches = benchmark.eval_data(data_dir).eval_batches(size, rows=(0, size), threads=2)
    assert sum(int(batch["mask"].sum()) for batch in batches) == benchmark.eval_samples


def test_untrained_model_misses_the_target(name: str, data_dir: str) -> None:
    benchmark = preflight.resolve_dtype(benchmarks.get(name, tiny=True))
    assembly = state.assemble(benchmark, meshes.make_mesh("data=1"))
    size, programs = benchmark.eval_rows, evaluation.compile_predict(assembly)
    evaluator = evaluation.Evaluator(
        assembly,
        lambda: benchmark.eval_data(data_dir).eval_batches(size, rows=(0, size), threads=2),
        battery.SEED,
        programs,
        data_dir,
    )
    quality = evaluator.quality(assembly.create(battery.SEED), 1)
    assert not all(target.met(quality) for target in benchmark.targets), quality


# -- three steps in float64 ------------------------------------------------------------------------


def test_same_weights_on_one_and_eight_devices(name: str, few_steps: FewSteps) -> None:
    """All shards of a batch, and of parameters too, give what one device gives."""
    folder = few_steps(name)
    one, eight = (battery.weights(folder / f"{mesh}.npz") for mesh in ("one", "eight"))
    assert all(leaf.dtype != np.float32 for leaf in one.values())
    assert battery.distance(eight, one) < 1e-12
    lines = [runs.Scalars.read(folder / m / "run_0" / "scalars.jsonl") for m in ("one", "eight")]
    assert [line["step"] for line in lines[0]] == list(range(1, battery.STEPS + 1))
    for first, second in zip(*lines, strict=True):
        assert first.keys() == second.keys()
        for key, value in first.items():
            np.testing.assert_allclose(second[key], value, rtol=1e-12, err_msg=key)


def test_killed_while_saving_and_resumed_ends_equal(name: str, few_steps: FewSteps) -> None:
    folder = few_steps(name)
    one, resumed = (battery.weights(folder / f"{end}.npz") for end in ("one", "resumed"))
    assert one.keys() == resumed.keys()
    for path in one:
        np.testing.assert_array_equal(resumed[path], one[path], err_msg=path)
    assert any(np.any(leaf != 0) for leaf in one.values())
    battery.assert_log_is_whole(folder / "resumed" / "result_0.txt")
    before, after = (
        runs.Scalars.read(folder / end / "run_0" / "scalars.jsonl") for end in ("one", "resumed")
    )
    assert after == before
