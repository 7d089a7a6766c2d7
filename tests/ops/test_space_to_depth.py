"""Blocks of voxels compute what single voxels do; in float64, so that only the order of sums differs."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlperf_jax.models.unet3d import UNet3D
from mlperf_jax.ops import conv, pretend, space_to_depth
from mlperf_jax.ops.instance_norm import InstanceNorm
from mlperf_jax.ops.space_to_depth import Blocks

SIDES = (4, 8, 12)
SIZES = list(itertools.product((1, 2), repeat=3))
EXACT: Any = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture(autouse=True)
def _wide():
    with jax.enable_x64(True):
        yield


def _random(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float64)


def _shifted(x, blocks):
    """x in blocks that may be shifted: by padding it first."""
    low = blocks.before
    pads = [(0, 0), *((before, before) for before in low), (0, 0)]
    sides = tuple(side + 2 * before for side, before in zip(blocks.sides, low))
    return space_to_depth.pack(jnp.pad(x, pads), Blocks(sides, blocks.size))


def _inside(y, blocks):
    """The inverse of `_shifted`."""
    low = blocks.before
    sides = tuple(side + 2 * before for side, before in zip(blocks.sides, low))
    whole = space_to_depth.unpack(y, Blocks(sides, blocks.size))
    d, h, w = (slice(before, before + side) for before, side in zip(low, blocks.sides))
    return whole[:, d, h, w]


@pytest.mark.parametrize("size", SIZES)
def test_packing_is_undone_by_unpacking(size):
    x, blocks = _random(0, 2, *SIDES, 3), Blocks(SIDES, size)
    packed = space_to_depth.pack(x, blocks)
    assert packed.shape == (2, *blocks.grid, blocks.voxels * 3)
    np.testing.assert_array_equal(space_to_depth.unpack(packed, blocks), x)


@pytest.mark.parametrize("shifts", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize(
    ("before", "after", "stride"),
    [
        ((1, 2, 2), (1, 2, 2), 1),
        ((1, 1, 2), (2, 1, 2), 1),
        ((1, 2, 2), (1, 1, 2), 2),
        ((2, 2, 2), (2, 2, 2), 2),
        ((1, 1, 1), (1, 2, 1), 2),
    ],
)
def test_convolution(before, after, shifts, stride):
    x, kernel = _random(0, 2, *SIDES, 3), _random(1, 3, 3, 3, 3, 5)
    wanted = conv.conv3d(x, kernel, stride=stride)
    before = Blocks(SIDES, before, shifts[0])
    after = Blocks(wanted.shape[1:4], after, shifts[1])
    found = space_to_depth.conv3d(_shifted(x, before), kernel, before, after, stride=stride)
    assert found.shape == (2, *after.grid, after.voxels * 5)
    np.testing.assert_allclose(_inside(found, after), wanted, **EXACT)


def test_shifting_halves_the_taps_along_each_axis():
    aligned = Blocks((8, 8, 8), (1, 2, 2))
    x, kernel = _random(0, 1, *aligned.grid, 4), _random(1, 3, 3, 3, 1, 1)

    def products(after):
        def program(x, k):
            return space_to_depth.conv3d(x, k, aligned, after)

        jaxpr = jax.make_jaxpr(program)(x, kernel)
        (equation,) = [e for e in jaxpr.eqns if e.primitive.name == "conv_general_dilated"]
        return np.prod(equation.invars[1].aval.shape[:3])

    assert (products(aligned), products(aligned.shift())) == (27, 12)


def test_convolution_of_two_arrays_put_behind_each_other():
    a, b, kernel = _random(0, 2, *SIDES, 3), _random(1, 2, *SIDES, 3), _random(2, 3, 3, 3, 6, 4)
    blocks = Blocks(SIDES, (1, 2, 2))
    both = jnp.concatenate([space_to_depth.pack(a, blocks), space_to_depth.pack(b, blocks)], -1)
    found = space_to_depth.conv3d(both, kernel, blocks, blocks, parts=2)
    wanted = conv.conv3d(jnp.concatenate([a, b], -1), kernel)
    np.testing.assert_allclose(space_to_depth.unpack(found, blocks), wanted, **EXACT)


@pytest.mark.parametrize(
    "sizes", [((1, 1, 2), (1, 2, 2)), ((1, 1, 1), (2, 1, 2)), ((2, 2, 2), (2, 2, 2))]
)
def test_doubling(sizes):
    x, kernel = _random(0, 2, *SIDES, 3), _random(1, 2, 2, 2, 3, 5)
    before, after = Blocks(SIDES, sizes[0]), Blocks(tuple(2 * s for s in SIDES), sizes[1])
    found = space_to_depth.double3d(space_to_depth.pack(x, before), kernel, before, after)
    wanted = conv.double3d(x, kernel)
    np.testing.assert_allclose(space_to_depth.unpack(found, after), wanted, **EXACT)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.bfloat16])
def test_instance_norm_sees_the_volume_alone(shifted, dtype):
    norm = InstanceNorm(3, dtype=jnp.float64, rngs=nnx.Rngs(0))
    norm.scale[...], norm.bias[...] = jnp.array([1.0, 2, 3]), jnp.array([4.0, 5, 6])
    x, blocks = (_random(0, 2, *SIDES, 3) + 7).astype(dtype), Blocks(SIDES, (1, 2, 2), shifted)
    packed = _shifted(x, blocks)
    inside = blocks.inside(3)
    if inside is not None:  # what a convolution leaves outside counts for nothing
        packed = jnp.where(inside, packed, 1e3)
    found = norm(packed, blocks)
    np.testing.assert_allclose(_inside(found, blocks), norm(x), rtol=1e-5, atol=1e-5)
    if dtype == jnp.float64:
        np.testing.assert_allclose(_inside(found, blocks), norm(x), **EXACT)
    if inside is not None:
        assert not jnp.where(inside, 0, found).any()


@pytest.mark.parametrize(("filters", "sides"), [((16,), (4, 4, 4)), ((48,), (4, 4, 4))])
def test_network_and_its_gradients_as_tpus_compute_them(filters, sides):
    model = UNet3D(filters, 3, jnp.float64, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(model)
    x, weight = _random(0, 4, *sides, 1), _random(1, 4, *sides, 3)

    def loss(state, x):
        return (nnx.merge(graphdef, state)(x) * weight).sum()

    both = jax.value_and_grad(loss, argnums=(0, 1))
    wanted = jax.jit(lambda *given: both(*given))(state, x)
    with pretend.platform("tpu"):
        found = jax.jit(lambda *given: both(*given))(state, x)
        traced = str(jax.make_jaxpr(loss)(state, x))
    lanes = {16: 128, 48: 96}[filters[0]]
    assert f",{lanes}]" in traced.replace(" ", "")  # voxels lie side by side
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * float(jnp.abs(b).max()))
