"""What a log says of a replaced optimizer: its name, its parts, their settings, never the recipe's."""

import functools
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rehearsal
import toys

from mlperf_jax import benchmarks
from mlperf_jax.core.members import full_log
from mlperf_jax.core.optimizer_argument import SHORT, load_optimizer
from mlperf_jax.core.optimizer_name import name_optimizer
from mlperf_jax.optimizers import clipping, lars, per_layer, schedules, sgd
from mlperf_jax.optimizers.tree import ParamTree
from mlperf_jax.results import compliance, log as logs

HERE = pathlib.Path(__file__).parent
TREE = ParamTree.from_params({"kernel": np.zeros((2, 2), np.float32)})
ADAM = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "eps_root": 0.0, "nesterov": False}


def scale_by_mine(rate, beta=0.5, ceiling=float("inf"), weights=None, one=None):
    def init(params):
        del params
        return ()

    def update(updates, state, params=None):
        del params
        return jax.tree.map(lambda u: u * rate * beta * min(ceiling, 1), updates), (weights, one)

    return optax.GradientTransformation(init, jax.jit(update))


def twice(inner):
    def update(updates, state, params=None):
        updates, state = inner.update(updates, state, params)
        return jax.tree.map(lambda u: 2 * u, updates), state

    return optax.GradientTransformation(inner.init, update)


class Averaging:
    """A transformation that is an object of a class."""

    def __init__(self, period):
        self.period, self._fast = period, optax.adam(0.1)
        self.init = self._fast.init

    def update(self, updates, state, params=None):
        return self._fast.update(updates, state, params)


def named(tx):
    found = name_optimizer(tx, optax.with_extra_args_support(tx))
    assert found is not None
    assert json.loads(json.dumps(found.settings, allow_nan=False)) == found.settings
    return found


# what optax has under two names, or makes from no `learning_rate`
NAMELESS = {
    "optimistic_adam_v2": "scale_by_adam+scale_by_optimistic_gradient+scale_by_learning_rate",
    "polyak_sgd": "identity+scale+scale_by_polyak",
}


@pytest.mark.parametrize("short", SHORT)
def test_a_short_name_is_found_in_what_it_makes_too(short):
    text = f"{short}:3e-3"
    tx = load_optimizer(text)(TREE)
    by_text = name_optimizer(text, tx)
    assert by_text is not None
    assert by_text.name == short
    assert named(tx).name == NAMELESS.get(short, short)
    assert by_text.official["opt_base_learning_rate"] == 3e-3


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("/a/folder/my.py:make", "my.py:make"),
        ("my.py:eval_accuracy", "my.py:eval-accuracy"),  # a word that readers search lines for
        (twice, "twice"),
        (functools.partial(twice, optax.adam(0.1)), "twice"),
        (lambda tree: optax.adam(0.1), "adam"),
        (optax.adam(0.1), "adam"),
    ],
)
def test_a_name_that_the_user_gave_goes_before_that_of_the_parts(given, name):
    found = name_optimizer(given, optax.adam(0.1))
    assert found is not None
    assert found.name == name
    assert found.settings["scale_by_adam"] == ADAM


MASKED = [optax.masked(tx, lambda params: params) for tx in (optax.adam(0.1), optax.sgd(0.2))]


@pytest.mark.parametrize(
    ("tx", "name", "rate"),
    [
        (optax.nadam(0.1), "nadam", 0.1),
        (optax.sgd(0.1, 0.9, nesterov=True), "sgd", 0.1),
        (optax.adamw(0.1, mask=lambda params: params), "adamw", 0.1),
        (optax.adamw(optax.linear_schedule(0.1, 0.2, 9)), "adamw", None),
        (per_layer(optax.lamb(0.1)), "lamb", 0.1),
        (lars(0.1, 1e-4, skip=False), "lars", 0.1),
        (optax.contrib.schedule_free_adamw(0.1), "schedule_free_adamw", 0.1),
        (optax.MultiSteps(optax.adam(0.1), 4), "MultiSteps+adam", 0.1),
        (optax.chain(clipping.clip_by_global_norm(1), optax.lion(0.1)), "clip_by_global_norm+lion", 0.1),
        (optax.named_chain(("a", optax.scale_by_adam()), ("b", optax.scale(-0.1))), "adam", 0.1),
        (optax.inject_hyperparams(optax.adam)(0.1), "inject_hyperparams(adam)", None),
        # what are no makers' parts is itself
        (optax.chain(optax.scale_by_adam(), scale_by_mine(1)), "scale_by_adam+scale_by_mine", None),
        (optax.chain(scale_by_mine(1), optax.scale_by_learning_rate(0.1)), "scale_by_mine+scale_by_learning_rate", 0.1),
        (optax.chain(scale_by_mine(1), optax.scale(-1.0)), "scale_by_mine+scale", None),
        # and of several rates or a wrapper of unknown effect, none is "the" learning rate
        (optax.chain(*MASKED), "masked+scale_by_adam+scale+masked+identity+scale", None),
        (optax.partition({"a": optax.adam(0.1), "b": optax.sgd(0.2)}, lambda params: params),
         "partition+scale_by_adam+scale+identity+scale", None),
        (twice(optax.adam(0.1)), "twice+adam", None),
        (Averaging(5), "Averaging+adam", None),
        (optax.chain(*[optax.adam(0.1)] * 20), "+".join(["scale_by_adam", "scale"] * 8) + "+more", None),
    ],
)  # fmt: skip
def test_an_object_is_named_by_its_parts(tx, name, rate):
    found = named(tx)
    assert found.name == name
    assert found.official.get("opt_base_learning_rate") == rate


def test_settings_are_what_the_functions_hold_and_always_json():
    warm = optax.warmup_cosine_decay_schedule(0.0, 1e-3, 10, 100)
    assert named(optax.chain(optax.clip(0.5), optax.adamw(warm))).settings == {
        "clip": {"max_delta": 0.5},
        "scale_by_adam": ADAM,
        "add_decayed_weights": {"weight_decay": 1e-4},
        "scale_by_learning_rate": {
            "m": -1,
            "learning_rate": {
                "function": "join_schedules",
                "boundaries": [10],
                "schedules": [
                    {"function": "polynomial_schedule", "init_value": 0.0, "end_value": 1e-3, "power": 1,
                     "transition_steps": 10, "transition_begin": 0},
                    {"function": "cosine_decay_schedule", "init_value": 1e-3, "decay_steps": 90,
                     "alpha": 0.0, "exponent": 1.0},
                ],
            },
        },
    }  # fmt: skip
    arrays = {"weights": jnp.ones((2, 3)), "one": jnp.float32(0.25)}
    mine = optax.chain(scale_by_mine(2.0, **arrays), scale_by_mine(3.0))
    assert named(mine).settings == {
        "scale_by_mine": {
            "rate": 2.0, "beta": 0.5, "ceiling": "inf", "weights": {"shape": [2, 3]}, "one": 0.25,
        },
        "scale_by_mine 2": {"rate": 3.0, "beta": 0.5, "ceiling": "inf"},
    }  # fmt: skip
    ours = named(sgd(schedules.poly_decay(2.0, 10, 100, power=2))).settings["sgd"]
    assert ours["learning_rate"]["base_lr"] == 2.0
    assert named(optax.adagrad(0.1)).settings["scale_by_rss"]["initial_accumulator_value"] == 0.1


def test_official_keys_are_of_what_is_known_and_means_the_same():
    assert named(optax.adamw(1e-3, 0.8, weight_decay=0.1)).official == {
        "opt_base_learning_rate": 1e-3,
        "opt_adamw_beta_1": 0.8,
        "opt_adamw_beta_2": 0.999,
        "opt_adamw_epsilon": 1e-8,
        "opt_adamw_weight_decay": 0.1,
    }
    assert named(optax.nadamw(1e-3)).official == {"opt_base_learning_rate": 1e-3}


# -- the log -----------------------------------------------------------------------------------------


def own(name):
    """Keys that speak of the benchmark's own optimizer."""
    return {key for key in full_log(benchmarks.get(name)) if re.search("opt_|lars|warmup", key)}


@pytest.mark.parametrize("name", benchmarks.names())
def test_the_recipes_optimizer_falls_away_but_for_what_still_acts(name):
    benchmark = benchmarks.get(name)
    stated = set(benchmark.optimizer_log())
    clipping_line = {"opt_gradient_clip_norm"} if benchmark.clip_norm else set()
    assert own(name) - clipping_line == stated
    replaced = full_log(benchmark, named(scale_by_mine(1.0)))
    assert replaced == {
        key: value for key, value in full_log(benchmark).items() if key not in stated
    } | {**benchmark.tables_log(), "opt_name": "scale_by_mine"}
    assert bool(benchmark.tables_log()) == any(t.optimizer for t in benchmark.tables().values())


@pytest.mark.parametrize("name", benchmarks.names())
def test_open_rules_find_what_is_listed_and_nothing_else(name, tmp_path):
    """Of an optimizer of optax, and of one that nothing is known of."""
    benchmark = benchmarks.get(name)
    listed = (HERE.parent / "open_findings.txt").read_text().splitlines()
    for word, tx in {"adamw": optax.adamw(1e-4), "unknown": scale_by_mine(1.0)}.items():
        logged = full_log(benchmark, named(tx))
        file = tmp_path / f"{word}.txt"
        rehearsal.write(file, name, benchmark.ruleset, division="open", logged=logged)
        report = compliance.check(file, benchmark.ruleset, "open")
        start = f"replaced {name} {word} "
        found = {start + finding.key for finding in report.findings}
        found -= {start + "eval_accuracy"} if f"{name} eval_accuracy" in listed else set()
        assert found == {line for line in listed if line.startswith(start)}, str(report)


@pytest.mark.parametrize("toy", [toys.Toy(), toys.Toy(clip_norm=1.0)])
def test_the_cores_own_clipping_is_no_part_of_it(toy):
    tx = toys.prepared(toy, optimizer=optax.adamw(1e-3)).tx
    found = name_optimizer(optax.adamw(1e-3), tx, clipped=toy.clip_norm is not None)
    assert found == named(optax.adamw(1e-3))


def test_the_readers_words_are_in_no_setting():
    def scale_by_share(global_batch_size, kind="eval_error"):
        def update(updates, state, params=None):
            return jax.tree.map(lambda u: u / global_batch_size, updates), (state, kind)

        return optax.GradientTransformation(lambda params: (), update)

    text = json.dumps(named(scale_by_share(32)).settings)
    assert "32" in text
    assert not any(word in text for word in logs.RESERVED)
