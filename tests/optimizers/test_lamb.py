import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlperf_jax.optimizers import ParamTree, flatten_paths, lamb

RATES = [0.0, 0.02, 0.05, 0.03, 0.01, 0.04]  # starts at 0, as a warm-up does
SKIPPED = ("norm/scale", "norm/bias", "fc/bias", "layers/norm/scale", "layers/fc/bias")
B1, B2, DECAY = 0.66, 0.996, 0.1  # of batch 1,536, and a decay that shows


def make_params(dtype=None):
    rng = np.random.default_rng(2)
    make = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
    return {
        "embed": {"embedding": make(7, 4)},
        "norm": {"scale": make(4), "bias": make(4)},
        "fc": {"kernel": make(4, 5), "bias": make(5)},
        "layers": {
            "fc": {"kernel": make(3, 4, 4), "bias": make(3, 4)},
            "norm": {"scale": make(3, 4)},
        },
        "new": {"kernel": jnp.zeros((2, 3), dtype)},
    }


def gradients_of(step, params):
    return jax.tree.map(lambda p: jnp.cos(3 * p + step) * (step + 1), params)


def run_numpy(params):
    """The fact sheet's equations, one tensor at a time; a stack is a list of tensors."""
    tensors, names = [], []
    for path, array in flatten_paths(params).items():
        for part in np.asarray(array) if path.startswith("layers/") else [np.asarray(array)]:
            tensors.append(part.copy())
            names.append(path)
    moments = [(np.zeros_like(w), np.zeros_like(w)) for w in tensors]
    for step, rate in enumerate(RATES):
        for i, (path, w) in enumerate(zip(names, tensors, strict=True)):
            g = np.cos(3 * w + step) * (step + 1)
            m, v = moments[i]
            m, v = moments[i] = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g**2
            u = m / (1 - B1 ** (step + 1)) / (np.sqrt(v / (1 - B2 ** (step + 1))) + 1e-6)
            ratio = 1.0
            if path not in SKIPPED:
                u = u + DECAY * w
                norm = np.linalg.norm(w), np.linalg.norm(u)
                ratio = norm[0] / norm[1] if min(norm) > 0 else 1.0
            tensors[i] = w - rate * ratio * u
    result = {}
    for path, w in zip(names, tensors, strict=True):
        result.setdefault(path, []).append(w)
    return {p: np.stack(w) if p.startswith("layers/") else w[0] for p, w in result.items()}


def test_several_steps_equal_the_equations():
    with jax.enable_x64(True):
        params = make_params()
        optimizer = lamb(lambda step: jnp.asarray(RATES)[step], B1, B2, 1e-6, DECAY)
        state = optimizer.init(params)
        update = jax.jit(optimizer.update)
        for step in range(len(RATES)):
            updates, state = update(gradients_of(step, params), state, params)
            params = optax.apply_updates(params, updates)
        assert int(state.count) == len(RATES) and state.count.dtype == jnp.int32
        ours, expected = flatten_paths(params), run_numpy(make_params())
        for path, value in expected.items():
            np.testing.assert_allclose(ours[path], value, rtol=1e-12, atol=1e-14, err_msg=path)
        assert np.any(expected["new/kernel"])  # which left zero, where the ratio is 1


def test_what_is_skipped_is_bias_corrected_adam():
    params = make_params(jnp.float32)
    ours, adam = lamb(0.1, B1, B2, 1e-6, DECAY), optax.adam(0.1, B1, B2, 1e-6)
    states, updates = (
        (ours.init(params), adam.init(params)),
        (jax.jit(ours.update), jax.jit(adam.update)),
    )
    for step in range(3):
        gradients = gradients_of(step, params)
        mine, one = updates[0](gradients, states[0], params)
        other, two = updates[1](gradients, states[1], params)
        states = one, two
        mine, other = flatten_paths(mine), flatten_paths(other)
        for path in SKIPPED:
            np.testing.assert_allclose(mine[path], other[path], rtol=2e-5, err_msg=path)
        assert not np.allclose(mine["fc/kernel"], other["fc/kernel"], rtol=0.01)


def test_zero_norms_give_ratio_one_and_no_nan():
    params = {"fc": {"kernel": jnp.zeros((2, 2))}, "gate": {"kernel": jnp.ones((2, 2))}}
    gradients = {"fc": {"kernel": jnp.ones((2, 2))}, "gate": {"kernel": jnp.zeros((2, 2))}}
    optimizer = lamb(0.5, weight_decay=0.0)
    updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(updates["fc"]["kernel"], -0.5, rtol=2e-6)
    np.testing.assert_array_equal(updates["gate"]["kernel"], 0)


def test_a_step_has_the_length_of_its_tensor_times_the_rate():
    params = make_params(jnp.float32)
    optimizer = lamb(0.25)
    updates, _ = jax.jit(optimizer.update)(gradients_of(0, params), optimizer.init(params), params)
    flat, moves = flatten_paths(params), flatten_paths(updates)
    lengths = lambda x: np.linalg.norm(np.asarray(x).reshape(len(x), -1), axis=1)  # noqa: E731
    for path in ("embed/embedding", "fc/kernel"):
        np.testing.assert_allclose(
            np.linalg.norm(moves[path]), 0.25 * np.linalg.norm(flat[path]), rtol=1e-5
        )
    stack = "layers/fc/kernel"  # each layer by itself
    np.testing.assert_allclose(lengths(moves[stack]), 0.25 * lengths(flat[stack]), rtol=1e-5)


def test_the_first_bias_correction_is_exact_in_float32():
    """As 1 - 0.999 in float32 it would be 5e-5 off, and a first step 2e-5."""
    params = {"fc": {"bias": jnp.ones(2)}}
    optimizer = lamb(1.0, eps=0.0)
    gradients = {"fc": {"bias": jnp.array([3.0, -0.02])}}
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(updates["fc"]["bias"], [-1, 1], rtol=1e-6)


def test_skip_may_be_given():
    params = make_params(jnp.float32)
    tree = ParamTree.from_params(params)
    assert set(tree.norms | tree.biases) == set(SKIPPED)
    updates = []
    for skip in (None, tree.norms | tree.biases, False):
        optimizer = lamb(0.1, skip=skip)
        found, _ = jax.jit(optimizer.update)(params, optimizer.init(params), params)
        updates.append(flatten_paths(found))
    for path in updates[0]:
        np.testing.assert_array_equal(updates[0][path], updates[1][path])
        assert np.array_equal(updates[0][path], updates[2][path]) == (path not in SKIPPED), path


def test_low_precision_parameters_keep_their_dtype_and_moments_float32():
    params = {"fc": {"kernel": jnp.full((300, 300), 0.1, jnp.bfloat16)}}
    optimizer = lamb(1.0, weight_decay=0.0)
    updates, state = optimizer.update(params, optimizer.init(params), params)
    assert updates["fc"]["kernel"].dtype == jnp.bfloat16
    assert state.mu["fc"]["kernel"].dtype == state.nu["fc"]["kernel"].dtype == jnp.float32
    np.testing.assert_allclose(np.float32(updates["fc"]["kernel"]), -0.1, rtol=1e-2)


def test_parameters_are_needed():
    optimizer = lamb(1.0)
    with pytest.raises(ValueError, match="needs the parameters"):
        optimizer.update({"w": jnp.ones(2)}, optimizer.init({"w": jnp.ones(2)}))
