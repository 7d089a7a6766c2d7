"""ResNet-50's recipes, schedule, evaluation and log, against the rules and the reference points."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlperf_jax import benchmarks
from mlperf_jax.benchmarks.resnet import ResNet50
from mlperf_jax.core import preflight
from mlperf_jax.errors import UserError
from mlperf_jax.optimizers import ParamTree
from mlperf_jax.results import rcp

# what the `opt_*` names of the reference points are called here
FIELDS = {
    "opt_base_learning_rate": "base_lr",
    "opt_learning_rate_warmup_epochs": "warmup_epochs",
    "opt_momentum": "momentum",
    "opt_weight_decay": "weight_decay",
    "model_bn_span": "bn_span",
    "optimizer": "opt_name",
}


def points() -> list[rcp.ReferencePoint]:
    return rcp.points_of("resnet", "4.0.0")


def test_recipes_equal_the_reference_convergence_points() -> None:
    recipes = ResNet50.recipes()
    assert {point.batch_size for point in points()} == set(recipes)
    for point in points():
        recipe = recipes[point.batch_size]
        for key, field in FIELDS.items():
            assert getattr(recipe, field) == point.hyperparameters[key], (point.batch_size, key)


def test_schedule_lengths_follow_the_logged_decay_steps() -> None:
    """The column mixes total length and length after warm-up (facts: resnet50 section 6)."""
    after_warmup = {1632, 8192, 65536, 67840}
    for point in points():
        recipe = ResNet50.recipes()[point.batch_size]
        epochs = (
            point.hyperparameters["opt_learning_rate_decay_steps"] * point.batch_size / 1_281_167
        )
        if point.batch_size in after_warmup:
            epochs += recipe.warmup_epochs
        assert abs(recipe.lr_epochs - epochs) < 0.2, point.batch_size


def test_an_evaluation_falls_on_the_expected_epoch() -> None:
    for point in points():
        recipe = ResNet50.recipes()[point.batch_size]
        epoch = 1_281_167 // point.batch_size
        evaluated = {step / epoch for step in itertools.islice(recipe.eval_steps(), 40)}
        assert any(abs(np.mean(point.lengths) - e) <= 2.01 for e in evaluated), point.batch_size
        assert all((e - recipe.eval_offset) % 4 == 0 for e in evaluated)
        assert recipe.last_sample // (epoch * point.batch_size) >= max(point.lengths) - 1


def test_default_is_the_recipe_of_its_batch_size() -> None:
    assert ResNet50() == ResNet50.recipes()[3264]


def test_batch_size_brings_its_recipe_and_in_between_says_so() -> None:
    assert benchmarks.get("resnet", batch_size=4096) == ResNet50.recipes()[4096]
    between = benchmarks.get("resnet", batch_size=5120)
    assert (between.base_lr, between.warmup_epochs) == (10.0, 5)
    note = benchmarks.recipe_note(between)
    assert note is not None
    assert "4096" in note
    assert benchmarks.recipe_note(ResNet50()) is None
    assert benchmarks.get("resnet", batch_size=4096, base_lr=9.0).base_lr == 9.0


@pytest.mark.parametrize("size", [3264, 4096])
def test_learning_rate(size: int) -> None:
    """TF2: the first rate is 0 and an epoch drops its remainder; MXNet counts from 1 and rounds up."""
    recipe = ResNet50.recipes()[size]
    rate = recipe.learning_rate()
    mxnet = size == 3264
    epoch = -(-1_281_167 // size) if mxnet else 1_281_167 // size
    first = 1 if mxnet else 0
    warm, total = recipe.warmup_epochs * epoch, recipe.lr_epochs * epoch
    np.testing.assert_allclose(rate(0), recipe.base_lr * first / warm, rtol=1e-6)
    np.testing.assert_allclose(rate(warm - first), recipe.base_lr, rtol=1e-6)
    half = (total - warm + 1) // 2
    left = 1 - half / (total - warm + 1)
    wanted = 1e-4 + (recipe.base_lr - 1e-4) * left**2
    np.testing.assert_allclose(rate(warm + half - first), wanted, rtol=1e-4)
    np.testing.assert_allclose(rate(total + 10), 1e-4, rtol=1e-3)


def toy_params() -> dict:
    keys = iter(jax.random.split(jax.random.key(0), 5))
    draw = lambda *shape: jax.random.normal(next(keys), shape)  # noqa: E731
    return {
        "stem": {"conv": {"kernel": draw(3, 3, 2, 4)}, "norm": {"scale": draw(4), "bias": draw(4)}},
        "head": {"kernel": draw(4, 5), "bias": draw(5)},
    }


@pytest.mark.parametrize("convention", ["tf2", "mxnet"])
def test_lars_step_of_the_recipe(convention: str) -> None:
    """Two steps against the equations; batch norm and biases get neither decay nor trust ratio."""
    recipe = ResNet50(convention=convention)
    params = toy_params()
    tx = recipe.optimizer(ParamTree.from_params(params))
    grads = jax.tree.map(lambda p: 0.5 * p + 0.1, params)
    state, rate = tx.init(params), recipe.learning_rate()
    buffers = jax.tree.map(np.zeros_like, params)
    for step in range(3):
        updates, state = tx.update(grads, state, params)

        def wanted(path, gradient, weight, buffer, step=step):
            lr = float(rate(step))
            if path[-1].key == "kernel":
                norm = np.linalg.norm
                trust = 0.001 * norm(weight) / (norm(gradient) + 5e-5 * norm(weight))
                gradient = trust * (gradient + 5e-5 * weight)
            scaled = lr * gradient if convention == "tf2" else gradient
            buffer[...] = 0.9 * buffer + scaled
            return -(buffer if convention == "tf2" else lr * buffer)

        arrays = jax.tree.map(np.array, (grads, params))
        expected = jax.tree_util.tree_map_with_path(wanted, *arrays, buffers)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9), updates, expected
        )


def test_sgd_decays_twice_the_weight_but_no_batch_norm() -> None:
    recipe = ResNet50(opt_name="sgd", base_lr=0.1, warmup_epochs=0, convention="tf2")
    params = toy_params()
    tx = recipe.optimizer(ParamTree.from_params(params))
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    decay = -0.1 * 2 * 5e-5
    np.testing.assert_allclose(
        updates["head"]["kernel"], decay * params["head"]["kernel"], rtol=1e-5
    )
    np.testing.assert_allclose(updates["head"]["bias"], decay * params["head"]["bias"], rtol=1e-5)
    for leaf in updates["stem"]["norm"].values():
        np.testing.assert_array_equal(leaf, 0)


def test_logged_keys_and_values() -> None:
    logged = preflight.full_log(ResNet50())
    assert logged == {
        "global_batch_size": 3264,
        "gradient_accumulation_steps": 1,
        "train_samples": 1_281_167,
        "eval_samples": 50_000,
        "opt_name": "lars",
        "model_bn_span": 204,
        "lars_opt_base_learning_rate": 10.5,
        "lars_opt_end_learning_rate": 1e-4,
        "lars_opt_learning_rate_decay_poly_power": 2,
        "lars_opt_learning_rate_decay_steps": 37 * 393,  # of 392.5 each, rounded up: what runs
        "lars_opt_learning_rate_warmup_epochs": 2,
        "lars_opt_weight_decay": 5e-5,
        "lars_opt_momentum": 0.9,
        "lars_epsilon": 0.0,
    }
    sgd = preflight.full_log(ResNet50(opt_name="sgd", base_lr=1.3, convention="tf2"))
    assert sgd["sgd_opt_base_learning_rate"] == 1.3
    assert sgd["opt_learning_rate_warmup_epochs"] == 2
    assert "lars_epsilon" not in sgd


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"weight_decay": 3e-5}, "weight_decay"),
        ({"momentum": 0.95}, "momentum"),
        ({"label_smoothing": 0.05}, "label_smoothing"),
        ({"eval_every": 2}, "epochs"),
        (
            {"targets": (benchmarks.get("resnet").targets[0].__class__("accuracy", at_least=0.7),)},
            "0.759",
        ),
        ({"opt_name": "sgd", "base_lr": 1.0005, "convention": "tf2"}, "base_learning_rate"),
        ({"train_samples": 1_000_000}, "train_samples"),
        ({"image_size": 192}, "image_size"),
    ],
)
def test_closed_refuses_what_the_rules_do_not_allow(changes: dict, word: str) -> None:
    with pytest.raises(UserError, match=word):
        preflight.resolve_division(ResNet50(**changes), benchmarks.RunOptions(division="closed"))
    assert (
        preflight.resolve_division(ResNet50(**changes), benchmarks.RunOptions(division="open"))
        == "open"
    )


def test_sgd_is_of_one_convention() -> None:
    with pytest.raises(UserError, match="no rule knows: give convention tf2"):
        ResNet50(opt_name="sgd")


def test_batch_must_hold_whole_spans() -> None:
    with pytest.raises(UserError, match="bn_span"):
        ResNet50(batch_size=3265)
    with pytest.raises(UserError, match="bn_span"):
        ResNet50(batch_size=3264, gradient_accumulation_steps=32)


def test_flops() -> None:
    assert ResNet50().flops_per_sample == pytest.approx(24.30e9, rel=1e-3)
