"""Which weights an optimizer is evaluated at, where they are others than it trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from mlperf_jax.core.benchmark import Benchmark
from mlperf_jax.core.terms import differences
from mlperf_jax.errors import UserError
from mlperf_jax.optimizers import schedule_free, tree as trees

EvalParams = Callable[[Any, Any], Any]  # (opt, params) -> params


def eval_params(
    benchmark: Benchmark, own: EvalParams | None, opt: Any, params: Any
) -> EvalParams | None:
    """The optimizer's own `eval_params`, else that of its schedule-free parts; None for neither.

    Args:
        benchmark: what is trained.
        own: the attribute of the user's object, if it has one.
        opt, params: shapes.

    Raises:
        UserError: it gives something other than parameters, they cannot be told, or the benchmark
            averages weights too.
    """
    found = own or schedule_free.evaluated(opt, params)
    if found is None:
        return None
    if benchmark.ema is not None:
        raise UserError(
            f"{benchmark.name} averages its weights (ema_decay {benchmark.ema:g}), and so does the "
            "optimizer, where an evaluation takes one of the two: set ema_decay to None"
        )
    given, wanted = (trees.flatten_paths(t) for t in (jax.eval_shape(found, opt, params), params))
    for path, became, was in differences(given, wanted):
        raise UserError(
            f"eval_params must return the parameters with other values: {path} was {was} and became {became}"
        )
    return found
