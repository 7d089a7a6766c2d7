"""What the tests of the four language models share."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from mlperf_jax.optimizers import ParamTree
from mlperf_jax.results import rcp


def points(name: str, ruleset: str) -> dict[int, rcp.ReferencePoint]:
    """Reference convergence points by batch size."""
    return {point.batch_size: point for point in rcp.points_of(name, ruleset)}


def first_steps(benchmark, count: int = 3) -> list[int]:
    return list(itertools.islice(benchmark.eval_steps(), count))


def toy_params() -> dict:
    """A stack of two layers with a norm, a projection and a bias; an embedding and a head."""
    keys = iter(jax.random.split(jax.random.key(0), 9))
    draw = lambda *shape: jax.random.normal(next(keys), shape)  # noqa: E731
    return {
        "embed": {"embedding": draw(7, 4)},
        "blocks": {
            "layers": {
                "norm": {"scale": draw(2, 4), "bias": draw(2, 4)},
                "up": {"kernel": draw(2, 4, 6), "bias": draw(2, 6)},
            }
        },
        "final_norm": {"scale": draw(4)},
        "head": {"kernel": draw(4, 7)},
    }


def assert_adamw(benchmark, *, decayed: set[str], first: int = 0) -> None:
    """Three updates against the equations of AdamW; `decayed` are the leaf names with decay."""
    params = toy_params()
    tx = benchmark.optimizer(ParamTree.from_params(params))
    state, rate = tx.init(params), benchmark.learning_rate()
    moments = jax.tree.map(lambda p: np.zeros((2, *p.shape)), params)
    for step in range(3):
        grads = jax.tree.map(lambda p, s=step: 1e-3 * jnp.sin(p + s), params)
        updates, state = tx.update(grads, state, params)

        def wanted(path, gradient, weight, both, step=step):
            first_moment, second = both
            first_moment += (1 - benchmark.beta_1) * (gradient - first_moment)
            second += (1 - benchmark.beta_2) * (gradient**2 - second)
            corrected = first_moment / (1 - benchmark.beta_1 ** (step + 1))
            scale = np.sqrt(second / (1 - benchmark.beta_2 ** (step + 1))) + benchmark.epsilon
            decay = benchmark.weight_decay if path[-1].key in decayed else 0.0
            return -float(rate(step)) * (corrected / scale + decay * weight)

        arrays = jax.tree.map(lambda a: np.array(a, np.float64), (grads, params))
        expected = jax.tree_util.tree_map_with_path(wanted, *arrays, moments)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-12), updates, expected
        )
        params = jax.tree.map(lambda p, u: p + u, params, updates)


def write_tokens(prefix, lengths, vocabulary: int = 512) -> None:
    """A token file of documents of these lengths."""
    from mlperf_jax.input_pipelines.tokens import megatron_file

    generator = np.random.default_rng(0)
    with megatron_file.Writer(prefix, megatron_file.dtype_for(vocabulary)) as writer:
        for length in lengths:
            writer.add(generator.integers(0, vocabulary, length))
