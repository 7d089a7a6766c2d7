"""The battery for a benchmark of your own: that it counts, learns, resumes and spreads as it says.

Example:
    from mlperf_jax.testing import check_benchmark
    from wine import Wine

    def test_wine():
        check_benchmark(Wine)
"""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile

import jax

from mlperf_jax import benchmarks
from mlperf_jax.core import launch, python_file
from mlperf_jax.core.options import RunOptions
from mlperf_jax.errors import UserError
from mlperf_jax.testing import checks, runs

__all__ = ["check_benchmark"]


def check_benchmark(benchmark: type[benchmarks.Benchmark] | str) -> None:
    """Runs the battery: a minute or less for a benchmark whose tiny run takes seconds.

    Its configuration is plain and comes back from JSON, evaluations follow one another, nothing is absent
    that it does not say, its data are what `example` says and are all evaluated once, an untrained model
    misses the target and a trained one reaches it, two equal runs end bit-equal and so does a killed and
    resumed one, and in float64 eight devices train what one does.

    Args:
        benchmark: the class, at the top level of a file; or a name, as `benchmarks.run` takes it.

    Raises:
        AssertionError: the first thing that does not hold, in a sentence.
        UserError: the benchmark cannot be used at all.
    """
    cls = benchmarks.benchmark_class(benchmark)
    name = cls.name if python_file.is_ours(cls) else python_file.place(cls)
    if name is None:
        raise UserError(f"{cls.__qualname__} stands in no file: move it to the top level of one")
    full, tiny = benchmarks.get(cls), benchmarks.get(cls, tiny=True)
    checks.must(tiny.is_tiny, 'tiny() gives no tiny benchmark: write size="tiny" in it')
    checks.absences_are_stated(cls)
    for each in (full, tiny):
        checks.configuration_is_plain(each)
        checks.evaluation_steps_increase(each)
    launch.use_compile_cache()
    cache = str(jax.config.jax_compilation_cache_dir)  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        data = benchmarks.data_folder(tiny, RunOptions(data_dir=f"{folder}/data"))
        checks.data_give_what_example_says(tiny, data)
        checks.evaluation_counts_every_sample_once(tiny, data)
        checks.untrained_model_misses_the_target(tiny, data)
        runs.few_steps(cache, name, data, root)
        checks.same_weights_on_one_and_eight_devices(root)
        checks.killed_and_resumed_ends_equal(root, stopped=tiny.metric.mode != "offline")
        tasks = [{"settings": runs.settings(data, root / end)} for end in ("first", "second")]
        ends = runs.one_after_another(cache, name, tasks)
        first, second = (
            end
            or dataclasses.asdict(benchmarks.evaluate(task["settings"]["output"]))  # scored later
            for end, task in zip(ends, tasks, strict=True)
        )
        checks.reaches_its_target(first)
        checks.two_runs_end_equal(first, second)
