"""What competes: labels, settings that are fixed or searched, and what is refused."""

import dataclasses

import optax
import pytest
import toys

from mlperf_jax import benchmarks
from mlperf_jax.core.comparison.entries import Tunable, entries_of
from mlperf_jax.core.comparison.space import Interval
from mlperf_jax.core.levers import Levers
from mlperf_jax.errors import UserError

RESNET = benchmarks.get("resnet", tiny=True)
FILE = """
import optax
def make(tree, learning_rate=0.1, beta=0.9): return optax.sgd(learning_rate, beta)
def plain(tree): return optax.sgd(1.0)
ready = optax.sgd(1.0)
"""


def entries(*optimizers, tuned=False, benchmark=RESNET):
    return {one.label: one for one in entries_of(benchmark, optimizers, tuned=tuned)}


def test_texts_are_entries_that_say_themselves(tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    mine = f"{tmp_path}/mine.py:make,beta=0.5"
    found = entries("sgd:0.5", "fast=adamw:3e-3,b1=0.95", f"mine={mine}", "recipe")
    assert list(found) == ["sgd:0.5", "fast", "mine", "recipe"]
    assert [one.of(RESNET, {}) for one in found.values()] == [
        (RESNET, "sgd:0.5"),
        (RESNET, "adamw:3e-3,b1=0.95"),
        (RESNET, mine),
        (RESNET, None),
    ]
    assert [one.folder for one in found.values()] == ["sgd_0.5", "fast", "mine", "recipe"]
    assert [one.described({}) for one in found.values()] == [
        "sgd:0.5",
        "adamw:3e-3,b1=0.95",
        mine,
        "recipe",
    ]


def test_levers_stand_behind_a_plus_or_beside_an_object():
    texts = [
        "sgd:0.5",
        "sgd:0.5+ema_decay=0.9+sam=0.05",
        "recipe+size_ramp=24:800",
        "ramp=lion:1e-3+size_ramp=24:800",
    ]
    found = entries(*texts)
    assert list(found) == [*texts[:3], "ramp"]
    assert [one.given for one in found.values()] == ["sgd:0.5", "sgd:0.5", "recipe", "lion:1e-3"]
    (_, plain), (sam, _), (recipe, none), _ = (one.of(RESNET, {}) for one in found.values())
    assert sam == RESNET.replace(levers="ema_decay=0.9+sam=0.05") and plain == "sgd:0.5"
    assert recipe.levers == Levers(size_ramp=((24, 800),)) and none is None
    assert [one.described({}) for one in found.values()] == [
        *texts[:3],
        "lion:1e-3+size_ramp=24:800",
    ]
    assert found[texts[1]].folder == "sgd_0.5+ema_decay=0.9+sam=0.05"
    tx = optax.sgd(0.1)
    pairs = {"plain": tx, "sam": (tx, Levers(sam=0.1)), "both": ("recipe", {"ema_decay": 0.9})}
    plain, sam, both = entries_of(RESNET.replace(levers="label_smoothing=0"), pairs, tuned=False)
    assert [
        str(one.of(RESNET.replace(levers="label_smoothing=0"), {})[0].levers)
        for one in (plain, sam, both)
    ] == [
        "label_smoothing=0",
        "label_smoothing=0+sam=0.1",
        "ema_decay=0.9+label_smoothing=0",
    ]
    assert both.described({}) == "both+ema_decay=0.9"
    for wrong, sentence in (
        ("sgd:0.5+smooth=0.1", r"sgd:0\.5\+smooth=0\.1: no lever 'smooth'"),
        ("recipe+SAM=0.1", "no lever 'SAM'"),
        ("recipe+", "ends in a plus"),
        ("recipe+ema", "'ema' is no lever: write NAME=VALUE"),
        ("a/b=sgd:0.5", "'a/b' is no label: write letters, digits"),
        ("=sgd:0.5", "'' is no label"),
    ):
        with pytest.raises(UserError, match=sentence):
            entries("recipe", wrong)
    for pair, sentence in (
        ((Levers(sam=0.1), "recipe"), "b: of a pair the optimizer is first"),
        (("recipe", [1]), r"b: levers must be NAME=VALUE joined"),
    ):
        with pytest.raises(UserError, match=sentence):
            entries_of(RESNET, {"a": "recipe", "b": pair}, tuned=False)
    joined = {"a": "recipe", "b": ("recipe+sam=0.1", {"ema_decay": 0.5}), "c": ("recipe", None)}
    assert [one.described({}) for one in entries_of(RESNET, joined, tuned=False)] == [
        "a",
        "b+ema_decay=0.5+sam=0.1",
        "c",
    ]
    spaced = entries("recipe", "sgd:0.5 + sam=0.1")["sgd:0.5 + sam=0.1"]
    assert spaced.given == "sgd:0.5" and spaced.levers == Levers(sam=0.1)
    (searched,) = (
        entries("recipe", "sgd:0.1..1+sam=0.1", tuned=True)[k] for k in ("sgd:0.1..1+sam=0.1",)
    )
    assert searched.space == {"learning_rate": Interval.of("learning_rate", "0.1..1")}
    assert searched.described({"learning_rate": 0.5}) == "sgd:0.5+sam=0.1"


def test_the_own_optimizer_may_be_called_by_its_name():
    found = entries("lars", "own=recipe", "tuned=recipe:base_lr=3,lr_epochs=20", "lars:0.1")
    assert found["lars"].of(RESNET, {}) == found["own"].of(RESNET, {}) == (RESNET, None)
    other = RESNET.replace(base_lr=3.0, lr_epochs=20)
    assert found["tuned"].of(RESNET, {}) == (other, None)
    assert found["tuned"].described({}) == "tuned (base_lr=3,lr_epochs=20)"
    assert found["lars:0.1"].of(RESNET, {}) == (RESNET, "lars:0.1"), "optax's own"


def test_a_recipe_that_says_nothing_of_its_optimizer_is_looked_at():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Smoothed(toys.Plain):
        smoothing: float = 0.0

        def loss(self, model, batch, key):
            return super().loss(model, batch, key) * (1 - self.smoothing)

    toy = Smoothed(dtype="float32")
    found = entries("recipe:rate=0.5", "sgd:1", benchmark=toy)
    assert found["recipe:rate=0.5"].of(toy, {})[0] == toy.replace(rate=0.5)
    with pytest.raises(UserError, match="smoothing is no setting of the optimizer"):
        entries("recipe:smoothing=0.5", "sgd:1", benchmark=toy)


def test_objects_and_functions_have_labels():
    tx = optax.sgd(0.1)

    def mine(tree):
        return tx

    found = entries_of(RESNET, {"a": tx, "b": mine, "c": "sgd:1"}, tuned=False)
    assert [one.of(RESNET, {})[1] for one in found] == [tx, mine, "sgd:1"]
    assert [one.label for one in entries_of(RESNET, [mine, "sgd:1"], tuned=False)] == [
        "mine",
        "sgd:1",
    ]
    for nameless in (tx, lambda tree: tx):
        with pytest.raises(UserError, match="has no name: give the optimizers by label"):
            entries_of(RESNET, [nameless, "sgd:1"], tuned=False)


def test_ranges_are_searched_and_the_rest_is_fixed(tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    texts = ("adamw:1e-4..1e-1,b1=0.8..0.99,b2=0.99", f"mine={tmp_path}/mine.py:make,beta=0.1..0.9")
    found = entries(*texts, "own=recipe:base_lr=1..20,lr_epochs=10..30", tuned=True)
    adamw, mine, own = found.values()
    assert adamw.space == {"learning_rate": Interval(1e-4, 0.1), "b1": Interval(0.8, 0.99)}
    setting = {"learning_rate": 0.01, "b1": 0.9}
    assert adamw.of(RESNET, setting) == (RESNET, "adamw:0.01,b2=0.99,b1=0.9")
    assert mine.of(RESNET, {"beta": 0.25})[1] == f"{tmp_path}/mine.py:make,beta=0.25"
    assert own.space == {"base_lr": Interval(1, 20), "lr_epochs": Interval(10, 30, whole=True)}
    assert own.of(RESNET, {"base_lr": 2.5, "lr_epochs": 12})[0] == RESNET.replace(
        base_lr=2.5, lr_epochs=12
    )


def test_without_a_range_the_learning_rate_is_searched_a_decade_around(tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    given = (
        "sgd:0.5",
        f"mine={tmp_path}/mine.py:make",
        "recipe",
        f"set={tmp_path}/mine.py:make,learning_rate=1",
    )
    found = entries(*given, tuned=True)
    assert [one.space for one in found.values()] == [
        {"learning_rate": Interval(0.05, 5.0)},
        {"learning_rate": Interval(0.01, 1.0)},
        {"base_lr": Interval(0.25, 25.0)},
        {"learning_rate": Interval(0.1, 10.0)},
    ]
    assert found["sgd:0.5"].of(RESNET, {"learning_rate": 0.25})[1] == "sgd:0.25"
    assert (
        found["set"]
        .of(RESNET, {"learning_rate": 2.0})[1]
        .endswith("mine.py:make,learning_rate=2.0")
    )


def test_functions_of_settings_are_called_with_them():
    made = []

    def make(tree, rate, beta):
        made.append((tree, rate, beta))

    tunable = Tunable(make, {"rate": (1e-3, 1.0), "beta": 0.5})
    first, _ = entries_of(RESNET, {"mine": tunable, "sgd": "sgd:1"}, tuned=True)
    assert first.space == {"rate": Interval(1e-3, 1.0)}
    first.of(RESNET, {"rate": 0.25})[1]("tree")
    assert made == [("tree", 0.25, 0.5)]
    assert first.described({"rate": 0.25}) == "mine (beta=0.5,rate=0.25)"


@pytest.mark.parametrize(
    ("optimizers", "tuned", "sentence"),
    [
        (["sgd:0.5"], False, "needs two optimizers or more"),
        (["sgd:0.5", "sgd:0.5"], False, "'sgd:0.5' is there twice: leave one out"),
        (["a=sgd:0.5", "A=sgd:0.1"], False, "'A' is there twice"),
        (
            ["sgd:0.5..5", "recipe"],
            False,
            r"sgd:0.5..5 has a range for learning_rate \(0.5..5\) and nothing is",
        ),
        (
            ["{mine}:plain", "recipe"],
            True,
            "mine.py:plain has nothing to search.*learning_rate=1e-4",
        ),
        (["{mine}:ready", "recipe"], True, "mine.py:ready has nothing to search"),
        (
            ["sgd:0.5", "recipe:batch_size=128"],
            False,
            "recipe:batch_size=128: batch_size is no setting of the opt",
        ),
        (
            ["sgd:0.5", "recipe:label_smoothing=0.2"],
            False,
            "label_smoothing is no setting of the optimizer of resnet",
        ),
        (["sgd:0.5", "recipe:widht=3"], False, "resnet has no field widht"),
        (
            ["sgd:0.5", "recipe:fast"],
            False,
            "'fast' is no setting of the recipe: write recipe:FIELD=VALUE",
        ),
        (["sgd:0.5", ""], False, "names no optimizer"),
    ],
)
def test_what_cannot_be_compared_is_refused(optimizers, tuned, sentence, tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    given = [text.format(mine=tmp_path / "mine.py") for text in optimizers]
    with pytest.raises(UserError, match=sentence):
        entries(*given, tuned=tuned)
