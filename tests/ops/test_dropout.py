"""Dropout: its share and scale, one mask on every mesh, nothing without a key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mlperf_jax.core import mesh as meshes
from mlperf_jax.ops import dropout

KEY = jax.random.key(3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_share_is_dropped_and_the_rest_made_up_for(dtype):
    found = np.asarray(dropout.dropped(jnp.ones((200, 100), dtype), 0.25, KEY), np.float64)
    assert set(np.unique(found)) == {0.0, float(jnp.asarray(1 / 0.75, dtype))}
    assert 0.24 < (found == 0).mean() < 0.26
    assert found.mean() == pytest.approx(1, abs=0.02)


def test_without_a_key_or_rate_nothing_is_dropped():
    x = jnp.ones(4)
    assert dropout.dropped(x, 0.5, None) is x and dropout.dropped(x, 0.0, KEY) is x


def test_the_mask_does_not_depend_on_the_mesh():
    x = jnp.arange(64.0).reshape(16, 4)
    wanted = jax.jit(dropout.dropped, static_argnums=1)(x, 0.5, KEY)
    mesh = meshes.make_mesh("data=4,tensor=2")
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data", "tensor")))
    found = jax.jit(dropout.dropped, static_argnums=1)(split, 0.5, KEY)
    assert found.sharding.spec == PartitionSpec("data", "tensor")
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(wanted == 0, ~dropout.kept(KEY, 0.5, x.shape) | (x == 0))
