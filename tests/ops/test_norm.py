"""Batch norm against NumPy, and over meshes; layer norm."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from mlperf_jax.errors import UserError
from mlperf_jax.ops.norm import BatchNorm, layer_norm

COLLECTIVE = re.compile(
    r"\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)


def numpy_twin(x, scale, bias, span, epsilon=1e-5):
    """Slow and plain: (y, mean over groups of the mean, of the unbiased variance)."""
    y, means, variances = np.empty_like(x), [], []
    for first in range(0, len(x), span):
        rows = x[first : first + span]
        values = rows.reshape(-1, x.shape[-1])
        spread = np.sqrt(values.var(0) + epsilon)
        y[first : first + span] = (rows - values.mean(0)) / spread * scale + bias
        means.append(values.mean(0))
        variances.append(values.var(0, ddof=min(1, len(values) - 1)))
    return y, np.mean(means, 0), np.mean(variances, 0)


def randomised(norm):
    norm.scale[...] = 1 + jax.random.normal(jax.random.key(1), norm.scale.shape, norm.scale.dtype)
    norm.bias[...] = jax.random.normal(jax.random.key(2), norm.bias.shape, norm.bias.dtype)
    return norm


@pytest.mark.parametrize(
    ("shape", "span"), [((12, 3, 2, 5), None), ((12, 3, 2, 5), 4), ((12, 5), 12), ((12, 5), 3)]
)
def test_training_equals_numpy(x64, shape, span):
    x = np.random.RandomState(0).standard_normal(shape) * 3 + 2
    norm = randomised(BatchNorm(5, span=span, momentum=0.8, dtype=jnp.float64, rngs=nnx.Rngs(0)))
    y, mean, var = numpy_twin(x, norm.scale[...], norm.bias[...], span or 12)
    np.testing.assert_allclose(norm(jnp.asarray(x)), y, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(norm.mean[...], 0.2 * mean, rtol=1e-12)
    np.testing.assert_allclose(norm.var[...], 0.8 + 0.2 * var, rtol=1e-12)


# five real rows of eight, in groups: dealt evenly, to the first group alone, to three of four
@pytest.mark.parametrize(
    ("span", "real"),
    [
        (4, [0, 1, 2, 4, 5]),
        (4, [0, 1, 2, 3]),
        (2, [0, 2, 3, 4, 5]),
        (8, [0, 1, 2, 3, 4]),
        (4, [0, 4]),
    ],
)
@pytest.mark.parametrize("shape", [(8, 3, 2, 5), (8, 5)])
def test_padding_counts_in_no_statistics(x64, shape, span, real):
    x = np.random.RandomState(0).standard_normal(shape) * 3 + 2
    mask = np.isin(np.arange(8), real)
    norm = randomised(BatchNorm(5, span=span, momentum=0.8, dtype=jnp.float64, rngs=nnx.Rngs(0)))
    groups = [x[first : first + span][mask[first : first + span]] for first in range(0, 8, span)]
    twins = [numpy_twin(g, norm.scale[...], norm.bias[...], len(g)) for g in groups if len(g)]
    x[~mask] = np.nan
    y = np.asarray(norm(jnp.asarray(x), jnp.asarray(mask)))
    np.testing.assert_allclose(
        y[mask], np.concatenate([t[0] for t in twins]), rtol=1e-10, atol=1e-10
    )
    mean, var = (np.mean([t[i] for t in twins], 0) for i in (1, 2))
    np.testing.assert_allclose(norm.mean[...], 0.2 * mean, rtol=1e-12)
    np.testing.assert_allclose(norm.var[...], 0.8 + 0.2 * var, rtol=1e-12)


def test_a_mask_of_whole_groups_changes_nothing(x64):
    x = jax.random.normal(jax.random.key(0), (8, 2, 2, 5), jnp.float64)
    norms = [BatchNorm(5, span=4, dtype=jnp.float64, rngs=nnx.Rngs(0)) for _ in range(2)]
    np.testing.assert_allclose(norms[0](x), norms[1](x, jnp.ones(8, bool)), rtol=1e-13, atol=1e-13)
    for name in ("mean", "var"):
        a, b = (getattr(norm, name)[...] for norm in norms)
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-15)


def test_nothing_but_padding_keeps_the_running_statistics():
    norm = BatchNorm(2, span=2, rngs=nnx.Rngs(0))
    norm.mean[...] = jnp.array([1.0, 2.0])
    assert jnp.isfinite(norm(jnp.ones((4, 2)), jnp.zeros(4, bool))).all()
    assert norm.mean[...].tolist() == [1, 2] and norm.var[...].tolist() == [1, 1]


def test_gradients_of_real_rows_do_not_see_padding(x64):
    mask = jnp.array([True, True, False, True, False, False])
    x = jax.random.normal(jax.random.key(3), (6, 2, 3), jnp.float64)

    def loss(x):
        norm = BatchNorm(3, span=3, dtype=jnp.float64, rngs=nnx.Rngs(0))
        return jnp.where(mask[:, None, None], jnp.sin(norm(x, mask)), 0).sum()

    clean = jax.grad(loss)(x)
    dirty = jax.grad(loss)(jnp.where(mask[:, None, None], x, 1e6))
    np.testing.assert_allclose(clean[mask], dirty[mask], rtol=1e-12)
    assert not clean[~mask].any() and np.abs(clean[mask]).max() > 1e-3


def test_evaluation_uses_and_keeps_the_running_statistics(x64):
    x = np.random.RandomState(0).standard_normal((7, 2, 2, 5))  # no multiple of the span: allowed
    norm = randomised(BatchNorm(5, span=4, dtype=jnp.float64, rngs=nnx.Rngs(0)))
    norm.mean[...], norm.var[...] = jnp.arange(5.0), jnp.arange(1.0, 6)
    view = nnx.view(norm, use_running_average=True, deterministic=True, raise_if_not_found=False)
    expected = (x - np.arange(5)) / np.sqrt(np.arange(1, 6) + 1e-5) * norm.scale[...] + norm.bias[
        ...
    ]
    np.testing.assert_allclose(view(jnp.asarray(x)), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(view.mean[...], np.arange(5))
    assert not norm.use_running_average


def test_gradients(x64):
    norm = randomised(BatchNorm(3, span=3, dtype=jnp.float64, rngs=nnx.Rngs(0)))
    graphdef, params, stats = nnx.split(norm, nnx.Param, ...)

    @jax.jit
    def call(params, x):
        return nnx.merge(graphdef, params, stats, copy=True)(x)

    x = jax.random.normal(jax.random.key(3), (6, 2, 2, 3), jnp.float64)
    check_grads(call, (params, x), order=1, modes=["rev"])


def test_parameters_are_kept_wide_and_the_output_is_narrow():
    norm = BatchNorm(4, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert {v.dtype for v in jax.tree.leaves(nnx.state(norm))} == {jnp.dtype("float32")}
    y = norm(jnp.asarray(100 + np.random.RandomState(0).standard_normal((64, 4)), jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    assert norm.mean[...].dtype == jnp.float32
    np.testing.assert_allclose(norm.mean[...], 10, rtol=1e-2)  # one step towards 100


def test_one_value_per_channel_has_no_unbiased_variance():
    norm = BatchNorm(2, rngs=nnx.Rngs(0))
    assert jnp.isfinite(norm(jnp.ones((1, 2)))).all()
    assert jnp.isfinite(norm.var[...]).all()


def test_zero_gamma():
    norm = BatchNorm(2, scale_init=nnx.initializers.zeros, rngs=nnx.Rngs(0))
    assert not norm(jnp.ones((4, 2))).any()


@pytest.mark.parametrize(("rows", "sentence"), [(3, "fewer than"), (6, "not a multiple")])
def test_rows_that_do_not_fit_the_span(rows, sentence):
    norm = BatchNorm(2, span=4, rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match=f"{rows} rows.*{sentence}.*span of 4"):
        jax.eval_shape(norm, jax.ShapeDtypeStruct((rows, 2), jnp.float32))


def test_span_must_be_positive():
    with pytest.raises(UserError, match="span is 0"):
        BatchNorm(2, span=0, rngs=nnx.Rngs(0))


def sharded_calls(mesh, span, rows, dtype=jnp.float64):
    """(collectives of the outputs alone, of outputs and statistics, and the values themselves)."""
    norm = randomised(BatchNorm(6, span=span, dtype=jnp.float64, rngs=nnx.Rngs(0)))
    graphdef, params, stats = nnx.split(norm, nnx.Param, ...)

    def call(params, stats, x):
        norm = nnx.merge(graphdef, params, stats, copy=True)
        return norm(x), nnx.state(norm, nnx.BatchStat)

    def gradient(params, stats, x):
        return jax.grad(lambda *a: jnp.sin(call(a[0], stats, a[1])[0]).sum(), (0, 1))(params, x)

    x = jax.random.normal(jax.random.key(4), (rows, 2, 2, 6), jnp.float64)
    x = x.astype(dtype)
    with jax.set_mesh(mesh):
        x = jax.device_put(x, NamedSharding(mesh, PartitionSpec(mesh.axis_names)))
        compiled = [
            jax.jit(f).lower(params, stats, x).compile()
            for f in (lambda *a: call(*a)[0], call, gradient)
        ]
        values = [f(params, stats, x) for f in compiled[1:]]
    return *(COLLECTIVE.findall(f.as_text()) for f in compiled[:2]), jax.device_get(values)


@pytest.mark.parametrize(
    ("sides", "span", "outputs", "with_stats"),
    [
        ((8,), None, 1, 1),  # the global batch: one sum, whose result the statistics share
        ((8,), 4, 0, 1),  # rows of one device: only the mean over groups crosses
        ((2, 4), 2, 0, 1),
        ((2, 4), 8, 1, 2),  # two devices; float64 sums their means before their spread
    ],
)
def test_mesh_changes_neither_values_nor_more_traffic_than_needed(
    x64, sides, span, outputs, with_stats
):
    names = ("data", "fsdp")[: len(sides)]
    mesh = jax.make_mesh(sides, names, axis_types=(AxisType.Auto,) * len(sides))
    alone = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    narrow, narrow_with_stats, _ = sharded_calls(mesh, span, rows=32, dtype=jnp.bfloat16)
    assert (len(narrow), len(narrow_with_stats)) == (outputs, with_stats)
    *collectives, values = sharded_calls(mesh, span, rows=32)
    assert {*collectives[0], *collectives[1]} <= {"all-reduce"}
    assert [*map(len, collectives)] == [2 * outputs, with_stats + outputs]
    *none, expected = sharded_calls(alone, span, rows=32)
    assert none == [[], []]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12), values, expected
    )


def test_groups_that_straddle_devices_unevenly(x64):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    alone = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    values = [sharded_calls(each, 8, rows=24)[-1] for each in (mesh, alone)]  # 3 rows a device
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12), *values)


@pytest.mark.parametrize(
    ("shape", "span", "dtype", "within"),
    [
        (
            (32, 14, 14, 8),
            16,
            jnp.float32,
            1e-4,
        ),  # mean of squares less square of mean is off by 5e-3
        ((32, 14, 14, 8), None, jnp.float32, 1e-4),
        ((32, 6, 8), 16, jnp.float32, 1e-4),
        ((64, 8), None, jnp.float32, 1e-4),
        ((32, 14, 14, 8), 16, jnp.bfloat16, 0.05),  # of values that bfloat16 can hold
    ],
)
@pytest.mark.parametrize("apart", [0, 30])  # rows of very different means, or of one
def test_right_where_the_mean_is_a_hundred_times_the_spread(shape, span, dtype, within, apart):
    rng = np.random.default_rng(1)
    means = 100 + apart * rng.standard_normal((shape[0], *(1,) * (len(shape) - 1)))
    x = jnp.asarray(means + rng.standard_normal(shape), dtype)
    found = BatchNorm(8, span=span, dtype=jnp.float32, rngs=nnx.Rngs(0))(x)
    wide = np.asarray(x, np.float64).reshape(-1, span or shape[0], *shape[1:])
    axes = tuple(range(1, wide.ndim - 1))
    centred = wide - wide.mean(axes, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(axes, keepdims=True) + 1e-5)
    np.testing.assert_allclose(found, expected.reshape(shape), rtol=0, atol=within)


# -- layer norm ------------------------------------------------------------------------------------


def test_layer_norm_is_right_where_the_mean_is_large_and_the_variance_small():
    noise = np.random.RandomState(0).standard_normal((4, 32))
    x = np.float32(100 + 0.01 * noise)
    wanted = x.astype(np.float64) - x.mean(-1, keepdims=True, dtype=np.float64)
    wanted /= wanted.std(-1, keepdims=True)
    kinds = (jnp.float32, jnp.bfloat16)
    norm, narrow = (layer_norm(32, 1e-12, kind, rngs=nnx.Rngs(0)) for kind in kinds)
    np.testing.assert_allclose(norm(jnp.asarray(x)), wanted, atol=2e-3)
    half = narrow(jnp.asarray(noise * 1e-5, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(half).std(-1), 1, atol=0.01)  # epsilon is 1 % of it
