"""What a field of a benchmark or of the run's options may hold, checked in one place."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlperf_jax.errors import UserError


def check_whole(field: str, value: Any, *, optional: bool = False, least: int = 1) -> None:
    """Nothing, if the value is an integer of at least `least`.

    Raises:
        UserError: it is not, naming the field.
    """
    if value is None and optional:
        return
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise UserError(f"{field} must be a whole number, not {value!r}")
    if value < least:
        raise UserError(f"{field} must be at least {least}, not {value}")


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """': did you mean …?' with the nearest known name, or the list of them when none is near."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f": did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"
