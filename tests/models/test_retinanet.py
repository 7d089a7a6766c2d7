"""RetinaNet against torchvision's: raw outputs, losses, matches, detections; sizes and counts of the fact sheet."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlperf_jax.errors import UserError
from mlperf_jax.models import resnext, retinanet
from mlperf_jax.models.fpn import upsample
from mlperf_jax.ops import anchors as anchorlib, detections, matching
from scripts import make_retinanet_reference as reference

ROOT = pathlib.Path(__file__).parents[2]
FULL = dict(stages=(3, 4, 6, 3), width=64, groups=32, pyramid_width=256, head_depth=4, classes=264)
SMALL = dict(stages=(1, 1, 1, 1), width=8, groups=4, pyramid_width=8, head_depth=1, classes=3)


@pytest.fixture(scope="module")
def saved():
    return np.load(reference.OUTPUT)


@pytest.fixture(scope="module")
def anchors():
    return anchorlib.pyramid(reference.SIDE)


@functools.cache
def tensors():
    shapes = reference.names_and_shapes()
    return {name: reference.weight(name, shape) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def outputs():
    """Our raw outputs with the reference's weights and images."""
    sizes = FULL | dict(stages=reference.STAGES, classes=reference.CLASSES)
    weights = retinanet.from_torchvision(tensors(), stages=reference.STAGES)
    model = nnx.eval_shape(
        lambda: retinanet.RetinaNet(**sizes, dtype=jnp.float32, rngs=nnx.Rngs(0))
    )
    fill(model, weights)
    pixels = jnp.asarray(reference.images().transpose(0, 2, 3, 1))
    graphdef, state = nnx.split(model)
    return jax.jit(lambda state, x: tuple(nnx.merge(graphdef, state)(x)))(state, pixels)


def fill(model, weights):
    """Puts weights by state path into a module; every variable must be given."""
    left = {path.partition("/")[2]: value for path, value in weights.items()}
    for path, variable in nnx.iter_graph(model):
        if isinstance(variable, nnx.Variable):
            value = left.pop("/".join(map(str, path)))
            assert value.shape == variable.shape, path
            variable.set_value(jnp.asarray(value))
    assert not left


def padded(places=6):
    """The reference's boxes and labels, with padding behind and between them."""
    boxes = np.zeros((reference.IMAGES, places, 4), np.float32)
    labels = np.full((reference.IMAGES, places), -1, np.int32)
    for row, (b, k) in enumerate(zip(reference.BOXES, reference.LABELS)):
        at = np.arange(len(k)) + (np.arange(len(k)) >= 2)  # place 2 stays empty
        boxes[row, at], labels[row, at] = b, k
    return jnp.asarray(boxes), jnp.asarray(labels)


# -- torchvision -----------------------------------------------------------------------------------


def test_raw_outputs_equal_torchvisions(outputs, saved):
    for ours, theirs in zip(outputs, (saved["logits"], saved["deltas"])):
        joined = np.concatenate(ours, 1)
        assert joined.shape[1] == len(saved["anchors"])
        np.testing.assert_allclose(joined[:, reference.SAMPLED], theirs, rtol=1e-4, atol=1e-4)
    assert np.abs(saved["logits"]).mean() > 0.1


def test_losses_equal_torchvisions(outputs, saved, anchors):
    boxes, labels = padded()
    found = jax.jit(lambda o, b, k: retinanet.detection_loss(retinanet.Outputs(*o), anchors, b, k))(
        outputs, boxes, labels
    )
    np.testing.assert_allclose(found, saved["losses"], rtol=1e-4)


def test_anchors_equal_torchvisions(saved, anchors):
    np.testing.assert_array_equal(np.concatenate(anchors), saved["anchors"])


def test_matches_equal_torchvisions(saved, anchors):
    """Foreground with its own box, background and ignored; low-quality matches are among them."""
    boxes, labels = padded()
    matches = jax.jit(matching.match)(np.concatenate(anchors), boxes, labels)
    wanted = saved["matched"]
    np.testing.assert_array_equal(matches.foreground, wanted >= 0)
    np.testing.assert_array_equal(matches.background, wanted == -1)
    assert (wanted == -2).any()
    for row in range(reference.IMAGES):
        inside = wanted[row] >= 0
        index = wanted[row][inside]
        np.testing.assert_array_equal(matches.boxes[row][inside], reference.BOXES[row][index])
        np.testing.assert_array_equal(matches.label[row][inside], reference.LABELS[row][index])


def test_detections_equal_torchvisions(saved, anchors):
    logits, deltas = reference.raw_outputs([len(level) for level in anchors])
    found = jax.jit(lambda x, y: detections.detect(x, y, anchors, reference.SIDE))(logits, deltas)
    np.testing.assert_allclose(found.scores, saved["detected_scores"], rtol=1e-5)
    np.testing.assert_array_equal(found.classes, saved["detected_labels"])
    np.testing.assert_allclose(found.boxes, saved["detected_boxes"], rtol=1e-4, atol=1e-3)
    assert (saved["detected_scores"] > 0).all()  # the cut at 300 is part of it


# -- counts and shapes -----------------------------------------------------------------------------


def test_parameter_counts_of_the_fact_sheet():
    model = nnx.eval_shape(lambda: retinanet.RetinaNet(**FULL, dtype=jnp.float32, rngs=nnx.Rngs(0)))

    def count(part):
        return sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(part, nnx.Param)))

    body = model.body
    counts = [count(body.stem), *(count(stage) for stage in body.stages)]
    assert counts == [9_408, 202_240, 1_187_840, 6_995_968, 14_516_224]
    assert count(model.pyramid) == 3_868_672
    assert count(model.classification) == 7_837_000
    assert count(model.regression) == 2_443_300
    assert count(model) == 37_060_652


def test_shapes_at_full_size():
    def make():
        model = retinanet.RetinaNet(**FULL, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
        image = jnp.zeros([1, 800, 800, 3])
        maps = model.pyramid(model.body(image)[-3:])
        return model.body(image), maps, model(image), model(image, wide=True)

    body, maps, raw, wide = jax.eval_shape(make)
    assert [x.shape[1:] for x in body] == [
        (200, 200, 256),
        (100, 100, 512),
        (50, 50, 1024),
        (25, 25, 2048),
    ]
    assert [x.shape[1:] for x in maps] == [(n, n, 256) for n in (100, 50, 25, 13, 7)]
    assert sum(x.shape[1] for x in raw.logits) == 120_087
    assert {x.dtype for x in jax.tree.leaves(raw)} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves(wide)} == {jnp.dtype(jnp.float32)}


def test_flops_of_the_fact_sheet():
    flops = functools.partial(retinanet.flops_per_sample, **FULL, image_size=800)
    assert flops(training=False) == pytest.approx(402.4e9, rel=1e-3)
    assert flops() == pytest.approx(1161e9, rel=1e-3)
    assert flops(trainable_stages=5) == pytest.approx(3 * 402.4e9, rel=3e-3)


# -- the start -------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("side", "smallest"))
def loss_of(logits, deltas, boxes, label, side=64, smallest=16):
    anchors = anchorlib.pyramid(side, smallest)
    return retinanet.detection_loss(retinanet.Outputs(logits, deltas), anchors, boxes, label)


def test_initial_classification_loss_follows_from_the_prior():
    """1.128 + 23.9 / foreground per image: 10 anchors in the foreground make 3.52."""

    @jax.jit
    def loss(box):
        anchors = anchorlib.pyramid(800)
        label = jnp.zeros((1, 1), jnp.int32)
        matches = matching.match(np.concatenate(anchors), box, label)
        logits = [jnp.full((1, len(a), 264), -4.59511985) for a in anchors]
        raw = retinanet.Outputs(logits, [jnp.zeros((1, len(a), 4)) for a in anchors])
        value, _ = retinanet.detection_loss(raw, anchors, box, label)
        counted = matches.foreground | matches.background
        return value, matches.foreground.sum(), counted.sum()

    value, inside, counted = loss(jnp.asarray([[[100.0, 100, 170, 140]]]))
    assert 5 < inside < 50
    np.testing.assert_allclose(value, 1.128 + 23.9 * (counted / 120_087) / inside, rtol=2e-3)


def test_an_image_without_a_box_is_all_background():
    anchors = anchorlib.pyramid(64, 16)
    logits = [np.full((2, len(a), 3), -2.0, np.float32) for a in anchors]
    deltas = [np.ones((2, len(a), 4), np.float32) for a in anchors]
    boxes, label = np.zeros((2, 4, 4), np.float32), np.full((2, 4), -1, np.int32)
    classification, box = loss_of(logits, deltas, boxes, label)
    p = 1 / (1 + np.exp(2))
    count = sum(map(len, anchors)) * 3
    np.testing.assert_allclose(classification, count * 0.75 * p**2 * -np.log(1 - p), rtol=1e-5)
    assert box == 0


def test_every_image_weighs_the_same():
    """num_fg is each image's own: the loss of two images is the mean of their losses alone."""
    anchors = anchorlib.pyramid(64, 16)
    draw = np.random.RandomState(0)
    logits = [draw.standard_normal((2, len(a), 3)).astype(np.float32) for a in anchors]
    deltas = [draw.standard_normal((2, len(a), 4)).astype(np.float32) for a in anchors]
    boxes = [[[5, 5, 30, 40], [30, 20, 60, 60]], [[10, 10, 20, 24], [0, 0, 0, 0]]]
    boxes, label = np.array(boxes, np.float32), np.array([[0, 2], [1, -1]], np.int32)

    def loss(rows):
        parts = [x[rows] for x in logits], [x[rows] for x in deltas]
        return np.array(loss_of(*parts, boxes[rows], label[rows]))

    first, second = slice(0, 1), slice(1, 2)
    np.testing.assert_allclose(loss(slice(0, 2)), (loss(first) + loss(second)) / 2, rtol=1e-6)


def test_initial_distributions():
    sizes = SMALL | dict(pyramid_width=64)

    @jax.jit
    def make():
        model = retinanet.RetinaNet(**sizes, dtype=jnp.float32, rngs=nnx.Rngs(0))
        pyramid, regression = model.pyramid, model.regression
        convs = model.classification.head, regression.tower[0], pyramid.inner[2], pyramid.p6
        return [(conv.kernel[...], conv.bias[...]) for conv in convs]

    made = make()
    for kernel, _ in made[:2]:
        assert abs(kernel.std() - 0.01) < 5e-4
    np.testing.assert_allclose(made[0][1], -4.59511985, rtol=1e-6)
    for kernel, _ in made[2:]:  # uniform within sqrt(3 / fan_in)
        bound = np.sqrt(3 / np.prod(kernel.shape[:3]))
        assert 0.98 * bound < abs(kernel).max() <= bound
        assert abs(kernel.std() / bound * np.sqrt(3) - 1) < 0.02
    assert all((bias == 0).all() for _, bias in made[1:])


# -- parts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "out"), [(13, 25), (25, 50), (1, 2), (1, 1), (4, 7)])
def test_upsampling_shows_the_nearest(side, out):
    x = jnp.arange(side**2, dtype=float).reshape(1, side, side, 1)
    at = np.arange(out) * side // out
    np.testing.assert_array_equal(upsample(x, (out, out)), x[:, at][:, :, at])


def test_upsampling_refuses_another_size():
    with pytest.raises(ValueError, match="cannot grow"):
        upsample(jnp.zeros([1, 4, 4, 1]), (9, 9))


def test_frozen_norm_is_four_constants():
    norm = resnext.FrozenNorm(2, dtype=jnp.float32)
    for name, values in dict(scale=[2, 3], bias=[1, -1], mean=[5, 6], var=[4, 9]).items():
        getattr(norm, name)[...] = jnp.asarray(values, jnp.float32)
    x = np.array([[7.0, 3.0]], np.float32)
    wanted = (x - [5, 6]) / np.sqrt([4 + 1e-5, 9 + 1e-5]) * [2, 3] + [1, -1]
    np.testing.assert_allclose(norm(jnp.asarray(x)), wanted, rtol=1e-6)
    assert not jax.tree.leaves(nnx.state(norm, nnx.Param))


def test_frozen_patterns_and_parts_agree():
    assert retinanet.frozen_patterns(5) == ()
    assert retinanet.frozen_patterns(4) == ("body/stem/.*",)
    paths = retinanet.from_torchvision(tensors(), stages=reference.STAGES)
    frozen = {path for path in paths if path.startswith("frozen/")}
    assert len(frozen) == 1 + 4  # the stem's kernel, and those of the first block
    assert all(path.startswith(("frozen/body/stem/", "frozen/body/stages/0/")) for path in frozen)
    stats = {path for path in paths if path.startswith("stats/")}
    assert all("/norm" in path for path in stats)
    trained = retinanet.from_torchvision(tensors(), stages=reference.STAGES, trainable_stages=5)
    assert not any(path.startswith("frozen/") for path in trained)


def test_a_classifiers_weights_give_the_body():
    prefix = "backbone.body."
    classifier = {n.removeprefix(prefix): t for n, t in tensors().items() if n.startswith(prefix)}
    extra = {"fc.weight": np.zeros((1000, 2048)), "fc.bias": np.zeros(1000)}
    extra["bn1.num_batches_tracked"] = np.zeros(())
    found = retinanet.from_torchvision(classifier | extra, stages=reference.STAGES)
    whole = retinanet.from_torchvision(tensors(), stages=reference.STAGES)
    assert found.keys() == {path for path in whole if "/body/" in path}
    kernel = found["params/body/stages/1/1/conv2/kernel"]
    assert kernel.shape == (3, 3, 8, 256)
    theirs = classifier["layer2.1.conv2.weight"]
    np.testing.assert_array_equal(kernel[1, 2, 3, 40], theirs[40, 3, 1, 2])


def test_wrong_weights_are_named():
    given = dict(tensors())
    with pytest.raises(UserError, match=r"layer1.1.*is missing"):
        retinanet.from_torchvision(given, stages=(2, 2, 1, 1))
    with pytest.raises(UserError, match=r"layer2.1.bn1.weight is unexpected"):
        retinanet.from_torchvision(given, stages=(1, 1, 1, 1))
    with pytest.raises(UserError, match=r"conv2.weight has shape .* not \(128, 8, 3, 3\)"):
        retinanet.from_torchvision(given, stages=reference.STAGES, groups=16)
    odd = given | {"roi_heads.x.weight": np.zeros(1)}
    with pytest.raises(UserError, match=r"hold 'roi_heads.x.weight', which no RetinaNet has"):
        retinanet.from_torchvision(odd, stages=reference.STAGES)
