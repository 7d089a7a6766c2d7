"""Labels of sets by their optimizer: where they differ, all of them, and equal names told apart."""

import doctest

import pytest

from mlperf_jax.results import durable, optimizer_labels
from mlperf_jax.results.optimizer_labels import RECIPES, Used, labels


def test_examples():
    assert doctest.testmod(optimizer_labels).failed == 0
    assert doctest.testmod(durable).failed == 0


def test_one_optimizer_needs_no_label():
    assert labels([]) == []
    assert labels([Used("a", "lars"), Used("a", "lars")]) == ["", ""]
    assert labels([Used("a", "muon", "1f"), Used("a", "muon", "1f")]) == ["", ""]


def test_a_log_without_a_name_is_no_difference():
    assert labels([Used("a", "lamb"), Used("a", ""), Used("a", "lamb")]) == ["", "", ""]


def test_names_that_differ_are_the_labels():
    found = labels([Used("a", "muon", "1f"), Used("a", "lion", "2e"), Used("b", "muon", "1f")])
    assert found == ["muon", "lion", ""]


def test_levers_are_told_where_they_differ():
    sam, both = "sam=0.05", "ema_decay=0.9+sam=0.05"
    assert labels([Used("a", "lars", levers=sam), Used("a", "lars", levers=sam)]) == ["", ""]
    assert labels([Used("a", ""), Used("a", "", levers=sam)]) == [RECIPES, f"{RECIPES}+{sam}"]
    found = labels(
        [
            Used("a", "lars"),
            Used("a", "muon", "1f", levers=sam),
            Used("a", "muon", "1f", levers=both),
        ]
    )
    assert found == [f"lars ({RECIPES})", f"muon+{sam}", f"muon+{both}"]


def test_the_recipes_is_named_beside_those_that_replaced_it():
    assert labels([Used("a", "muon", "1f"), Used("a", "lars"), Used("a", "")]) == [
        "muon",
        f"lars ({RECIPES})",
        RECIPES,
    ]
    # of submissions nobody replaced anything, and what a log leaves out is no difference
    assert labels([Used("a", "lamb"), Used("a", "adamw"), Used("a", "")]) == [
        "lamb",
        "adamw",
        "",
    ]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([{}, {}], ["make 1f1f1f1f", "make 2e2e2e2e"]),
        ([{"lr": 1}, {"lr": 2}], ["make, lr 1", "make, lr 2"]),
        ([{"lr": 1, "b": 0}, {"b": 0}], ["make, lr 1", "make, lr none"]),
        ([{"lr": 1}, {"lr": 1}], ["make 1f1f1f1f", "make 2e2e2e2e"]),
        ([dict.fromkeys("abcd", 1), dict.fromkeys("abcd", 2)], ["make 1f1f1f1f", "make 2e2e2e2e"]),
    ],
)
def test_equal_names_are_told_apart_by_settings_or_by_what_is_computed(settings, expected):
    programs = ["1f" * 8, "2e" * 8]
    made = [Used("a", "make", program, own) for program, own in zip(programs, settings)]
    assert labels(made) == expected
    assert labels([*made, made[0]]) == [*expected, expected[0]]
