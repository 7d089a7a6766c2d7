"""The weights of schedule-free optimizers within every wrapper, against optax's own function."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from mlperf_jax.errors import UserError
from mlperf_jax.optimizers import flatten_paths, map_with_path, per_layer, schedule_free
from mlperf_jax.optimizers.clipping import clip_by_global_norm

PARAMS = {
    "head": {"bias": jnp.ones(2), "kernel": jnp.arange(6.0).reshape(3, 2)},
    "layers": {"kernel": jnp.linspace(-1.0, 1.0, 12).reshape(3, 2, 2)},
}


def part(rate=0.3):
    return contrib.schedule_free_sgd(rate, b1=0.8)


def injected(learning_rate):
    return contrib.schedule_free_sgd(learning_rate, b1=0.8)


def trained(tx, params=PARAMS, steps=5):
    """The optimizer's state and the weights after some steps."""
    tx = optax.with_extra_args_support(tx)
    opt, update = tx.init(params), jax.jit(tx.update)
    for step in range(steps):
        grads = jax.tree.map(lambda p, s=step: jnp.cos(2 * p + s), params)
        updates, opt = update(grads, opt, params)
        params = optax.apply_updates(params, updates)
    return opt, params


def evaluated(opt, params):
    found = schedule_free.evaluated(opt, params)
    assert found is not None
    return found(opt, params)


WRAPPERS = {
    "bare": (part, lambda opt: opt),
    "adamw": (lambda: contrib.schedule_free_adamw(0.1, b1=0.95), lambda opt: opt),
    "chain": (lambda: optax.chain(clip_by_global_norm(0.5), part()), lambda opt: opt[1]),
    "named": (
        lambda: optax.named_chain(("z", optax.clip(1.0)), ("a", optax.chain(part()))),
        lambda opt: opt["a"][0],
    ),
    "steps": (lambda: optax.MultiSteps(part(), 2), lambda opt: opt.inner_opt_state),
    "finite": (lambda: optax.apply_if_finite(part(), 3), lambda opt: opt.inner_state),
    "injected": (
        lambda: optax.inject_hyperparams(injected)(optax.linear_schedule(0.3, 0.1, 3)),
        lambda opt: opt.inner_state,
    ),
    "transformed": (
        lambda: optax.conditionally_transform(part(), lambda step: step < 3),
        lambda opt: opt.inner_state,
    ),
    "masked": (
        lambda: optax.conditionally_mask(part(), lambda step: step < 3),
        lambda opt: opt.inner_state,
    ),
    "nested": (
        lambda: optax.chain(optax.clip(1.0), optax.MultiSteps(optax.masked(part(), True), 2)),
        lambda opt: opt[1].inner_opt_state.inner_state,
    ),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_the_weights_are_those_of_optax(name):
    make, inner = WRAPPERS[name]
    opt, params = trained(make())
    wanted = contrib.schedule_free_eval_params(inner(opt), params)
    jax.tree.map(np.testing.assert_array_equal, evaluated(opt, params), wanted)
    assert not np.allclose(wanted["head"]["kernel"], params["head"]["kernel"])


@pytest.mark.parametrize("masked", [False, True])
def test_each_leaf_is_that_of_its_own_part(masked):
    """Kernel and bias of the head have rates of their own; the layers are trained otherwise, or not at all."""
    rates = {"head/kernel": 0.3, "head/bias": 0.1}
    made = {path: part(rate) for path, rate in rates.items()}
    made["layers/kernel"] = optax.sgd(0.1)
    tx = optax.partition(made, lambda tree: map_with_path(lambda path, _: path, tree))
    if masked:  # by a prefix: one node stands for a whole branch
        tx = optax.masked(optax.chain(optax.clip(1.0), tx), {"head": True, "layers": False})
    opt, params = trained(tx)
    found = evaluated(opt, params)
    for path, rate in rates.items():
        name = path.removeprefix("head/")
        alone = {"x": PARAMS["head"][name]}
        wanted = contrib.schedule_free_eval_params(*trained(part(rate), alone))
        np.testing.assert_allclose(found["head"][name], wanted["x"], rtol=1e-6)
        assert not np.allclose(found["head"][name], params["head"][name])
    np.testing.assert_array_equal(found["layers"]["kernel"], params["layers"]["kernel"])


def test_each_layer_is_averaged_by_itself():
    plain, layered = trained(part()), trained(per_layer(optax.MultiSteps(part(), 1)))
    assert layered[0].stacks["layers"].inner_opt_state.b1.shape == (3,)
    wanted = contrib.schedule_free_eval_params(*plain)
    for path, leaf in flatten_paths(evaluated(*layered)).items():
        np.testing.assert_allclose(leaf, flatten_paths(wanted)[path], rtol=1e-6, err_msg=path)


def test_weights_keep_their_dtype_where_z_has_another():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    opt, params = trained(contrib.schedule_free_sgd(0.3, state_dtype=jnp.float32), params, steps=0)
    opt = opt._replace(z=jax.tree.map(lambda leaf: leaf + 1, opt.z))
    found = evaluated(opt, params)
    wanted = contrib.schedule_free_eval_params(opt, params)
    for leaf, exact in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        assert leaf.dtype == jnp.bfloat16 != exact.dtype
        np.testing.assert_array_equal(leaf, exact.astype(jnp.bfloat16))


class Holding(NamedTuple):
    inner: optax.OptState


def holding(tx):
    """A wrapper that optax does not know."""

    def update(grads, state, params=None):
        updates, inner = tx.update(grads, state.inner, params)
        return updates, Holding(inner)

    return optax.GradientTransformation(lambda params: Holding(tx.init(params)), update)


REFUSED = {
    "a later one": (lambda: optax.chain(part(), optax.scale(0.5)), "follows a schedule-free part"),
    "a later one by name": (
        lambda: optax.named_chain(("z", part()), ("a", optax.identity())),
        "at the end of its chain",
    ),
    "a later one outside": (
        lambda: optax.chain(optax.MultiSteps(part(), 2), optax.scale(0.5)),
        "follows a schedule-free part",
    ),
    "flattened": (lambda: optax.flatten(part()), "optax.flatten.*: take that wrapper away"),
    "two": (
        lambda: contrib.schedule_free(optax.chain(optax.clip(1.0), part()), 0.1),
        "one schedule-free part within another",
    ),
    "unknown": (
        lambda: holding(part()),
        r"within Holding.*, or give the optimizer an eval_params\(opt_state, params\)",
    ),
    "sharpness": (
        lambda: contrib.sam(part(), optax.sgd(0.1), opaque_mode=True),
        "within SAMState",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_weights_that_cannot_be_told_are_refused(name):
    make, sentence = REFUSED[name]
    opt = jax.eval_shape(make().init, PARAMS)
    with pytest.raises(UserError, match=sentence):
        schedule_free.evaluated(opt, PARAMS)


def test_other_optimizers_are_evaluated_as_they_train():
    for tx in (optax.adamw(0.1), holding(optax.sgd(0.1)), optax.chain(optax.ema(0.9))):
        assert schedule_free.evaluated(jax.eval_shape(tx.init, PARAMS), PARAMS) is None
