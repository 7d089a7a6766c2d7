"""The sliding window against a slow twin written from the rules, for volumes of many sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy.signal import windows as scipy_windows

from mlperf_jax.ops import sliding_window

SIDE, SHAPE = 8, (20, 16, 12)  # windows begin every 4 voxels
COUNTS = np.array([[4, 3, 2], [1, 1, 1], [2, 1, 2], [0, 0, 0], [3, 3, 1]], np.int32)


def gaussian_map(side):
    """The reference's: cube root of the product of three Gaussians, over its maximum."""
    one = scipy_windows.gaussian(side, 0.125 * side)
    cube = np.cbrt(one[:, None, None] * one[:, None] * one)
    return cube / cube.max()


def test_weights_equal_the_reference_map():
    one = sliding_window.axis_weights(128)
    ours, theirs = one[:, None, None] * one[:, None] * one, gaussian_map(128)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    assert (ours[63:65, 63:65, 63:65] == 1).all()
    np.testing.assert_allclose(ours[0, 0, 0], 3.80e-4, rtol=1e-3)


def forward(x):
    """Something that depends on the whole window and tells its voxels apart: [1, S, S, S, 2]."""
    return jnp.concatenate([jnp.roll(x, 3, axis=2) * x, x.mean() + jnp.cumsum(x, axis=1)], axis=-1)


def slow(image, counts):
    """Every window in turn, in float64; voxels that no window reaches stay 0."""
    total, norm, blend = np.zeros((*SHAPE, 2)), np.zeros(SHAPE), gaussian_map(SIDE)
    for start in np.ndindex(*counts):
        at = tuple(slice(4 * s, 4 * s + SIDE) for s in start)
        total[at] += np.asarray(forward(jnp.asarray(image[at])[None])[0]) * blend[..., None]
        norm[at] += blend
    return total / np.where(norm > 0, norm, 1)[..., None], norm > 0


def keep(carry, start, logits):
    blended, calls = carry
    at = (start, *[jnp.zeros_like(start)] * 3)
    return jax.lax.dynamic_update_slice(blended, logits, at), calls + 1


def blend_all(function, classes, side=SIDE):
    def volume(image, counts):
        begin = (jnp.zeros((*image.shape[:3], classes), image.dtype), 0)
        return sliding_window.over_volume(function, image, counts, side, keep, begin)

    return jax.jit(lambda images, counts: sliding_window.each_row(volume, images, counts))


def images():
    return np.random.RandomState(0).standard_normal((len(COUNTS), *SHAPE, 1))


def test_equals_the_slow_twin_for_every_size_and_compiles_once():
    with jax.enable_x64(True):
        program = blend_all(forward, 2)
        for start in range(len(COUNTS)):
            order = np.roll(np.arange(len(COUNTS)), start)
            blended, calls = program(images()[order], COUNTS[order])
        for row, at in enumerate(order):
            wanted, reached = slow(images()[at], COUNTS[at])
            np.testing.assert_allclose(blended[row], wanted, rtol=1e-10, atol=1e-12)
            assert calls[row] == (COUNTS[at][0] + 1 if reached.any() else 0)
        assert program._cache_size() == 1


def test_an_identity_gives_the_volume_back():
    blended, _ = blend_all(lambda x: x, 1)(images().astype(np.float32), COUNTS)
    for row, counts in enumerate(COUNTS):
        inside = tuple(slice(0, 4 * (n + 1) if counts.all() else 0) for n in counts)
        outside = np.array(blended[row])
        np.testing.assert_allclose(outside[inside], images()[row][inside], rtol=1e-6, atol=1e-6)
        outside[inside] = 0
        assert not outside.any()


def test_runs_each_window_once_and_no_other():
    """What is paid for is the forward pass: count them as they happen."""
    seen = []

    def counted(x):
        jax.debug.callback(lambda: seen.append(1))
        return x

    jax.block_until_ready(blend_all(counted, 1)(images().astype(np.float32), COUNTS))
    jax.effects_barrier()
    assert len(seen) == COUNTS.prod(1).sum() == 24 + 1 + 4 + 0 + 9


def test_counts_beyond_the_volume_are_cut():
    blended, calls = blend_all(lambda x: x, 1)(
        images()[:1].astype(np.float32), np.full((1, 3), 99, np.int32)
    )
    assert calls[0] == 5
    np.testing.assert_allclose(blended[0], images()[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("axes", [("data",), ("data", "expert")])
def test_rows_are_split_over_the_mesh_bit_for_bit(axes):
    sizes = (4,) if len(axes) == 1 else (2, 2)
    rows = np.r_[0:4]
    weight = jnp.linspace(0.5, 2, SIDE).reshape(SIDE, 1)

    def program(weight, images, counts):
        def volume(image, counts):
            begin = (jnp.zeros((*SHAPE, 1), image.dtype), 0)
            closed = lambda x: x * weight  # noqa: E731 - weights are closed over, as a model's are
            return sliding_window.over_volume(closed, image, counts, SIDE, keep, begin)

        return sliding_window.each_row(volume, images, counts)

    given = images()[rows].astype(np.float32), COUNTS[rows]
    wanted = jax.jit(program)(weight, *given)
    mesh = jax.make_mesh(
        sizes, axes, axis_types=(AxisType.Auto,) * len(axes), devices=jax.devices()[:4]
    )
    with jax.set_mesh(mesh):
        split = jax.device_put(given, NamedSharding(mesh, PartitionSpec(axes)))
        last = axes[-1]
        held = jax.device_put(weight, NamedSharding(mesh, PartitionSpec(last)))
        found = jax.jit(program)(held, *split)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert found[0].sharding.spec[0] in (axes, axes[0])


@pytest.mark.parametrize(("shape", "side"), [((20, 16, 10), 8), ((4, 16, 12), 8), ((9, 9, 9), 3)])
def test_sides_that_do_not_fit_are_refused(shape, side):
    with pytest.raises(ValueError, match="overlap by half"):
        jax.eval_shape(
            blend_all(lambda x: x, 1, side), jnp.zeros((1, *shape, 1)), jnp.ones((1, 3), jnp.int32)
        )
