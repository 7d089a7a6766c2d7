"""Every form of a grouped convolution equals XLA's plain one, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from mlperf_jax.errors import UserError
from mlperf_jax.ops import grouped_conv


@pytest.mark.parametrize("platform", ["cpu", "tpu", "gpu"])
@pytest.mark.parametrize(("side", "stride", "groups"), [(6, 1, 4), (7, 2, 4), (2, 2, 8), (5, 1, 1)])
def test_all_forms_are_equal(monkeypatch, platform, side, stride, groups):
    monkeypatch.setattr(grouped_conv, "platform", lambda: platform)
    monkeypatch.setattr(grouped_conv, "_TPU_LANES", 4)  # joins two groups of two channels
    channels = 2 * groups
    with jax.enable_x64(True):
        draw = np.random.RandomState(0)
        x = jnp.asarray(draw.standard_normal((2, side, side, channels)))
        kernel = jnp.asarray(draw.standard_normal((3, 3, 2, 3 * groups)))

        def ours(x, k):
            return grouped_conv.grouped_conv2d(x, k, groups, stride=stride, padding=1)

        def plain(x, k):
            return lax.conv_general_dilated(
                x,
                k,
                (stride, stride),
                ((1, 1), (1, 1)),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=groups,
            )

        @jax.jit
        def both(x, k):
            pulled = [jax.vjp(f, x, k) for f in (ours, plain)]
            return [(y, back(jnp.cos(y))) for y, back in pulled]

        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11), *both(x, kernel)
        )


def test_groups_are_joined_up_to_the_width_of_the_matrix_unit():
    """ResNeXt50_32x4d: 4, 8, 16 and 32 channels a group."""
    joined = [grouped_conv._joined("tpu", 32, channels) for channels in (4, 8, 16, 32, 256)]
    assert joined == [32, 16, 8, 4, 1]
    assert grouped_conv._joined("cpu", 32, 4) == 32
    assert grouped_conv._joined("gpu", 32, 4) == 1


def test_groups_must_divide_the_channels():
    with pytest.raises(UserError, match="do not split into 3 groups"):
        grouped_conv.GroupedConv(
            8, 3, groups=3, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0)
        )
