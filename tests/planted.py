"""Optimizers of which it is known which is better: stochastic gradient descent with noise of its own in each update.

Two of one rate and two numbers are equal in distribution and not identical: of one seed they begin with the same
weights and see the same samples, and only their noise differs, which of the two has which being arbitrary. So their
difference is symmetric about 0, which is all that the intervals assume. One with more of a rate that is far too
small is better.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax
import toys

from mlperf_jax.core.benchmark import Target
from mlperf_jax.core.comparison import compare as comparing
from mlperf_jax.core.comparison.entries import entries_of
from mlperf_jax.core.options import RunOptions

RATE, NOISE = 0.15, 0.03
TIMES = 3.0  # the better one's rate
# a comparison evaluates after each step, so that ties are rare
BENCHMARK = toys.Plain(
    targets=(Target("accuracy", at_least=0.8),),
    sample_limit=64 * 200,
    batch_size=64,
    eval_every=200,
    eval_samples=128,
)


def noisy(number: int, rate: float = RATE) -> optax.GradientTransformation:
    """Its noise follows from its number and from the weights that it begins with, so that each seed has its own.

    A key alone would give all seeds the same noise: of two entries one would then have the luckier, every time.
    """

    def init(params):
        sums = [jnp.abs(leaf).sum() for leaf in jax.tree.leaves(params)]
        bits = jax.lax.bitcast_convert_type(jnp.float32(sum(sums)), jnp.uint32)
        return jax.random.fold_in(jax.random.key(number), bits), jnp.zeros((), jnp.int32)

    def update(grads, state, params=None):
        key, count = state
        leaves, tree = jax.tree.flatten(grads)
        keys = jax.random.split(jax.random.fold_in(key, count), len(leaves))
        spread = NOISE * math.sqrt(rate / RATE)
        moved = [
            -rate * leaf + spread * jax.random.normal(each, leaf.shape, leaf.dtype)
            for leaf, each in zip(leaves, keys, strict=True)
        ]
        return jax.tree.unflatten(tree, moved), (key, count + 1)

    return optax.GradientTransformation(init, update)


ENTRIES = {"first": noisy(1), "equal": noisy(2), "better": noisy(3, TIMES * RATE)}


def compared(folder, seeds):
    """The three compared with some seeds, in a folder that is not there yet."""
    options = RunOptions(output=str(folder), mesh="data=1", evaluate_every=1, checkpoint_every=1000)
    entries = entries_of(BENCHMARK, ENTRIES, tuned=False)
    return comparing.compare(BENCHMARK, entries, options, "", seeds=seeds, say=lambda _: None)
