"""A scanned stack equals its layers called one after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mlperf_jax.errors import UserError
from mlperf_jax.ops.norm import BatchNorm
from mlperf_jax.ops.shard import shard
from mlperf_jax.ops.stack import Stack, remat_policy

pytestmark = pytest.mark.usefixtures("x64")

N, B, D = 3, 8, 4


class Layer(nnx.Module):
    """Dense, batch norm, dropout by key, a broadcast and a per-layer argument."""

    def __init__(self, rngs):
        wide = {"dtype": jnp.float64, "param_dtype": jnp.float64}
        self.dense = nnx.Linear(D, D, rngs=rngs, **wide)
        self.norm = BatchNorm(D, dtype=jnp.float64, rngs=rngs)

    def __call__(self, x, gain=1.0, offset=0.0, *, key=None):
        x = shard(x, "data")
        y = jnp.tanh(self.norm(self.dense(x))) * gain + offset
        if key is not None:
            y = y * jax.random.bernoulli(key, 0.5, y.shape)
        return x + y


class NoLayer(nnx.Module):
    """A layer whose call is given."""

    def __init__(self, call):
        self.weight = nnx.Param(jnp.ones(()))
        self.call = call

    def __call__(self, x):
        return self.call(self, x)


def make_x():
    return jax.random.normal(jax.random.key(5), (B, D), jnp.float64)


def stack_params(layers):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)


def unstack_params(stacked):
    return [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(N)]


def by_hand(stack, x, gain=1.0, each=None, key=None):
    """The loop that the scan stands for: (result, stacked statistics)."""
    graphdef, state = nnx.split(stack.layers)
    stats = []
    for i, layer_state in enumerate(unstack_params(state)):
        layer = nnx.merge(graphdef, layer_state)
        keyed = {} if key is None else {"key": jax.random.fold_in(key, i)}
        x = layer(x, gain, *([] if each is None else [each[i]]), **keyed)
        stats.append(nnx.to_pure_dict(nnx.state(layer, nnx.BatchStat)))
    return x, stack_params(stats)


def close(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13), a, b)


@pytest.mark.parametrize("remat", [None, "full", "dots", "dots_no_batch"])
def test_scan_equals_loop_in_value_gradient_and_statistics(remat):
    stack = Stack(Layer, N, remat=remat, rngs=nnx.Rngs(0))
    graphdef, params, stats = nnx.split(stack, nnx.Param, ...)
    each, key = jnp.arange(3.0), jax.random.key(7)

    def scanned(params, x, gain, each):
        stack = nnx.merge(graphdef, params, stats, copy=True)
        y = stack(x, gain, each=(each,), key=key)
        return (y**2).sum(), nnx.to_pure_dict(nnx.state(stack.layers, nnx.BatchStat))

    def looped(params, x, gain, each):
        stack = nnx.merge(graphdef, params, stats, copy=True)
        y, new_stats = by_hand(stack, x, gain, each, key)
        return (y**2).sum(), new_stats

    args = (params, make_x(), jnp.float64(0.7), each)
    results = [
        jax.jit(jax.value_and_grad(f, (0, 1, 2, 3), has_aux=True))(*args) for f in (scanned, looped)
    ]
    close(*results)
    new_mean = results[0][0][1]["norm"]["mean"]
    assert len(np.unique(new_mean[:, 0])) == N  # each layer's own


def test_layers_are_made_as_if_one_by_one():
    rngs = nnx.Rngs(0)
    separate = [
        nnx.to_pure_dict(nnx.state(Layer(nnx.Rngs(key)))) for key in rngs.split(N).params.key[...]
    ]
    stack = Stack(Layer, N, rngs=nnx.Rngs(0))
    made = nnx.to_pure_dict(nnx.state(stack.layers))
    close(made, stack_params(separate))
    kernels = made["dense"]["kernel"]
    assert kernels.shape == (N, D, D)
    assert not np.allclose(kernels[0], kernels[1])


def test_paths_have_one_component_layers_and_one_leading_axis():
    state = nnx.eval_shape(lambda: Stack(Layer, N, rngs=nnx.Rngs(0)))
    shapes = {"/".join(path): v.shape for path, v in nnx.to_flat_state(nnx.state(state))}
    assert shapes == {
        "layers/dense/bias": (N, D),
        "layers/dense/kernel": (N, D, D),
        "layers/norm/bias": (N, D),
        "layers/norm/mean": (N, D),
        "layers/norm/scale": (N, D),
        "layers/norm/var": (N, D),
    }


def test_each_layer_has_its_own_key():
    masks = []

    def drop(layer, x, key):
        return x + jax.random.bernoulli(key, 0.5, x.shape) * 2.0**layer

    class Drop(nnx.Module):
        def __init__(self, rngs):
            pass

        def __call__(self, x, layer, *, key):
            return drop(layer, x, key)

    stack = Stack(Drop, N, rngs=nnx.Rngs(0))
    for seed in (0, 1):
        sums = stack(jnp.zeros(64), each=(jnp.arange(N),), key=jax.random.key(seed)).astype(int)
        masks += [np.asarray(sums >> layer & 1) for layer in range(N)]
    for i, mask in enumerate(masks):  # neither two layers nor two steps share a mask
        assert 0 < mask.sum() < 64
        assert not any((mask == other).all() for other in masks[:i])


def test_evaluation_view_reaches_the_layers():
    stack = Stack(Layer, N, rngs=nnx.Rngs(0))
    stack(make_x())
    before = np.asarray(stack.layers.norm.mean[...])
    view = nnx.view(stack, use_running_average=True, deterministic=True, raise_if_not_found=False)
    row = make_x()[:1]
    close(view(make_x())[:1], view(row))  # rows do not see each other
    np.testing.assert_array_equal(view.layers.norm.mean[...], before)


def test_carry_may_be_a_tree():
    class Pair(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(D, D, rngs=rngs, param_dtype=jnp.float64)

        def __call__(self, carry):
            x, total = carry
            x = self.dense(x)
            return x, total + x.sum()

    x, total = Stack(Pair, 2, rngs=nnx.Rngs(0))((make_x(), jnp.zeros((), jnp.float64)))
    assert x.shape == (B, D)
    assert total != 0


def test_remat_keeps_less():
    def kept_bytes(remat):
        stack = Stack(Layer, 8, remat=remat, rngs=nnx.Rngs(0))
        graphdef, params, stats = nnx.split(stack, nnx.Param, ...)

        def loss(params, x):
            return nnx.merge(graphdef, params, stats, copy=True)(x).sum()

        _, pullback = jax.vjp(loss, params, make_x())
        return sum(leaf.nbytes for leaf in jax.tree.leaves(pullback))

    full, dots, none = (kept_bytes(remat) for remat in ("full", "dots", None))
    assert full < dots < none


def test_carry_keeps_its_sharding():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    stack = Stack(Layer, N, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(stack)
    expected = nnx.merge(graphdef, state, copy=True)(make_x())
    with jax.set_mesh(mesh):
        call = jax.jit(lambda state, x: nnx.merge(graphdef, state, copy=True)(x))
        y = call(state, jax.device_put(make_x(), rows))
    assert y.sharding.is_equivalent_to(rows, 2)
    close(y, expected)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda self, x: x.astype(jnp.float32), r"given float64\[2\] and returned float32\[2\]"),
        (lambda self, x: x[:1], r"given float64\[2\] and returned float64\[1\]"),
        (lambda self, x: (x, x), "returned"),
        (lambda self, x: self.weight.set_value(self.weight[...] + 1) or x, "wrote .*weight"),
    ],
)
def test_what_a_layer_may_not_do(call, sentence):
    stack = Stack(lambda rngs: NoLayer(call), 2, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=f"NoLayer .*{sentence}"):
        stack(jnp.ones(2, jnp.float64))


def test_random_state_is_refused():
    with pytest.raises(TypeError, match="Dropout holds random state"):
        Stack(lambda rngs: nnx.Dropout(0.5, rngs=rngs), 2, rngs=nnx.Rngs(0))


def test_options():
    with pytest.raises(UserError, match=r"unknown policy 'dot'.*full, dots, dots_no_batch"):
        Stack(Layer, 2, remat="dot", rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="0 layers"):
        Stack(Layer, 0, rngs=nnx.Rngs(0))
    own = jax.checkpoint_policies.everything_saveable
    assert remat_policy(own) is own
