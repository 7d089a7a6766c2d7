"""The battery for a benchmark of your own: that it counts, learns, resumes and spreads as it says.

from mlperf_jax.testing import check_benchmark
from wine import Wine

def test_wine():
    check_benchmark(Wine)
"""

from mlperf_jax.testing.battery import check_benchmark

__all__ = ["check_benchmark"]
