"""Of any value at all, the check of a field gives plain data that its rule allows, or one sentence."""

import json
import math
from typing import Annotated, Literal

import pytest
from hypothesis import given, strategies as st

from mlperf_jax.core import fields
from mlperf_jax.core.fields import (
    Count,
    Fraction,
    Path,
    Positive,
    Range,
    Rate,
    Several,
    Share,
    Whole,
)
from mlperf_jax.errors import UserError

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.complex_numbers(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)
near = st.sampled_from([-1, 0, 1, 2, 0.0, 0.5, 1.0, math.nan, math.inf, "x", "", [1], [0], (1, 2)])


def whole(value, least):
    return type(value) is int and value >= least


def number(value, allows):
    return type(value) is float and math.isfinite(value) and allows(value)


# rule -> what it allows, said independently of it
RULES = {
    "whole": (Whole, lambda v: whole(v, 0)),
    "count": (Count, lambda v: whole(v, 1)),
    "rate": (Rate, lambda v: number(v, lambda x: x >= 0)),
    "positive": (Positive, lambda v: number(v, lambda x: x > 0)),
    "share": (Share, lambda v: number(v, lambda x: 0 <= x <= 1)),
    "fraction": (Fraction, lambda v: number(v, lambda x: 0 <= x < 1)),
    "seed": (Annotated[int, Range(0, 9)], lambda v: whole(v, 0) and v <= 9),
    "counts": (Several[Count], lambda v: type(v) is tuple and v and all(whole(x, 1) for x in v)),
    "pair": (
        tuple[Whole, Whole],
        lambda v: type(v) is tuple and len(v) == 2 and all(whole(x, 0) for x in v),
    ),
    "choice": (Literal["a", 1], lambda v: v == "a" or (type(v) is int and v == 1)),
    "text": (str, lambda v: type(v) is str and v.strip()),
    "path": (Path, lambda v: type(v) is str and v.strip() and "\0" not in v),
    "switch": (bool, lambda v: type(v) is bool),
    "perhaps": (Count | None, lambda v: v is None or whole(v, 1)),
}


@pytest.mark.parametrize("rule", RULES)
@given(value=anything | near)
def test_what_passes_is_allowed_and_plain(rule, value):
    hint, allows = RULES[rule]
    try:
        found = fields.check("field", value, hint)
    except UserError as error:
        said = str(error)
        assert said.startswith(f"field must be {fields.allowed(hint)}, not ")
        assert said.count("\n") == 0 and len(said) < 300
        return
    assert allows(found), f"{value!r} became {found!r}"
    assert fields.check("field", found, hint) == found
    again = json.loads(json.dumps(found))
    assert fields.check("field", again, hint) == found


@given(value=anything)
def test_what_is_allowed_passes(value):
    """The other way round: what an independent reading allows is not refused."""
    for hint, allows in RULES.values():
        if hint is not Path and allows(value):
            assert fields.check("field", value, hint) == value
