import doctest
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.optimizers import ParamTree, flatten_paths, map_with_path, unflatten

NAMES = ("clipping", "lars", "momentum", "per_layer", "schedule_free", "schedules", "sgd", "tree")


def small_params(layers=3, seed=0):
    """A toy encoder: embedding, a stack, an unstacked conv with its norm, a head."""
    rng = np.random.default_rng(seed)
    make = lambda *shape: jnp.asarray(rng.normal(size=shape))  # noqa: E731
    return {
        "embed": {"embedding": make(7, 4)},
        "encoder": {
            "layers": {
                "dense": {"kernel": make(layers, 4, 6), "bias": make(layers, 6)},
                "norm": {"scale": make(layers, 4), "bias": make(layers, 4)},
            }
        },
        "stem": {"kernel": make(3, 3, 2, 4)},
        "stem_norm": {"scale": make(4), "bias": make(4)},
        "head": {"kernel": make(4, 7), "bias": make(7)},
        "temperature": make(),
    }


@pytest.mark.parametrize("name", NAMES)
def test_examples_in_docstrings(name):
    module = importlib.import_module(f"mlperf_jax.optimizers.{name}")
    assert doctest.testmod(module).failed == 0


def test_kinds_shapes_and_axes():
    tree = ParamTree.from_params(small_params())
    assert {leaf.path: leaf.kind for leaf in tree.leaves} == {
        "embed/embedding": "embedding",
        "encoder/layers/dense/bias": "bias",
        "encoder/layers/dense/kernel": "matrix",
        "encoder/layers/norm/bias": "norm",
        "encoder/layers/norm/scale": "norm",
        "head/bias": "bias",
        "head/kernel": "head",
        "stem/kernel": "matrix",
        "stem_norm/bias": "norm",
        "stem_norm/scale": "norm",
        "temperature": "other",
    }
    dense = tree["encoder/layers/dense/kernel"]
    assert (dense.shape, dense.stacked, dense.layers) == ((4, 6), True, 3)
    assert (dense.input_axes, dense.output_axes) == ((0,), (1,))
    stem = tree["stem/kernel"]
    assert (stem.stacked, stem.layers) == (False, 1)
    assert (stem.input_axes, stem.output_axes) == ((0, 1, 2), (3,))
    assert tree["temperature"].shape == ()


def test_shape_structs_integer_keys_and_other_names():
    struct = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)  # noqa: E731
    params = {
        "blocks": {i: {"kernel": struct(2, 2)} for i in (0, 10, 2)},
        "layers": {
            "experts": {"kernel": struct(5, 8, 4, 6)},
            "lora_a": struct(5, 4, 16),
            "query": {"kernel": struct(5, 4, 4), "scale": struct(5, 4), "bias": struct(5, 4)},
        },
        "cls_token": struct(1, 1, 9),
        "pos_embedding": struct(16, 9),
        "classifier": {"kernel": struct(9, 3)},
        "rms_norm": {"weight": struct(9)},
    }
    tree = ParamTree.from_params(params)
    assert [leaf.path for leaf in tree.leaves][:3] == [f"blocks/{i}/kernel" for i in (0, 2, 10)]
    kind = {leaf.path: leaf.kind for leaf in tree.leaves}
    assert kind["layers/lora_a"] == "matrix"
    assert kind["cls_token"] == "other"
    assert kind["pos_embedding"] == "embedding"
    assert kind["classifier/kernel"] == "head"
    assert kind["rms_norm/weight"] == "norm"
    # A bias beside a kernel is a bias even if the kernel has a scale of its own.
    assert kind["layers/query/bias"] == "bias"
    experts = tree["layers/experts/kernel"]
    assert (experts.shape, experts.input_axes, experts.output_axes) == ((8, 4, 6), (1,), (2,))
    assert experts.dtype == jnp.bfloat16


def test_counts_and_table():
    params = small_params()
    tree = ParamTree.from_params(params)
    assert tree.count() == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert tree.count("norm") == 3 * 8 + 8
    assert tree.count("other") == 1
    table = str(tree).splitlines()
    assert table[0].split() == ["path", "shape", "kind", "layers"]
    assert table[3].split() == ["encoder/layers/dense/kernel", "4x6", "matrix", "3"]
    assert table[8].split() == ["stem/kernel", "3x3x2x4", "matrix", "-"]
    assert table[-1] == f"{tree.count():,} parameters in 11 arrays"
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    assert str(ParamTree.from_params(half)) == str(tree)


def test_path_sets():
    tree = ParamTree.from_params(small_params())
    skipped = tree.norms | tree.biases
    assert len(skipped) == 6
    assert "head/bias" in skipped
    assert "head/kernel" not in skipped
    assert list(tree.biases) == ["encoder/layers/dense/bias", "head/bias"]
    assert skipped - tree.norms == tree.biases
    assert len(skipped & tree.heads) == 0
    assert set(~skipped) | set(skipped) == {leaf.path for leaf in tree.leaves}
    assert ~~skipped == skipped
    assert len({skipped, tree.norms | tree.biases}) == 1
    assert list(tree.matrices) == ["encoder/layers/dense/kernel", "stem/kernel"]


def test_paths_serve_as_optax_masks():
    params = small_params()
    tree = ParamTree.from_params(params)
    for decayed in (~(tree.norms | tree.biases), tree.matrices.mask, tree.heads):
        optimizer = optax.add_decayed_weights(0.5, mask=decayed)
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, _ = optimizer.update(zeros, optimizer.init(params), params)
        for path, update in flatten_paths(updates).items():
            expected = 0.5 * flatten_paths(params)[path] if path in decayed else 0 * update
            np.testing.assert_allclose(update, expected, rtol=1e-6)


def test_flatten_and_unflatten():
    params = {"blocks": {0: {"kernel": 1}, 1: {"kernel": 2}}, "scale": 3}
    flat = flatten_paths(params)
    assert flat == {"blocks/0/kernel": 1, "blocks/1/kernel": 2, "scale": 3}
    assert unflatten(flat, like=params) == params
    assert unflatten(flat) == {"blocks": {"0": {"kernel": 1}, "1": {"kernel": 2}}, "scale": 3}
    doubled = map_with_path(lambda path, a, b: (path, a + b), params, params)
    assert doubled["blocks"][1]["kernel"] == ("blocks/1/kernel", 4)
    with pytest.raises(UserError, match="'scale' is missing"):
        unflatten({"blocks/0/kernel": 1, "blocks/1/kernel": 2}, like=params)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"layers": {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 3))}}, "'layers/b'.*2 layers"),
        ({"layers": {"a": jnp.ones(())}}, "'layers/a'.*leading layer axis"),
        ({"layers": {"x": {"layers": {"a": jnp.ones((2, 3))}}}}, "two components 'layers'"),
    ],
)
def test_wrong_stacks_are_named(params, message):
    with pytest.raises(UserError, match=message):
        ParamTree.from_params(params)


def test_a_numbered_list_of_layers_is_no_stack():
    """`nnx.Sequential` keeps its modules under `layers` too, of one shape or not."""
    square, wide = {"kernel": jnp.ones((4, 4))}, {"kernel": jnp.ones((4, 6))}
    tree = ParamTree.from_params({"layers": {0: square, 1: square, 2: wide}})
    assert {leaf.path: (leaf.shape, leaf.stacked) for leaf in tree.leaves} == {
        "layers/0/kernel": ((4, 4), False),
        "layers/1/kernel": ((4, 4), False),
        "layers/2/kernel": ((4, 6), False),
    }


def test_wrong_questions_are_named():
    tree = ParamTree.from_params(small_params())
    other = ParamTree.from_params({"fc": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}})
    with pytest.raises(UserError, match="different trees"):
        _ = tree.norms | other.biases
    with pytest.raises(UserError, match="'fc/bias' is not in the tree"):
        tree.norms({"fc": {"bias": jnp.ones(2)}})
    with pytest.raises(UserError, match="no parameter kind 'gain'"):
        tree.count("gain")
    with pytest.raises(UserError, match="no parameter 'fc/kernel'"):
        tree["fc/kernel"]
    with pytest.raises(UserError, match="'encoder/layers/dense/bias' is a bias"):
        tree.as_matrices(tree.biases)


def muon_run(params, specification, steps=2):
    optimizer = optax.contrib.muon(0.1, muon_weight_dimension_numbers=specification)
    state = optimizer.init(params)
    for step in range(steps):
        gradients = jax.tree.map(lambda p, s=step: jnp.sin(3 * p + s), params)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_muon_on_a_stack_is_muon_on_each_layer():
    with jax.enable_x64(True):
        params = small_params()
        tree = ParamTree.from_params(params)
        together = muon_run(params, tree.matrices)
        stack = params["encoder"]["layers"]
        for layer in range(3):
            one = {"dense": jax.tree.map(lambda x, i=layer: x[i], stack["dense"])}
            alone = muon_run(one, ParamTree.from_params(one).matrices)
            np.testing.assert_allclose(
                together["encoder"]["layers"]["dense"]["kernel"][layer],
                alone["dense"]["kernel"],
                rtol=1e-6,  # Newton-Schulz coefficients are float32 constants in both
            )
        # Muon's own default for 2-D arrays, on the stem seen as a matrix: the axes are as stated.
        stem = params["stem"]["kernel"]
        plain = muon_run({"w": stem.reshape(18, 4)}, None)
        np.testing.assert_allclose(together["stem"]["kernel"].reshape(18, 4), plain["w"], rtol=1e-6)


def test_muon_leaves_norms_biases_embeddings_and_heads_to_adam():
    with jax.enable_x64(True):
        params = small_params()
        tree = ParamTree.from_params(params)
        together = flatten_paths(muon_run(params, tree.matrices))
        optimizer = optax.adamw(0.1, weight_decay=0.0, nesterov=True)
        state, adam = optimizer.init(params), params
        for step in range(2):
            gradients = jax.tree.map(lambda p, s=step: jnp.sin(3 * p + s), adam)
            updates, state = optimizer.update(gradients, state, adam)
            adam = optax.apply_updates(adam, updates)
        for path, expected in flatten_paths(adam).items():
            same = np.allclose(together[path], expected, rtol=1e-9)
            assert same == (path not in tree.matrices), path


def test_muon_can_be_told_to_take_the_head_too():
    params = small_params()
    tree = ParamTree.from_params(params)
    numbers = tree.as_matrices(tree.matrices | tree.heads)(params)
    assert numbers["head"]["kernel"] == optax.contrib.MuonDimensionNumbers((0,), (1,))
    dense = numbers["encoder"]["layers"]["dense"]
    assert dense == {"kernel": optax.contrib.MuonDimensionNumbers((1,), (2,)), "bias": None}
    assert (tree.matrices - tree.select(lambda leaf: leaf.stacked))(params)["stem"]["kernel"]
