"""The 3D U-Net against the fact sheet's tables and against torch (scripts/make_unet3d_reference.py)."""

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlperf_jax.errors import UserError
from mlperf_jax.models import importing, unet3d
from mlperf_jax.ops.dice import dice_xent
from mlperf_jax.ops.space_to_depth import Blocks
from scripts import make_unet3d_reference as reference

QUICK = {"xla_backend_optimization_level": 0}  # compiled once and run once: LLVM need not try hard

FULL = (32, 64, 128, 256, 320)
STAGES = {
    "input": 28_640,
    "down/0": 166_144,
    "down/1": 664_064,
    "down/2": 2_655_232,
    "down/3": 4_977_920,
    "bottleneck": 5_530_880,
    "up/0": 9_115_200,
    "up/1": 5_965_056,
    "up/2": 1_589_888,
    "up/3": 397_632,
    "up/4": 99_488,
    "head": 99,
}


def build(filters, dtype=jnp.float32, seed=0):
    return unet3d.UNet3D(filters, 3, dtype, rngs=nnx.Rngs(seed))


def flat(tree, prefix=""):
    """Path -> array of a module's state."""
    tree = nnx.to_pure_dict(tree) if isinstance(tree, nnx.State) else tree
    if not isinstance(tree, dict):
        return {prefix.removesuffix("/"): tree}
    return {
        path: leaf
        for key, value in tree.items()
        for path, leaf in flat(value, f"{prefix}{key}/").items()
    }


@functools.cache
def stored():
    return dict(np.load(reference.OUTPUT))


def from_torch(state: Mapping[str, np.ndarray], filters: Sequence[int]) -> dict[str, np.ndarray]:
    """The reference's weights by path in our state.

    Args:
      state: the reference's `state_dict` as NumPy arrays: convolutions [F, C, k, k, k], transposed
        ones [C, F, 2, 2, 2].
      filters: as the model's.

    Returns:
      Path ("params/down/0/conv1/kernel") -> array in our layout.

    Raises:
      UserError: names what is missing, unexpected or of another shape.
    """
    leaves = list(_leaves(filters, *np.shape(state.get("output.conv.bias", (0,)))))
    if faults := importing.misfits(state, {leaf.name: leaf.shape for leaf in leaves}):
        raise UserError(
            f"unet3d: these are not the weights of the reference's 3D U-Net: {importing.some(faults, 6, '; ')}"
        )
    found = {}
    for leaf in leaves:
        value = importing.transposed(np.asarray(state[leaf.name]))
        turned = leaf.path.endswith(
            "double/kernel"
        )  # torch's transposed ones begin with the inputs
        found[f"params/{leaf.path}"] = value.swapaxes(-1, -2) if turned else value
    return found


def _leaves(filters: Sequence[int], classes: int) -> Iterator[importing.Leaf]:
    def both(path: str, name: str, *shape: int, features: int, leaf: str = "kernel"):
        yield importing.Leaf(f"{path}/{leaf}", f"{name}.weight", shape)
        yield importing.Leaf(f"{path}/bias", f"{name}.bias", (features,))

    def block(path: str, name: str, features_in: int, features: int):
        for i, channels in ((1, features_in), (2, features)):
            kernel = (features, channels, 3, 3, 3)
            yield importing.Leaf(f"{path}/conv{i}/kernel", f"{name}.conv{i}.0.weight", kernel)
            norm = f"{path}/norm{i}", f"{name}.conv{i}.1"
            yield from both(*norm, features, features=features, leaf="scale")

    yield from block("input", "input_block", 1, filters[0])
    for i, (a, b) in enumerate(itertools.pairwise(filters)):
        yield from block(f"down/{i}", f"downsample.{i}", a, b)
    yield from block("bottleneck", "bottleneck", filters[-1], filters[-1])
    for i, (a, b) in enumerate(itertools.pairwise([filters[-1], *reversed(filters)])):
        names = f"up/{i}/double", f"upsample.{i}.upsample_conv.0"
        yield from both(*names, a, b, 2, 2, 2, features=b)
        yield from block(f"up/{i}/block", f"upsample.{i}", 2 * b, b)
    yield from both("head", "output.conv", classes, filters[0], 1, 1, 1, features=classes)


def imported(dtype):
    """The small network with the reference's weights."""
    model = nnx.eval_shape(lambda: build(reference.FILTERS, dtype))
    weights = from_torch(reference.weights(), reference.FILTERS)
    graph, state = nnx.split(model)
    assert {f"params/{path}" for path in flat(state)} == set(weights)

    def put(path, leaf):
        name = "/".join(str(getattr(key, "key", key)) for key in path).removesuffix("/.value")
        return jnp.asarray(weights[f"params/{name.replace('/value', '')}"], leaf.dtype)

    return graph, jax.tree_util.tree_map_with_path(put, state)


# -- the fact sheet's tables -------------------------------------------------------------------


def test_parameters_of_each_stage():
    shapes = flat(nnx.state(nnx.eval_shape(lambda: build(FULL))))
    assert sum(leaf.size for leaf in shapes.values()) == 31_190_243
    for stage, count in STAGES.items():
        found = sum(v.size for path, v in shapes.items() if path.startswith(f"{stage}/"))
        assert found == count, stage


def test_intermediate_shapes():
    """Section 1's table: what each stage gives for a patch of 128^3."""
    model = nnx.eval_shape(lambda: build(FULL))
    shapes, graph, state = {}, *nnx.split(model)

    def trace(state, x):
        model = nnx.merge(graph, state)
        levels = [Blocks((128 >> level,) * 3) for level in range(6)]
        skips = [model.input(x, levels[0], levels[0])]
        for down, around in zip(model.down, itertools.pairwise(levels), strict=False):
            skips.append(down(skips[-1], *around))
        y = model.bottleneck(skips[-1], *levels[-2:])
        shapes["down"] = [s.shape[1:] for s in (*skips, y)]
        shapes["up"] = []
        around = itertools.pairwise(reversed(levels))
        for up, skip, (below, here) in zip(model.up, reversed(skips), around, strict=True):
            y = up(y, skip, below, here)
            shapes["up"].append(y.shape[1:])
        return model(x)

    logits = jax.eval_shape(trace, state, jnp.zeros((1, 128, 128, 128, 1)))
    cube = lambda side, channels: (side, side, side, channels)  # noqa: E731
    sides = (128, 64, 32, 16, 8)
    halved = [cube(s, c) for s, c in zip(sides, FULL, strict=True)]
    assert shapes["down"] == [*halved, cube(4, 320)]
    assert shapes["up"] == halved[::-1]
    assert logits.shape == (1, *cube(128, 3))


def test_flops_of_the_fact_sheet():
    forward = 2 * sum(
        layer.taps * layer.features_in * layer.features_out * (128 * layer.scale) ** 3
        for layer in unet3d.conv_layers(FULL, 3)
    )
    assert forward == pytest.approx(954.6e9, rel=1e-4)
    assert unet3d.flops_per_sample(FULL, 3, (128, 128, 128)) == pytest.approx(2860e9, rel=1e-3)


def test_initial_weights_are_torchs_uniform():
    """Bounds 1 / sqrt(fan-in); a transposed convolution counts its outputs, 8 times, as fan-in."""
    make = jax.jit(lambda: nnx.state(build((8, 16))), compiler_options=QUICK)
    weights = flat(make())
    bounds = {
        "input/conv1/kernel": 27,
        "down/0/conv1/kernel": 8 * 27,
        "up/1/double/kernel": 8 * 8,
        "up/1/double/bias": 8 * 8,
        "up/1/block/conv1/kernel": 16 * 27,
        "head/kernel": 8,
    }
    for path, fan_in in bounds.items():
        value = np.abs(weights[path]) * np.sqrt(fan_in)
        assert value.max() <= 1
        assert value.max() > (0.98 if value.size > 100 else 0.6), path
        if value.size > 1000:
            assert value.mean() == pytest.approx(0.5, abs=0.03), path
    assert (weights["input/norm1/scale"] == 1).all()
    assert (weights["input/norm1/bias"] == 0).all()


def test_initial_loss_is_that_of_the_fact_sheet():
    image = jnp.asarray(reference.patches(2, 16))[..., None]
    label = jnp.asarray(reference.labels(2, 16))

    def loss(key):
        return dice_xent(unet3d.UNet3D((8, 16), 3, jnp.float32, rngs=nnx.Rngs(key))(image), label)

    losses = [jax.jit(loss, compiler_options=QUICK)(jax.random.key(seed)) for seed in range(3)]
    assert 0.85 < min(losses) <= max(losses) < 1.3


# -- torch -------------------------------------------------------------------------------------


def test_logits_equal_torchs_in_float32():
    graph, state = imported(jnp.float32)
    image = jnp.asarray(reference.patches(*reference.PATCHES))[:1, ..., None]
    logits = jax.jit(lambda s, x: nnx.merge(graph, s)(x), compiler_options=QUICK)(state, image)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, stored()["float32/logits"], rtol=1e-4, atol=1e-4)


def test_loss_and_gradients_equal_torchs_in_float64():
    with jax.enable_x64(True):
        graph, state = imported(jnp.float64)
        image = jnp.asarray(reference.patches(*reference.PATCHES), jnp.float64)[..., None]
        label = jnp.asarray(reference.labels(*reference.PATCHES))

        def loss(state):
            logits = nnx.merge(graph, state)(image)
            return dice_xent(logits, label), logits.sum((1, 2, 3))

        both = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK)
        (value, sums), grads = both(state)
    np.testing.assert_allclose(value, stored()["loss"], rtol=1e-12)
    np.testing.assert_allclose(sums, stored()["logits_sum"], rtol=1e-9)
    grads = {f"params/{path}": np.asarray(g) for path, g in flat(grads).items()}
    # what torch calls each gradient: the importer carries them to our names and layouts
    for name in reference.shapes(reference.FILTERS, reference.CLASSES):
        marked = {n: np.zeros(s) for n, s in reference.shapes(reference.FILTERS, 3).items()}
        marked[name] = np.ones_like(marked[name])
        (path,) = [p for p, v in from_torch(marked, reference.FILTERS).items() if v.any()]
        norm = np.linalg.norm(grads[path])
        np.testing.assert_allclose(norm, stored()[f"grad_norm/{name}"], rtol=1e-7, atol=1e-12)
    zeros = {n: np.zeros(s) for n, s in reference.shapes(reference.FILTERS, 3).items()}
    theirs = {n.removeprefix("grad/"): v for n, v in stored().items() if n.startswith("grad/")}
    carried = from_torch({**zeros, **theirs}, reference.FILTERS)
    compared = 0
    for path, value in carried.items():
        if value.any():
            np.testing.assert_allclose(grads[path], value, rtol=1e-7, atol=1e-12)
            compared += 1
    assert compared == len(theirs) == 6


def test_importer_takes_the_full_network():
    shapes = reference.shapes(FULL, 3)
    broadcast = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    found = from_torch(broadcast, FULL)
    wanted = flat(nnx.state(nnx.eval_shape(lambda: build(FULL))))
    assert {path: v.shape for path, v in found.items()} == {
        f"params/{path}": v.shape for path, v in wanted.items()
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("bottleneck.conv2.0.weight"), "bottleneck.conv2.0.weight is missing"),
        (lambda s: s.update(extra=np.zeros(3)), "extra is unexpected"),
        (
            lambda s: s.update({"input_block.conv1.0.weight": np.zeros((4, 1, 3, 3, 2))}),
            "has shape",
        ),
        (lambda s: s.pop("output.conv.bias"), r"output\.conv\.bias is missing"),
    ],
)
def test_importer_names_what_is_wrong(change, said):
    state = reference.weights()
    change(state)
    with pytest.raises(UserError, match=said):
        from_torch(state, reference.FILTERS)


# -- the module --------------------------------------------------------------------------------


def test_a_patch_that_cannot_be_halved_is_refused():
    with pytest.raises(UserError, match=r"12x16x16 cannot be halved 3 times.* multiple of 8"):
        jax.eval_shape(lambda: build((4, 8, 8))(jnp.zeros((1, 12, 16, 16, 1))))


def test_bfloat16_computes_narrow_and_keeps_wide():
    model = nnx.eval_shape(lambda: build((4, 8), jnp.bfloat16))
    assert {leaf.dtype for leaf in flat(nnx.state(model)).values()} == {jnp.dtype("float32")}
    logits = jax.eval_shape(
        lambda: build((4, 8), jnp.bfloat16)(jnp.zeros((1, 16, 16, 16, 1), jnp.float32))
    )
    assert logits.dtype == jnp.float32
    block = jax.eval_shape(
        lambda: build((4, 8), jnp.bfloat16).input(
            jnp.zeros((1, 16, 16, 16, 1), jnp.float32), Blocks((16, 16, 16)), Blocks((16, 16, 16))
        )
    )
    assert block.dtype == jnp.bfloat16
