"""Every CPU form of convolution and pooling equals XLA's plain one, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from mlperf_jax.errors import UserError
from mlperf_jax.ops import conv

pytestmark = pytest.mark.usefixtures("x64")

LAYOUT = ("NHWC", "HWIO", "NHWC")


def normal(seed, shape):
    return jnp.asarray(np.random.RandomState(seed).standard_normal(shape))


def assert_same(ours, theirs, *args):
    """Equal values and equal gradients of a random projection."""
    weight = normal(9, jax.eval_shape(theirs, *args).shape)

    @jax.jit
    def both(weight, *args):
        pulled = [jax.vjp(f, *args) for f in (ours, theirs)]
        return [(y, pullback(weight)) for y, pullback in pulled]

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-11), *both(weight, *args)
    )


@pytest.mark.parametrize(
    ("side", "size", "stride", "padding"),
    [
        (5, 1, 1, 0),
        (5, 1, 2, 0),
        (4, 1, 2, "SAME"),
        (5, 3, 1, "SAME"),
        (2, 3, 2, "SAME"),  # few positions and many; odd sides pad differently
        (5, 3, 2, "SAME"),
        (12, 3, 2, "SAME"),
        (2, 3, 2, 1),
        (5, 3, 2, 1),
        (4, 5, 2, 2),
        (12, 7, 2, 3),
    ],
)
def test_conv2d(side, size, stride, padding):
    pads = padding if padding == "SAME" else ((padding, padding),) * 2
    x, kernel = normal(0, (2, side, side, 3)), normal(1, (size, size, 3, 4))
    assert_same(
        lambda x, k: conv.conv2d(x, k, stride=stride, padding=padding),
        lambda x, k: lax.conv_general_dilated(
            x, k, (stride, stride), pads, dimension_numbers=LAYOUT
        ),
        x,
        kernel,
    )


CUBE = ("NDHWC", "DHWIO", "NDHWC")


@pytest.mark.parametrize(
    ("sides", "size", "stride"),
    [
        ((4, 5, 6), 3, 1),
        ((4, 6, 8), 3, 2),  # padded (1, 1): "SAME" would pad even sides (0, 1)
        ((5, 3, 4), 3, 2),
        ((2, 2, 2), 3, 2),
        ((3, 4, 5), 1, 1),
    ],
)
def test_conv3d(sides, size, stride):
    pads = ((size // 2, size // 2),) * 3
    x, kernel = normal(0, (2, *sides, 3)), normal(1, (size, size, size, 3, 4))
    assert_same(
        lambda x, k: conv.conv3d(x, k, stride=stride),
        lambda x, k: lax.conv_general_dilated(x, k, (stride,) * 3, pads, dimension_numbers=CUBE),
        x,
        kernel,
    )


def test_conv3d_is_the_plain_one_elsewhere(monkeypatch):
    monkeypatch.setattr(conv, "platform", lambda: "tpu")
    x, kernel = jnp.zeros((2, 4, 4, 4, 3)), jnp.zeros((3, 3, 3, 3, 4))
    text = str(jax.make_jaxpr(lambda x, k: conv.conv3d(x, k, stride=2))(x, kernel))
    assert text.count("conv_general_dilated[") == 1
    assert "padding=((1, 1), (1, 1), (1, 1))" in text
    assert "concatenate" not in text


def test_double3d_is_a_transposed_convolution():
    """Kernel 2, stride 2: XLA wants the kernel flipped, or its two channel axes named the other way."""
    x, kernel = normal(0, (2, 2, 3, 4, 3)), normal(1, (2, 2, 2, 3, 5))
    theirs = lambda x, k: lax.conv_general_dilated(  # noqa: E731
        x, k, (1, 1, 1), ((1, 1),) * 3, lhs_dilation=(2, 2, 2), dimension_numbers=CUBE
    )
    assert_same(conv.double3d, lambda x, k: theirs(x, k[::-1, ::-1, ::-1]), x, kernel)
    y = conv.double3d(x, kernel)
    assert y.shape == (2, 4, 6, 8, 5)
    np.testing.assert_allclose(y[0, 1, 0, 1], x[0, 0, 0, 0] @ kernel[1, 0, 1], rtol=1e-12)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize(
    ("side", "size", "stride", "padding"),
    [(8, 3, 2, "SAME"), (5, 3, 2, "SAME"), (8, 3, 2, 1), (8, 2, 2, 0), (5, 3, 1, 1)],
)
def test_max_pool(monkeypatch, platform, side, size, stride, padding):
    monkeypatch.setattr(conv, "platform", lambda: platform)
    pads = padding if padding == "SAME" else ((padding, padding),) * 2
    x = -abs(normal(0, (2, side, side, 3)))  # all negative: a padding of zeros would win
    assert_same(
        lambda x: conv.max_pool(x, size, stride=stride, padding=padding),
        lambda x: nnx.max_pool(x, (size, size), strides=(stride, stride), padding=pads),
        x,
    )


def test_max_pool_passes_nan_on():
    x = jnp.zeros((1, 4, 4, 1)).at[0, 1, 1, 0].set(jnp.nan)
    assert jnp.isnan(conv.max_pool(x, 3, stride=2)).any()


def test_module_computes_in_its_dtype_and_keeps_wide_kernels():
    init = nnx.initializers.ones
    module = conv.Conv(3, 4, 3, stride=2, dtype=jnp.bfloat16, kernel_init=init, rngs=nnx.Rngs(0))
    assert module.kernel[...].dtype == jnp.float32
    y = module(jnp.ones((1, 4, 4, 3), jnp.float32))
    assert (y.dtype, y.shape) == (jnp.bfloat16, (1, 2, 2, 4))
    assert y[0, 0, 0, 0] == 27
    assert y[0, 1, 1, 0] == 12  # the padding is at the bottom right


@pytest.mark.parametrize("platform", ["cpu", "tpu", "gpu"])
@pytest.mark.parametrize(("side", "stride", "groups"), [(6, 1, 4), (7, 2, 4), (2, 2, 8), (5, 1, 1)])
def test_all_forms_of_groups_are_equal(monkeypatch, platform, side, stride, groups):
    monkeypatch.setattr(conv, "platform", lambda: platform)
    monkeypatch.setattr(conv, "_TPU_LANES", 4)  # joins two groups of two channels
    monkeypatch.setattr(conv, "_CPU_LANES", 4)
    x, kernel = normal(0, (2, side, side, 2 * groups)), normal(1, (3, 3, 2, 3 * groups))

    def plain(x, k):
        strides, pads = (stride, stride), ((1, 1), (1, 1))
        how = {"dimension_numbers": LAYOUT, "feature_group_count": groups}
        return lax.conv_general_dilated(x, k, strides, pads, **how)

    assert_same(
        lambda x, k: conv.conv2d(x, k, groups=groups, stride=stride, padding=1), plain, x, kernel
    )


def test_groups_are_joined_up_to_the_width_of_the_matrix_unit():
    """ResNeXt50_32x4d: 4, 8, 16 and 32 channels a group."""
    joined = [conv._joined("tpu", 32, channels) for channels in (4, 8, 16, 32, 256)]
    assert joined == [32, 16, 8, 4, 1]
    assert [conv._joined("cpu", 32, channels) for channels in (1, 4, 8, 16, 32)] == [32, 8, 4, 4, 4]
    assert conv._joined("cpu", 6, 8) == 6  # 4 do not divide them
    assert conv._joined("gpu", 32, 4) == 1


def test_groups_must_divide_the_channels():
    with pytest.raises(UserError, match="do not split into 3 groups"):
        conv.Conv(8, 8, 3, groups=3, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0))
