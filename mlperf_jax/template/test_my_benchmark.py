"""The battery: a minute on two cores."""

from my_benchmark import MyBenchmark

from mlperf_jax.testing import check_benchmark


def test_my_benchmark():
    check_benchmark(MyBenchmark)
