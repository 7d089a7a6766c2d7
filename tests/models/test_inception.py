"""FID's Inception against pytorch-fid's in float64 (scripts/make_inception_reference.py), and its weights."""

import doctest
import functools
import math

import jax
import jax.numpy as jnp
import modules
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import unflatten_dict
from safetensors.numpy import save_file

from mlperf_jax.core import state as states
from mlperf_jax.errors import UserError
from mlperf_jax.models import inception
from mlperf_jax.models.inception import Inception, Layer
from mlperf_jax.ops import resize
from mlperf_jax.optimizers.tree import flatten_paths
from scripts import make_inception_reference as reference


@functools.cache
def stored():
    with np.load(reference.OUTPUT) as file:
        return dict(file)


def shapes_of(classes=1008):
    """By torch's names."""
    norm = ("weight", "bias", "running_mean", "running_var")
    shapes = {"fc.weight": (classes, 2048), "fc.bias": (classes,)}
    for place in inception.places():
        layer = place.layer
        shapes[f"{place.name}.conv.weight"] = (layer.features, place.channels, *layer.size)
        shapes |= {f"{place.name}.bn.{kind}": (layer.features,) for kind in norm}
    return shapes


def tensors():
    return {name: reference.weight(name, shape) for name, shape in shapes_of().items()}


@functools.cache
def folded():
    """Of the same float32 weights as float64 arrays: what is folded is not rounded."""
    return inception.folded({name: x.astype(np.float64) for name, x in tensors().items()})


def structure(**options):
    return modules.abstract(lambda: Inception(**options, rngs=nnx.Rngs(0)))


# -- sizes -----------------------------------------------------------------------------------------


def test_parameters_are_as_many_as_torch_counts():
    shapes = shapes_of()
    learned = {n: s for n, s in shapes.items() if "running" not in n}
    assert sum(map(math.prod, learned.values())) == stored()["parameters"] == 23_850_960
    params = flatten_paths(structure()[1])
    scales = sum(math.prod(s) for n, s in shapes.items() if n.endswith("bn.weight"))
    assert sum(leaf.size for leaf in params.values()) == 21_785_568 - scales
    assert sum(path.endswith("kernel") for path in params) == 94


def test_weights_fill_the_module():
    params = flatten_paths(structure()[1])
    small = {name: np.zeros((), np.float32) for name in shapes_of()}
    given = {n: np.broadcast_to(small[n], shape) for n, shape in shapes_of().items()}
    found = inception.folded(given)
    assert {p: (x.shape, x.dtype) for p, x in found.items()} == {
        p: (leaf.shape, leaf.dtype) for p, leaf in params.items()
    }


def test_images_become_squares_of_299(monkeypatch):
    sides = []
    resized = resize.bilinear
    monkeypatch.setattr(resize, "bilinear", lambda x, *s: sides.append(s) or resized(x, *s))
    found = jax.eval_shape(lambda: Inception(rngs=nnx.Rngs(0))(jnp.zeros((3, 512, 400, 3))))
    assert (sides, found.shape, found.dtype) == ([(299, 299)], (3, 2048), jnp.float32)


# -- parity ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "images", "side"),
    [("unscaled", reference.UNSCALED, None), ("scaled", reference.SCALED, reference.SIDE)],
)
def test_features_are_those_of_pytorch_fid(name, images, side, x64):
    graph, _ = structure(side=side, dtype=jnp.float64)
    params = unflatten_dict(folded(), sep="/")
    image = reference.images(*images)[:1]  # XLA:CPU takes its time for convolutions in float64
    features = jax.jit(lambda params, x: states.merge(graph, params, {}, {})(x))
    found = features(params, image)
    assert found.dtype == jnp.float64
    wanted = stored()[name][:1]
    assert wanted.std() > 0.1 and np.mean(wanted == 0) < 0.5
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-10)


def test_averages_leave_the_padding_out():
    x = np.random.RandomState(0).rand(2, 4, 3, 5).astype(np.float32)
    found = inception._pooled(jnp.asarray(x), "average")
    wanted = np.empty_like(x)
    for i in range(4):
        for j in range(3):
            wanted[:, i, j] = x[:, max(0, i - 1) : i + 2, max(0, j - 1) : j + 2].mean((1, 2))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


# -- weights ---------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """The state dict of a network of two layers."""
    branch = (Layer("Conv2d_1a_3x3", 4, (3, 3)), Layer("Conv2d_2a_3x3", 6, (1, 7)))
    monkeypatch.setattr(inception, "NETWORK", [("", [branch])])
    given = {name: reference.weight(name, shape) for name, shape in shapes_of().items()}
    return given | {"Conv2d_1a_3x3.bn.num_batches_tracked": np.zeros((), np.int64)}


def test_a_file_is_read_and_norms_are_folded(small, tmp_path):
    save_file(small, tmp_path / "weights.safetensors")
    found = inception.read_weights(tmp_path / "weights.safetensors")
    assert {path: x.shape for path, x in found.items()} == {
        "Conv2d_1a_3x3/kernel": (3, 3, 3, 4),
        "Conv2d_1a_3x3/bias": (4,),
        "Conv2d_2a_3x3/kernel": (1, 7, 4, 6),
        "Conv2d_2a_3x3/bias": (6,),
    }
    assert all(x.dtype == np.float32 for x in found.values())
    x = np.random.RandomState(0).standard_normal(4 * 7).astype(np.float32)
    name = "Conv2d_2a_3x3"
    before = small[f"{name}.conv.weight"].reshape(6, -1) @ x
    scale, shift, mean, var = (
        small[f"{name}.bn.{k}"] for k in ("weight", "bias", "running_mean", "running_var")
    )
    wanted = (before - mean) / np.sqrt(var + 1e-3) * scale + shift
    kernel = found[f"{name}/kernel"][0]  # [7, 4, 6]
    after = np.einsum("wcf,cw->f", kernel, x.reshape(4, 7)) + found[f"{name}/bias"]
    np.testing.assert_allclose(after, wanted, rtol=1e-5, atol=1e-6)


def test_a_pickle_is_refused_with_the_command_that_converts_it(tmp_path):
    for name in ("w.pth", "w.pt", "w.ckpt"):
        (tmp_path / name).write_bytes(b"\x80\x02")
        with pytest.raises(UserError, match=r"is a pickle.*python -c .*weights_only=True") as said:
            inception.read_weights(tmp_path / name)
        assert "\n" not in str(said.value) and inception.FILE in str(said.value)


def test_missing_and_damaged_files_are_named(small, tmp_path):
    path = tmp_path / inception.FILE
    with pytest.raises(UserError, match=r"is missing: .* fetch https://.*\.pth"):
        inception.read_weights(path)
    save_file(small, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="is no whole safetensors file"):
        inception.read_weights(path)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("fc.weight", (1000, 2048), r"fc.weight has shape \(1000, 2048\), not \(1008, 2048\)"),
        ("fc.weight", None, "fc.weight is missing"),
        ("AuxLogits.fc.bias", (1000,), "AuxLogits.fc.bias is unexpected"),
        ("Conv2d_1a_3x3.conv.weight", (4, 3, 1, 1), r".*\(4, 3, 1, 1\), not \(4, 3, 3, 3\)"),
    ],
)
def test_another_network_is_refused(small, name, shape, message):
    small.pop(name, None)
    if shape is not None:
        small[name] = np.zeros(shape, np.float32)
    with pytest.raises(UserError, match=f"not those of FID's Inception: {message}"):
        inception.folded(small)


def test_documented_examples():
    assert doctest.testmod(inception).failed == 0
