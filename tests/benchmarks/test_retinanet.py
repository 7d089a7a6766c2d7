"""RetinaNet's recipes, schedule, start weights, scaling of boxes and log, against the rules."""

import functools
import itertools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlperf_jax import benchmarks
from mlperf_jax.benchmarks.retinanet import BACKBONE, RetinaNet
from mlperf_jax.core import evaluation, mesh as meshes, preflight, starts, state, step
from mlperf_jax.core.benchmark import Target
from mlperf_jax.errors import UserError
from mlperf_jax.models import resnext, retinanet
from mlperf_jax.optimizers import ParamTree
from mlperf_jax.results import rcp

SMALL = dict(stages=(1, 1, 1, 1), width=8, groups=4, image_size=64, anchor_size=16)


def tiny(**changes):
    return preflight.resolve_dtype(benchmarks.get("retinanet", tiny=True, **changes))


def test_recipes_equal_the_reference_convergence_points() -> None:
    points = rcp.points_of("retinanet", "5.1.0")
    recipes = RetinaNet.recipes()
    assert {point.batch_size for point in points} == set(recipes)
    for point in points:
        recipe, given = recipes[point.batch_size], point.hyperparameters
        assert recipe.base_lr == given["opt_base_learning_rate"]
        assert recipe.warmup_epochs == given["opt_learning_rate_warmup_epochs"]
        assert recipe.warmup_factor == given["opt_learning_rate_warmup_factor"]
        assert recipe.last_sample > max(point.lengths) * recipe.train_samples
    assert RetinaNet() == recipes[256]


def test_an_epoch_drops_its_remainder_and_ends_with_an_evaluation() -> None:
    assert list(itertools.islice(RetinaNet().eval_steps(), 3)) == [4571, 9142, 13713]
    assert RetinaNet().position(4571)["epoch_num"] == 1
    assert RetinaNet().eval_rows == 256


def test_learning_rate_warms_up_from_the_factor_and_stays() -> None:
    rate = RetinaNet().learning_rate()
    np.testing.assert_allclose(rate(0), 1e-7, rtol=1e-6)
    middle = 1e-4 * (0.001 * (1 - 2000 / 4571) + 2000 / 4571)
    np.testing.assert_allclose(rate(2000), middle, rtol=1e-5)
    for later in (4571, 100_000):
        np.testing.assert_allclose(rate(later), 1e-4, rtol=1e-6)
    np.testing.assert_allclose(RetinaNet(warmup_epochs=0).learning_rate()(0), 1e-4, rtol=1e-6)


def test_adam_has_no_decay_and_no_clipping() -> None:
    params = {"a": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    recipe = RetinaNet(warmup_epochs=0)
    tx = recipe.optimizer(ParamTree.from_params(params))
    opt = tx.init(params)
    mean, square = np.zeros((2, 2)), np.zeros((2, 2))
    for count, size in enumerate((1e3, 0.5), 1):
        grads = jax.tree.map(lambda p, s=size: s * p, params)
        updates, opt = tx.update(grads, opt, params)
        mean, square = 0.9 * mean + 0.1 * size, 0.999 * square + 0.001 * size**2
        wanted = -1e-4 * (mean / (1 - 0.9**count)) / (np.sqrt(square / (1 - 0.999**count)) + 1e-8)
        np.testing.assert_allclose(updates["a"]["kernel"], wanted, rtol=1e-4)
    assert recipe.clip_norm is None


def test_logged_keys_and_values() -> None:
    assert preflight.full_log(RetinaNet()) == {
        "global_batch_size": 256,
        "gradient_accumulation_steps": 1,
        "train_samples": 1_170_301,
        "eval_samples": 24_781,
        "opt_name": "adam",
        "opt_base_learning_rate": 1e-4,
        "opt_weight_decay": 0,
        "opt_learning_rate_warmup_epochs": 1,
        "opt_learning_rate_warmup_factor": 0.001,
    }


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"image_size": 640}, "image_size"),
        ({"trainable_stages": 5}, "trainable_stages"),
        ({"pretrained": False}, "pretrained"),
        ({"classes": 80}, "classes"),
        ({"score_threshold": 0.01}, "score_threshold"),
        ({"detections": 100}, "detections"),
        ({"flip": False}, "flip"),
        ({"clip_norm": 1.0}, "clip_norm"),
        ({"targets": (Target("mAP", at_least=0.3),)}, "0.34"),
        ({"train_samples": 1_000_000}, "train_samples"),
    ],
)
def test_closed_refuses_what_the_rules_do_not_allow(changes: dict, word: str) -> None:
    with pytest.raises(UserError, match=word):
        preflight.resolve_division(RetinaNet(**changes), benchmarks.RunOptions(division="closed"))


def test_fields_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="stages must be 4 whole numbers"):
        RetinaNet(stages=(3, 4, 6))
    with pytest.raises(UserError, match="trainable_stages must be a whole number, from 0 to 5"):
        RetinaNet(trainable_stages=6)


# -- what is frozen, and the start -----------------------------------------------------------------


def test_trained_and_frozen_counts_of_the_fact_sheet() -> None:
    assembly = state.assemble(RetinaNet(dtype="float32"), meshes.make_mesh("data=1"))
    frozen = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(assembly.abstract["frozen"]))
    assert assembly.tree.count() == 36_849_004 == RetinaNet.parameters
    assert frozen == 9_408 + 202_240
    assert set(assembly.abstract["frozen"]["body"]["stages"]) == {"0"}
    assert not state.assemble(tiny(), meshes.make_mesh("data=1")).abstract["frozen"]


def drawn(assembly: state.Assembly) -> dict:
    """A state of random weights and norms that do nothing; compiles nothing, unlike `create`."""
    draw = np.random.RandomState(0)

    def leaf(path, shape):
        if path[0].key == "stats":
            return jnp.ones(shape.shape, shape.dtype)
        return jnp.asarray(0.05 * draw.standard_normal(shape.shape), shape.dtype)

    return jax.tree_util.tree_map_with_path(leaf, assembly.abstract)


def backbone_of(sizes: dict) -> dict[str, np.ndarray]:
    """A classifier's state dict by torchvision's names."""
    draw = np.random.RandomState(0)
    leaves = resnext.leaves(sizes["stages"], sizes["width"], sizes["groups"])
    return {name: draw.standard_normal(shape).astype(np.float32) for _, name, shape in leaves}


def test_backbone_weights_come_from_the_data_folder(tmp_path: pathlib.Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    benchmark = tiny(pretrained=True, trainable_stages=3, **SMALL)
    with pytest.raises(UserError, match=rf"{BACKBONE} is missing.*weights_only=True"):
        benchmark.start(str(tmp_path))
    (tmp_path / BACKBONE).write_bytes(b"\x80\x02}q\x00.")  # a pickle under that name
    with pytest.raises(UserError, match=r"no whole safetensors file"):
        benchmark.start(str(tmp_path))
    tensors = backbone_of(SMALL)
    numpy.save_file(tensors, tmp_path / BACKBONE)
    start = benchmark.start(str(tmp_path))
    assembly = state.assemble(benchmark, meshes.make_mesh("data=1"))
    begun = starts.begin_from(drawn(assembly), start)
    stem = begun["frozen"]["body"]["stem"]["conv"]["kernel"]
    np.testing.assert_array_equal(stem, tensors["conv1.weight"].transpose(2, 3, 1, 0))
    norm = begun["stats"]["body"]["stages"]["2"]["0"]["norm2"]["var"]
    np.testing.assert_array_equal(norm, tensors["layer3.0.bn2.running_var"])
    trained = begun["params"]["body"]["stages"]["1"]["0"]["conv1"]["kernel"]
    np.testing.assert_array_equal(trained[0, 0], tensors["layer2.0.conv1.weight"][:, :, 0, 0].T)
    assert len(start.weights) == len(tensors)
    assert tiny().start(str(tmp_path)) is None


# -- boxes between the original and the network's input --------------------------------------------


def test_what_is_found_is_scaled_back_and_scored() -> None:
    """An anchor's own box, in an image of another shape, gives mAP 1 against the box it stands for."""
    benchmark = tiny(max_boxes=2)
    side, anchors = benchmark.image_size, benchmark.anchors()
    chosen = (0, 600), (1, 150)  # (level, anchor): inside the image, of different sizes
    logits = [np.full((1, len(a), 3), -9.0, np.float32) for a in anchors]
    deltas = [jnp.zeros((1, len(a), 4)) for a in anchors]
    truth = []
    for kind, (level, at) in enumerate(chosen):
        logits[level][0, at, kind] = 3.0
        truth.append(np.clip(anchors[level][at], 0, side))
    size = np.array([[60, 150]], np.int32)
    stretch = np.array([150, 60, 150, 60]) / side
    batch = {
        "image": jnp.zeros((1, side, side, 3)),
        "size": size,
        "boxes": (np.array(truth) * stretch)[None].astype(np.float32),
        "label": np.array([[0, 1]], np.int32),
        "crowd": np.zeros((1, 2), np.int32),
        "image_id": np.array([5], np.int32),
    }

    def model(image, wide=False, flat=True):
        return retinanet.Outputs([jnp.asarray(x) for x in logits], deltas)

    @jax.jit
    def both(batch):
        return benchmark.predict(model, batch, None), benchmark.loss(model, batch, None)

    rows, (loss, scalars) = jax.tree.map(np.asarray, both(batch))
    np.testing.assert_allclose(rows["boxes"][0, :2], batch["boxes"][0], rtol=1e-5)
    assert benchmark.metric.result(rows)["mAP"] == pytest.approx(1)
    # and the loss has the boxes where the anchors are
    np.testing.assert_allclose(loss, sum(scalars.values()), rtol=1e-6)
    same = jax.jit(lambda *a: retinanet.detection_loss(model(None), anchors, *a))
    wanted = same(np.array(truth, np.float32)[None], np.array([[0, 1]]))
    found = scalars["classification_loss"], scalars["box_loss"]
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_rows_of_two_meshes_and_a_padded_batch_score_the_same(tmp_path: pathlib.Path) -> None:
    """Eight shards and a padded last batch against one device and whole batches."""
    tiny().data().build(str(tmp_path))
    found = []
    for size, mesh in ((96, "data=1"), (40, "data=8")):
        benchmark = tiny(eval_batch_size=size, **SMALL)
        assembly = state.assemble(benchmark, meshes.make_mesh(mesh))
        evaluator = evaluation.Evaluator(assembly, 0, str(tmp_path), threads=2)
        weights = drawn(assembly)
        # all scores above the threshold, so that there is something to find
        head = weights["params"]["classification"]["head"]
        head["bias"] = jax.device_put(np.full(head["bias"].shape, -2, np.float32))
        rows = evaluator.outputs(jax.device_put(weights, assembly.shardings), 1)
        assert rows["image_id"].shape == (96,)
        found.append((rows, benchmark.metric.result(rows)))
    (one, quality), (eight, other) = found
    assert (one["classes"] >= 0).any()
    np.testing.assert_array_equal(one["image_id"], eight["image_id"])
    np.testing.assert_array_equal(one["true_boxes"], eight["true_boxes"])
    np.testing.assert_allclose(one["scores"], eight["scores"], atol=1e-5)
    assert quality["mAP"] == pytest.approx(other["mAP"], abs=1e-3)


# -- the figures to reach --------------------------------------------------------------------------


def test_matching_and_loss_keep_their_temporaries_small() -> None:
    """8 images of 800 x 800, 120,087 anchors, 264 classes: under 256 MiB beyond logits and gradient."""
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    anchors = RetinaNet().anchors()
    logits = [shape((8, len(a), 264)) for a in anchors]
    deltas = [shape((8, len(a), 4)) for a in anchors]

    def loss(logits, deltas, boxes, label):
        outputs = retinanet.Outputs(logits, deltas)
        return sum(retinanet.detection_loss(outputs, anchors, boxes, label))

    places = RetinaNet().max_boxes
    label = jax.ShapeDtypeStruct((8, places), jnp.int32)
    program = jax.jit(jax.grad(loss, argnums=(0, 1)))
    compiled = program.lower(logits, deltas, shape((8, places, 4)), label).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 256 * 2**20


def test_evaluation_moves_nothing_between_devices() -> None:
    """Each device selects and suppresses among its own images; left alone, `top_k` gathers them all."""
    benchmark = tiny(**SMALL)
    assembly = state.assemble(benchmark, meshes.make_mesh("data=4,fsdp=2"))
    compiled = assembly.compile(
        jax.jit(lambda x: benchmark.predict(raw, x, None)), predict_batch(assembly)
    )
    assert not re.findall(r"all-gather|all-to-all|collective-permute", compiled.as_text())


def raw(image, wide=False):
    """Raw outputs that follow from the images alone."""
    levels = benchmarks.get("retinanet", tiny=True, **SMALL).anchors()
    seen = image.mean((1, 2, 3))[:, None, None]
    logits = [seen + jnp.arange(3.0 * len(a)).reshape(1, -1, 3) for a in levels]
    return retinanet.Outputs(logits, [seen + jnp.zeros((1, len(a), 4)) for a in levels])


def predict_batch(assembly: state.Assembly) -> dict:
    benchmark = assembly.benchmark
    sharding = meshes.batch_sharding(assembly.mesh)
    return step.abstract_batch(benchmark.eval_buckets()[0], sharding)
