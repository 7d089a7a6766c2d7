"""Each kind of constraint, at its bounds."""

import math

import pytest

from mlperf_jax.results.constraints import broken

NAMES = {"batch": 100, "rate": 0.25, "word": "text"}


def holds(value, **constraint):
    return not broken(value, [constraint], NAMES)


@pytest.mark.parametrize(
    ("constraint", "good", "bad"),
    [
        ({}, [1, None, "x", []], []),
        ({"equals": 2}, [2, 2.0], [3, "2", True, None]),
        ({"equals": 1}, [1, 1.0], [True]),
        ({"equals": True}, [True], [1, "True"]),
        ({"equals": [1, 2]}, [[1, 2], (1, 2)], [[1], [2, 1]]),
        ({"one_of": [1, math.inf]}, [1, math.inf], [2, True]),
        ({"unset": True}, [None], [0, ""]),
        ({"above": 0}, [1e-9, 1], [0, -1, math.nan, math.inf, "1", True, None]),
        ({"at_least": "batch / 2"}, [50, 51], [49.9]),
        ({"at_most": 1}, [1, -5], [1.1]),
        ({"integer": True}, [3, 3.0], [3.5, "3"]),
        ({"multiple_of": 0.02}, [0.02, 0.06, 0.1], [0.03]),
        ({"power_of_two_times": 1e-4}, [1e-4, 2.5e-5, 8e-4], [3e-4, 0, -1e-4]),
        ({"formula": "batch * 3"}, [300, 300.0], [300.1]),
        ({"near": "sqrt(rate)"}, [0.5, 0.5 + 5e-10], [0.5 + 2e-9]),
        ({"holds": "value * 2 == batch"}, [50], [51, "50", None, []]),
        ({"length": 2}, [[1, 2], (1, 2)], [[1], "ab", 2]),
        (
            {"item_multiples": {"of": [4, 5]}},
            [[40, 50], [44, 55]],
            [[40, 55], [41, 51], [0, 0], [40]],
        ),
        (
            {"item_multiples": {"of": [35.3, 47.06], "within": 1}},
            [[353, 470]],
            [[353, 460], ["a", 1]],
        ),
        ({"type": "boolean"}, [True, False], [1, 0]),
        ({"type": "whole"}, [3], [3.0, True]),
        ({"type": "text"}, ["x"], ["", " ", 1]),
        ({"above": 0, "integer": True}, [1], [0, 1.5]),
    ],
)
def test_kinds(constraint, good, bad):
    assert [value for value in good if not holds(value, **constraint)] == []
    assert [value for value in bad if holds(value, **constraint)] == []


def test_conditions():
    constraint = {"where": "batch < 16", "equals": 1}
    assert broken(2, [constraint], {"batch": 8}) == [("batch < 16", "1")]
    assert broken(2, [constraint], {"batch": 16}) == []
    assert broken(2, [constraint], {}) == []  # the missing value is a fault of its own
    assert broken(2, [constraint], {"batch": "8"}) == []


def test_a_formula_without_its_values_is_passed_over():
    for constraint in (
        {"formula": "absent + 1"},
        {"holds": "value == absent"},
        {"at_least": "absent"},
    ):
        assert broken(5, [constraint], NAMES) == []
    assert broken(5, [{"formula": "word + 1"}], NAMES) == []
    assert broken(5, [{"formula": "1 / rate0"}], {"rate0": 0}) == []


@pytest.mark.parametrize("batch", [math.nan, math.inf])
def test_multiples_of_what_is_no_number_are_refused(batch):
    constraint = {"item_multiples": {"of": ["96000 / batch", "128000 / batch"], "within": 1}}
    assert len(broken([353, 470], [constraint], {"batch": batch})) == 1


def test_all_constraints_are_said():
    found = broken(-1.5, [{"above": 0, "integer": True}, {"equals": 3}], NAMES)
    assert found == [("", "values above 0"), ("", "whole numbers"), ("", "3")]


def test_unknown_kinds_and_types_are_refused():
    with pytest.raises(ValueError, match="unknown constraint 'abvoe'"):
        broken(1, [{"abvoe": 0}], NAMES)
    with pytest.raises(ValueError, match="unknown type 'txet'"):
        broken(1, [{"type": "txet"}], NAMES)
