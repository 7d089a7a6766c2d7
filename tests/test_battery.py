"""The battery's short half, over every benchmark: registering one in `benchmarks` is all it takes to be in it.

Its other half, which trains to the target, is test_battery_long.py.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import make_golden
import pytest

from mlperf_jax import benchmarks
from mlperf_jax.core import preflight
from mlperf_jax.results import keys, rules
from mlperf_jax.testing import checks

# keys that the run itself writes, around the benchmark's own
RUN_KEYS = """submission_benchmark submission_division submission_org submission_platform
submission_status cache_clear init_start init_stop run_start run_stop block_start block_stop eval_start
eval_stop eval_accuracy eval_error seed weights_initialization""".split()
RUN_KEYS += list(keys.Disclosure("float32", "float32", "float32", 1, "config.json").values())

pytestmark = pytest.mark.parametrize("name", benchmarks.names())
FewSteps = Callable[[str], pathlib.Path]


# -- without training ------------------------------------------------------------------------------


def test_configuration_is_plain(name: str) -> None:
    for benchmark in (benchmarks.get(name), benchmarks.get(name, tiny=True)):
        checks.configuration_is_plain(benchmark)
    assert benchmarks.get(name, tiny=True).size == "tiny"
    assert benchmarks.get(name).size == "full"


def test_what_is_absent_is_stated(name: str) -> None:
    checks.absences_are_stated(benchmarks.benchmark_class(name))


def test_official_recipes_pass_the_closed_rules(name: str) -> None:
    cls = benchmarks.benchmark_class(name)
    for size, recipe in cls.recipes().items():
        assert recipe.batch_size == size
        resolved = preflight.resolve_dtype(recipe)
        assert preflight.resolve_division(resolved, benchmarks.RunOptions()) == "closed"


def test_log_has_every_required_key(name: str) -> None:
    benchmark = benchmarks.get(name)
    logged = preflight.full_log(benchmark)
    wanted = keys.required(rules.resolve(name, benchmark.ruleset), logged)
    assert set(wanted) - set(logged) - set(RUN_KEYS) == set()


def test_evaluation_steps_increase(name: str) -> None:
    for benchmark in (benchmarks.get(name), benchmarks.get(name, tiny=True)):
        checks.evaluation_steps_increase(benchmark)


def test_targets_are_those_of_the_rules(name: str) -> None:
    benchmark = benchmarks.get(name)
    official = rules.resolve(name, benchmark.ruleset).targets
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
    checks.data_give_what_example_says(benchmarks.get(name, tiny=True), data_dir)


def test_evaluation_counts_every_sample_once(name: str, data_dir: str) -> None:
    checks.evaluation_counts_every_sample_once(benchmarks.get(name, tiny=True), data_dir)


def test_untrained_model_misses_the_target(name: str, data_dir: str) -> None:
    checks.untrained_model_misses_the_target(benchmarks.get(name, tiny=True), data_dir)


# -- three steps in float64 ------------------------------------------------------------------------


def test_same_weights_on_one_and_eight_devices(name: str, few_steps: FewSteps) -> None:
    checks.same_weights_on_one_and_eight_devices(few_steps(name))


def test_killed_while_saving_and_resumed_ends_equal(name: str, few_steps: FewSteps) -> None:
    stopped = benchmarks.benchmark_class(name).metric.mode != "offline"
    checks.killed_and_resumed_ends_equal(few_steps(name), stopped=stopped)
