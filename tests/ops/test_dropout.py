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


@pytest.mark.parametrize("shape", [(), (1,), (4001,), (3, 3000), (40, 201)])
@pytest.mark.parametrize("rate", [0.1, 0.9])
def test_elements_are_kept_one_by_one(shape, rate):
    """Whatever the length, and neither of a pair that one draw decides knows of the other."""
    keep = np.stack([dropout.kept(jax.random.key(n), rate, shape) for n in range(20)])
    assert keep.shape == (20, *shape)
    if keep.size > 1000:
        assert keep.mean() == pytest.approx(1 - rate, abs=0.006)
        half = -(-shape[-1] // 2)
        pairs = keep[..., :half][..., : shape[-1] - half], keep[..., half:]
        assert np.mean(pairs[0] & pairs[1]) == pytest.approx((1 - rate) ** 2, abs=0.01)


def test_a_mean_stays_what_it_is():
    """A tenth is no multiple of 1 / 65,536: what is left is divided by the probability that there is."""
    keep = dropout.kept(KEY, 0.1, (8,))
    kept = dropout.masked(jnp.ones(8), 0.1, keep).max()
    assert float(kept) == np.float32(65536 / 58982)
    for rate in (0.0, 1e-9, 1 - 1e-9):
        assert np.isfinite(dropout.masked(jnp.ones(8), rate, dropout.kept(KEY, rate, (8,)))).all()


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
