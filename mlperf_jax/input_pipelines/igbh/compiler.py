"""numba, which compiles the loops of IGBH: an extra, so imported where edges are built or sampled and not before."""

from __future__ import annotations

from typing import Any

from mlperf_jax.errors import optional


def numba() -> Any:
    """The module.

    Raises:
        UserError: it is not installed; says how to.
    """
    return optional("numba", "graphs", "sampling a graph")
