"""ResNet against the fact sheet's tables and against torch (scripts/make_resnet_reference.py)."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlperf_jax.errors import UserError
from mlperf_jax.models import resnet
from mlperf_jax.ops import norm
from mlperf_jax.ops.losses import softmax_xent
from scripts import make_resnet_reference as reference

R50 = {"stages": (3, 4, 6, 3), "width": 64, "classes": 1000}
TINY = {"stages": (1, 1, 1, 1), "width": 16, "classes": 10}


def build(sizes, dtype=jnp.float32, bn_span=None, **options):
    return resnet.ResNet(**sizes, bn_span=bn_span, dtype=dtype, rngs=nnx.Rngs(0), **options)


def abstract(sizes, *args, **options):
    return nnx.eval_shape(lambda: build(sizes, *args, **options))


def trace(sizes, side, **options):
    """The shape and dtype of a forward pass, traced only."""
    return jax.eval_shape(lambda: build(sizes, **options)(jnp.zeros((2, side, side, 3))))


def flat(tree, prefix=""):
    """Path -> array of a module's state or a nested dict."""
    if isinstance(tree, nnx.State):
        tree = nnx.to_pure_dict(tree)
    if not isinstance(tree, dict):
        return {prefix.removesuffix("/"): tree}
    return {
        path: leaf
        for key, value in tree.items()
        for path, leaf in flat(value, f"{prefix}{key}/").items()
    }


def nested(arrays):
    """The nested dict of string keys that importers make, from paths."""
    tree = {}
    for path, value in arrays.items():
        *parents, leaf = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[leaf] = value
    return tree


def filled(sizes, values, dtype=jnp.float32, **options):
    """(graphdef, params, stats) of a model with the given arrays by path; nothing is initialised."""
    model = abstract(sizes, dtype, **options)
    state = [
        (path, v.replace(jnp.asarray(values["/".join(map(str, path))], v.dtype)))
        for path, v in nnx.to_flat_state(nnx.state(model))
    ]
    nnx.update(model, nnx.from_flat_state(state))
    return nnx.split(model, nnx.Param, ...)


def imported(sizes):
    """The generator script's weights by path."""
    params, stats = resnet.from_torchvision(torch_weights(*sizes.values()), **sizes)
    return {**flat(params), **flat(stats)}


@functools.cache
def torch_weights(*sizes):
    """Name -> array, as the generator script filled torch's network."""
    leaves = resnet.leaves(*sizes)
    return {leaf.name: reference.weight(leaf.name, leaf.shape) for leaf in leaves}


@functools.cache
def torch_results():
    return dict(np.load(reference.OUTPUT))


# -- sizes -----------------------------------------------------------------------------------------


def test_parameter_table():
    params = flat(nnx.state(abstract(R50), nnx.Param))
    counts = {}
    for path, leaf in params.items():
        module = path.split("/")[0]
        module = "/".join(path.split("/")[:2]) if module == "stages" else module
        counts[module] = counts.get(module, 0) + leaf.size
    assert counts == {
        "stem": 9_536,
        "stages/0": 215_808,
        "stages/1": 1_219_584,
        "stages/2": 7_098_368,
        "stages/3": 14_964_736,
        "head": 2_049_000,
    }
    assert sum(counts.values()) == 25_557_032
    assert len(params) == 161
    assert sum(path.endswith("kernel") for path in params) == 53 + 1
    assert sum(path.endswith("scale") for path in params) == 53


def test_statistics_and_1001_classes():
    assert sum(v.size for v in flat(nnx.state(abstract(R50), nnx.BatchStat)).values()) == 53_120
    with_background = flat(nnx.state(abstract({**R50, "classes": 1001}), nnx.Param))
    assert sum(v.size for v in with_background.values()) == 25_559_081


def test_paths():
    state = flat(nnx.state(abstract(TINY)))
    block = {path.removeprefix("stages/1/0/") for path in state if path.startswith("stages/1/0/")}
    leaves = ("scale", "bias", "mean", "var")
    assert block == {
        *(f"conv{k}/kernel" for k in (1, 2, 3)),
        *(f"norm{k}/{leaf}" for k in (1, 2, 3) for leaf in leaves),
        "shortcut/conv/kernel",
        *(f"shortcut/norm/{leaf}" for leaf in leaves),
    }
    rest = {path for path in state if not path.startswith("stages/")}
    assert rest == {
        "stem/conv/kernel",
        *(f"stem/norm/{leaf}" for leaf in leaves),
        "head/kernel",
        "head/bias",
    }


@pytest.mark.parametrize("padding", ["same", "symmetric"])
def test_shapes_inside(monkeypatch, padding):
    seen = []

    def spy(cls):
        call = cls.__call__

        def wrapped(self, x):
            y = call(self, x)
            seen.append(y.shape[1:])
            return y

        monkeypatch.setattr(cls, "__call__", wrapped)

    spy(resnet.ConvNorm)  # the stem, then the shortcut of each stage
    spy(resnet.Bottleneck)
    logits = trace(R50, 224, padding=padding)
    assert seen.pop(0) == (112, 112, 64)
    stages = [(56, 56, 256), (28, 28, 512), (14, 14, 1024), (7, 7, 2048)]
    assert seen == [shape for shape, n in zip(stages, (4, 5, 7, 4)) for _ in range(n)]
    assert logits.shape == (2, 1000)


def test_span_reaches_every_norm():
    modules = [module for _, module in nnx.iter_modules(abstract(R50, bn_span=204))]
    spans = [module.span for module in modules if isinstance(module, norm.BatchNorm)]
    assert spans == [204] * 53


def test_flops():
    forward = resnet.flops_per_sample(**R50, image_size=224, training=False)
    assert forward == pytest.approx(2 * 4.0892e9, rel=1e-4)
    assert resnet.flops_per_sample(**R50, image_size=224) == pytest.approx(24.30e9, rel=3e-4)
    first = 2 * 112 * 112 * 64 * 7 * 7 * 3
    assert resnet.flops_per_sample(**R50, image_size=224) == 3 * forward - first


@pytest.mark.parametrize("side", [32, 45])
def test_flops_equal_what_is_traced(monkeypatch, side):
    """The count follows the shapes of the convolutions that really run."""
    counted = []
    conv2d = resnet.convs.conv2d

    def spy(x, kernel, **options):
        y = conv2d(x, kernel, **options)
        counted.append(2 * math.prod(y.shape[1:]) * math.prod(kernel.shape[:3]))
        return y

    monkeypatch.setattr(resnet.convs, "conv2d", spy)
    sizes = {"stages": (1, 2, 1), "width": 8, "classes": 5}
    trace(sizes, side)
    forward = resnet.flops_per_sample(**sizes, image_size=side, training=False)
    assert forward == sum(counted) + 2 * 8 * 4 * 4 * 5


# -- initialisation --------------------------------------------------------------------------------


def test_initial_values_follow_their_laws():
    sizes = {"stages": (1, 1), "width": 32, "classes": 10}
    params = flat(jax.jit(lambda: nnx.to_pure_dict(nnx.state(build(sizes), nnx.Param)))())
    assert len(params) == 9 * 3 + 2
    for path, value in params.items():
        value = np.asarray(value)
        if path.endswith("scale"):
            assert (value == 1).all()
        elif path.endswith("bias"):
            assert (value == 0).all()
        elif path == "head/kernel":
            assert value.std() == pytest.approx(0.01, rel=0.05)
            assert abs(value).max() > 0.03  # a plain normal, not cut at two sigma
        else:
            sigma = math.sqrt(2 / math.prod(value.shape[:3]))
            assert value.std() == pytest.approx(sigma, rel=0.08), path
            assert abs(value).max() <= 2 * sigma / 0.87962566 * (1 + 1e-6)
            assert abs(value).max() > 1.9 * sigma


def test_initial_statistics():
    stats = flat(jax.jit(lambda: nnx.to_pure_dict(nnx.state(build(TINY), nnx.BatchStat)))())
    for path, value in stats.items():
        assert (value == (1 if path.endswith("var") else 0)).all()


def test_zero_gamma_zeroes_the_last_norm_of_each_block():
    @jax.jit
    def scales():
        params = flat(nnx.state(build(TINY, zero_gamma=True), nnx.Param))
        return {path: v for path, v in params.items() if path.endswith("scale")}

    zeros = {path for path, v in scales().items() if not v.any()}
    assert zeros == {f"stages/{i}/0/norm3/scale" for i in range(4)}


def test_initial_loss():
    """ResNet-50's 7.00, with zero-gamma 6.91, on images like 8-bit ones; here of side 64.

    Kernels follow the law of the test above but are drawn by NumPy: compiling 54 draws takes longer
    than the network.
    """
    draw = np.random.RandomState(0)

    def initial(path, shape):
        if path == "head/kernel":
            return draw.standard_normal(shape) * 0.01
        if path.endswith("kernel"):
            values = draw.standard_normal(shape)
            while (outside := abs(values) > 2).any():
                values[outside] = draw.standard_normal(outside.sum())
            return values * math.sqrt(2 / math.prod(shape[:3])) / 0.87962566
        return np.full(shape, float(path.endswith(("scale", "var"))))

    values = {path: initial(path, v.shape) for path, v in flat(nnx.state(abstract(R50))).items()}
    graphdef, params, stats = filled(R50, values)
    image = draw.randint(0, 256, (16, 64, 64, 3)) - (123.68, 116.78, 103.94)

    @jax.jit
    def logits(params, stats):
        return nnx.merge(graphdef, params, stats, copy=True)(jnp.asarray(image, jnp.float32))

    plain = logits(params, stats)
    for stage in params["stages"].values():
        for block in stage.values():
            block["norm3"]["scale"] = block["norm3"]["scale"].replace(
                jnp.zeros_like(block["norm3"]["scale"])
            )
    zero_gamma = logits(params, stats)
    label = jnp.arange(16) * 60
    assert softmax_xent(plain, label) == pytest.approx(7.00, abs=0.1)
    assert softmax_xent(zero_gamma, label) == pytest.approx(6.91, abs=0.05)
    assert plain.std() == pytest.approx(0.47, abs=0.1)
    assert zero_gamma.std() == pytest.approx(0.18, abs=0.06)


# -- parity with torch -----------------------------------------------------------------------------


@pytest.mark.parametrize("padding", reference.PADDINGS)
def test_resnet50_logits_equal_torch(padding):
    weights = imported(reference.FULL)
    graphdef, params, stats = filled(reference.FULL, weights, padding=padding)

    @jax.jit
    def evaluate(params, stats, image):
        model = nnx.merge(graphdef, params, stats, copy=True)
        return nnx.view(model, use_running_average=True)(image)

    logits = evaluate(params, stats, reference.images(*reference.FULL_IMAGES))
    expected = torch_results()[f"full/{padding}/logits"]
    assert expected.std() > 1  # the comparison means something
    # float32 through 53 layers; 1e-5 is what two libraries differ by
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def trained_once(padding, dtype):
    """(loss, logits, params' gradients and new statistics under torch's names) of one batch."""
    weights = imported(reference.SMALL)
    graphdef, params, stats = filled(reference.SMALL, weights, dtype, padding=padding)
    count, side = reference.SMALL_IMAGES
    image = jnp.asarray(reference.images(count, side), dtype)
    label = jnp.asarray(reference.labels(count, reference.SMALL["classes"]))

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def step(params, stats, image):
        model = nnx.merge(graphdef, params, stats, copy=True)
        logits = model(image)
        return softmax_xent(logits, label, reference.SMOOTHING), (
            logits,
            nnx.state(model, nnx.BatchStat),
        )

    (loss, (logits, stats)), grads = step(params, stats, image)
    torch_like = resnet.to_torchvision(nested(flat(grads)), nested(flat(stats)))
    return loss, logits, torch_like


@pytest.mark.parametrize(
    ("padding", "dtype", "tolerance"),
    [("symmetric", "float64", 1e-9), ("same", "float64", 1e-9), ("same", "float32", 1e-4)],
)
def test_training_equals_torch(padding, dtype, tolerance):
    with jax.enable_x64(dtype == "float64"):
        loss, logits, torch_like = trained_once(padding, jnp.dtype(dtype))
    key = f"small/{padding}/"
    expected = {k.removeprefix(key): v for k, v in torch_results().items() if k.startswith(key)}
    close = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
    assert loss.dtype == logits.dtype == dtype
    close(loss, expected.pop("loss"))
    close(logits, expected.pop("logits"))
    for name, value in expected.items():
        kind, name = name.split("/", 1)
        ours = torch_like[name]
        if kind == "grad_norm":
            close(np.linalg.norm(ours), value, rtol=10 * tolerance, err_msg=name)
        else:
            close(ours, value, atol=10 * tolerance, err_msg=name)
    kinds = [name.split("/")[0] for name in expected]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "stats": 2 * 20,
        "grad_norm": 62,
        "grad": 3,
    }


def test_the_two_paddings_differ():
    results = torch_results()
    difference = results["full/same/logits"] - results["full/symmetric/logits"]
    assert abs(difference).max() > 0.1


# -- importing -------------------------------------------------------------------------------------


def test_round_trip_through_torchvision():
    tensors = torch_weights(*TINY.values())
    params, stats = resnet.from_torchvision(tensors, **TINY)
    model = {path: v.shape for path, v in flat(nnx.state(abstract(TINY))).items()}
    assert {path: v.shape for path, v in {**flat(params), **flat(stats)}.items()} == model
    back = resnet.to_torchvision(params, stats)
    counters = {name for name in back if name.endswith("num_batches_tracked")}
    assert back.keys() - counters == tensors.keys()
    assert len(counters) == 17
    for name, value in tensors.items():
        np.testing.assert_array_equal(back[name], value)
    again, _ = resnet.from_torchvision(back, **TINY)  # the counters are ignored
    np.testing.assert_array_equal(again["head"]["kernel"], tensors["fc.weight"].T)


def test_from_torchvision_has_torchvisions_names():
    names = {leaf.name for leaf in resnet.leaves(*R50.values())}
    assert len(names) == 161 + 106
    assert {
        "conv1.weight",
        "bn1.running_var",
        "layer1.0.downsample.1.bias",
        "layer3.5.conv2.weight",
        "layer4.2.bn3.running_mean",
        "fc.bias",
    } <= names


def test_from_torchvision_says_what_does_not_fit():
    tensors = dict(torch_weights(*TINY.values()))
    tensors["conv1.weight"] = tensors["conv1.weight"].transpose(2, 3, 1, 0)
    del tensors["layer2.0.bn1.bias"]
    tensors["aux.weight"] = np.zeros(3)
    with pytest.raises(UserError) as caught:
        resnet.from_torchvision(tensors, **TINY)
    message = str(caught.value)
    assert "layer2.0.bn1.bias is missing" in message
    assert "aux.weight is unexpected" in message
    assert "conv1.weight has shape (7, 7, 3, 16), not (16, 3, 7, 7)" in message
    with pytest.raises(UserError, match=r"stages \(3, 4, 6, 3\).*and \d+ more"):
        resnet.from_torchvision(torch_weights(*TINY.values()))


# -- the rest --------------------------------------------------------------------------------------


def test_bfloat16_runs_finite_and_keeps_what_must_be_wide():
    loss, logits, torch_like = trained_once("same", jnp.bfloat16)
    assert logits.dtype == loss.dtype == jnp.float32
    assert {v.dtype.name for v in torch_like.values()} == {"float32", "int64"}
    assert all(np.isfinite(v).all() for v in torch_like.values())
    assert loss == pytest.approx(float(torch_results()["small/same/loss"]), rel=0.02)


def test_unknown_padding():
    with pytest.raises(UserError, match="padding 'valid'"):
        abstract(TINY, padding="valid")
