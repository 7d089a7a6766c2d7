"""What can be known before a run: whether it fits, how long it takes, what it costs.

Example:
    from mlperf_jax.planning import plan
    plan("llama31_8b", on="v6e:4x8")
"""

from mlperf_jax.planning.diagnosis import doctor
from mlperf_jax.planning.planner import plan
from mlperf_jax.planning.report import Plan

__all__ = ["Plan", "doctor", "plan"]
