"""3D U-Net's recipes, schedule, evaluation and log, against the rules and the reference points."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlperf_jax import benchmarks
from mlperf_jax.benchmarks.unet3d import UNet3D
from mlperf_jax.core import evaluation, mesh as meshes, preflight, state
from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import pipeline
from mlperf_jax.input_pipelines.sources import Arrays
from mlperf_jax.optimizers import ParamTree
from mlperf_jax.results import rcp, rules

FIELDS = {
    "opt_base_learning_rate": "base_lr",
    "opt_momentum": "momentum",
    "opt_weight_decay": "weight_decay",
    "opt_learning_rate_decay_factor": "lr_decay_factor",
}


# -- recipes and schedules ---------------------------------------------------------------------


def test_recipes_equal_the_reference_convergence_points() -> None:
    """The file gives the warm-up in samples, and runs' lengths in samples too."""
    points = rcp.points_of("unet3d", "4.0.0")
    recipes = UNet3D.recipes()
    assert {point.batch_size for point in points} | {2} == set(recipes)
    for point in points:
        recipe = recipes[point.batch_size]
        for key, field in FIELDS.items():
            assert getattr(recipe, field) == point.hyperparameters[key], (point.batch_size, key)
        boundaries = point.hyperparameters["opt_learning_rate_decay_boundary_epochs"]
        assert list(recipe.lr_decay_epochs) == boundaries
        epoch = recipe.epoch_steps * recipe.batch_size
        warm = point.hyperparameters["opt_learning_rate_warmup_epochs"]
        assert recipe.warmup_epochs * epoch == warm
        lengths = np.array(point.lengths)
        assert (lengths >= recipe.eval_first).all()
        assert (lengths < recipe.give_up).all()


def test_the_reference_run_is_a_recipe() -> None:
    (point,) = [p for p in rcp.points_of("unet3d", "3.1.0") if p.batch_size == 2]
    recipe = UNet3D.recipes()[2]
    assert recipe.base_lr == point.hyperparameters["opt_base_learning_rate"] == 0.8
    assert recipe.warmup_epochs == point.hyperparameters["opt_learning_rate_warmup_epochs"] == 200


def test_learning_rate_changes_with_the_epoch() -> None:
    """Batch 2: epochs of 84 steps, numbered from 1; 4.1e-3 in the first, 0.8 from the 200th on."""
    rate = UNet3D.recipes()[2].learning_rate()
    first = 1e-4 + 0.7999 / 200
    for step, wanted in (
        (0, first),
        (83, first),
        (84, 1e-4 + 0.7999 * 2 / 200),
        (199 * 84 - 1, 1e-4 + 0.7999 * 199 / 200),
        (199 * 84, 0.8),
        (4000 * 84, 0.8),
    ):
        np.testing.assert_allclose(rate(step), wanted, rtol=1e-6)
    flat = UNet3D(warmup_epochs=0).learning_rate()
    np.testing.assert_allclose(flat(0), 2.0, rtol=1e-6)


def test_learning_rate_decays_after_its_epoch() -> None:
    """Habana's accepted run: the milestone is the last epoch of the higher rate."""
    recipe = UNet3D(base_lr=1.5, warmup_epochs=1200, lr_decay_epochs=(1700,), lr_decay_factor=0.5)
    rate = recipe.learning_rate()
    np.testing.assert_allclose(rate(1700 * 3 - 1), 1.5, rtol=1e-6)
    np.testing.assert_allclose(rate(1700 * 3), 0.75, rtol=1e-6)


@pytest.mark.parametrize(
    ("size", "first", "every", "last"),
    [  # epochs, the rules' own figures; 10,000 epochs of 168 samples
        (2, 1000, 20, 10_000),
        (28, 1000, 20, 10_000),
        (56, 1000, 20, 10_000),
        (84, 1000, 20, 10_000),
        (64, 875, 18, 8750),
        (32, 875, 18, 8750),
        (80, 700, 14, 7000),
        (128, 657, 14, 6563),
    ],
)
def test_evaluation_follows_the_text_of_the_rules(size, first, every, last) -> None:
    benchmark = UNet3D(batch_size=size)
    epoch = -(-168 // size)
    steps = list(itertools.islice(benchmark.eval_steps(), 3))
    assert steps == [(first + i * every) * epoch for i in range(3)]
    assert benchmark.last_sample == last * epoch * size
    assert steps == list(itertools.islice(rules.resolve("unet3d").evaluation.steps(size, 168), 3))
    assert benchmark.position(steps[0]) == {
        "epoch_num": first,
        "samples_count": first * epoch * size,
    }


def test_a_run_that_finds_nothing_any_more_is_given_up() -> None:
    assert UNet3D().diverged({"mean_dice": 9e-7})
    assert not UNet3D().diverged({"mean_dice": 0.01})


def test_optimizer_is_torchs_nesterov() -> None:
    """v = m v + g; the step is lr (g + m v), with the epoch's rate."""
    recipe = UNet3D(batch_size=84, base_lr=0.8, warmup_epochs=4)
    params = {"conv": {"kernel": jnp.asarray([[1.0, -2.0]])}}
    tx = recipe.optimizer(ParamTree.from_params(params))
    current, opt, v = params, tx.init(params), np.zeros((1, 2))
    for step, gradient in enumerate(np.array([[[0.5, 1.0]], [[-1.0, 0.25]], [[0.125, 2.0]]])):
        updates, opt = tx.update({"conv": {"kernel": jnp.asarray(gradient)}}, opt, current)
        v = 0.9 * v + gradient
        lr = 1e-4 + (0.8 - 1e-4) * (step // 2 + 1) / 4
        wanted = -lr * (gradient + 0.9 * v)
        np.testing.assert_allclose(updates["conv"]["kernel"], wanted, rtol=1e-5)


# -- evaluation --------------------------------------------------------------------------------


def seven_volumes() -> Arrays:
    """Seven volumes of unlike size and content, laid out as `Kits19.validation` does."""
    draw = np.random.RandomState(0)
    image = draw.standard_normal((7, 16, 16, 16, 1)).astype(np.float32)
    label = draw.randint(0, 3, (7, 16, 16, 16)).astype(np.uint8)
    windows = np.array(
        [[3, 3, 3], [3, 2, 1], [2, 2, 3], [1, 1, 1], [2, 1, 1], [1, 3, 1], [1, 1, 2]], np.int32
    )
    for row, counts in enumerate(windows):
        outside = np.ones((16, 16, 16), bool)
        outside[tuple(slice(0, 4 * (n + 1)) for n in counts)] = False
        label[row][outside] = 255
    return Arrays({"image": image, "label": label, "windows": windows})


@pytest.mark.parametrize(("mesh", "rows"), [("data=1", 7), ("data=1", 3), ("data=2,fsdp=2", 4)])
def test_mean_dice_is_exact_over_sharded_and_padded_batches(mesh: str, rows: int) -> None:
    """Against NumPy, from the predictions of each volume by itself; the last batch has padding."""
    benchmark = preflight.resolve_dtype(
        benchmarks.get("unet3d", tiny=True, filters=(4,), patch=8, eval_shape=(16, 16, 16))
    ).replace(eval_batch_size=rows)
    assembly = state.assemble(benchmark, meshes.make_mesh(mesh))
    current = assembly.create(3)
    volumes = seven_volumes()
    evaluator = evaluation.Evaluator(assembly, 0, "", threads=1)
    evaluator.batches = pipeline.evaluation(volumes).batched(rows)
    counts = evaluator.outputs(current, 1)
    assert counts.shape == (7, 3, 2)
    label = volumes.arrays["label"]
    true = np.stack([(label == kind).sum((1, 2, 3)) for kind in (1, 2)], -1)
    np.testing.assert_array_equal(counts[:, 2], true)
    quality = evaluator.result(counts)
    dice = (2 * counts[:, 0] + 1e-6) / (counts[:, 1] + counts[:, 2] + 1e-6)
    assert quality["mean_dice"] == pytest.approx(dice.mean(0).mean(), rel=1e-14)
    SEEN.setdefault("counts", counts)
    np.testing.assert_array_equal(counts, SEEN["counts"])


SEEN: dict[str, np.ndarray] = {}  # what the first mesh gave


# -- log, rules and refusals -------------------------------------------------------------------


def test_logged_keys_and_values() -> None:
    assert preflight.full_log(UNet3D()) == {
        "global_batch_size": 56,
        "gradient_accumulation_steps": 1,
        "train_samples": 168,
        "eval_samples": 42,
        "opt_name": "sgd",
        "opt_base_learning_rate": 2.0,
        "opt_initial_learning_rate": 1e-4,
        "opt_learning_rate_warmup_epochs": 1000,
        "opt_learning_rate_decay_boundary_epochs": [],
        "opt_learning_rate_decay_factor": 1.0,
        "opt_momentum": 0.9,
        "opt_weight_decay": 0.0,
        "oversampling": 0.4,
        "training_input_shape": [128, 128, 128],
        "validation_input_shape": [128, 128, 128],
        "validation_overlap": 0.5,
    }


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"oversampling": 0.5}, "oversampling"),
        ({"patch": 64, "eval_shape": (448, 448, 448)}, "training_input_shape"),
        ({"eval_every": 1680}, "epochs"),
        ({"eval_first": 84_000}, "epochs"),
        ({"filters": (32, 64, 128, 256, 256)}, "filters"),
        ({"classes": 4}, "classes"),
        ({"train_samples": 210}, "train_samples"),
    ],
)
def test_closed_refuses_what_the_rules_do_not_allow(changes: dict, word: str) -> None:
    with pytest.raises(UserError, match=word):
        preflight.resolve_division(UNet3D(**changes), benchmarks.RunOptions(division="closed"))


def test_both_accepted_augmentations_are_closed() -> None:
    for augmentation in ("reference", "dali"):
        benchmark = UNet3D(augmentation=augmentation)
        assert preflight.resolve_division(benchmark, benchmarks.RunOptions()) == "closed"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"augmentation": "torch"}, "augmentation must be reference or dali"),
        ({"patch": 100}, "patch 100 cannot be halved 5 times: give a multiple of 32"),
        ({"eval_shape": (448, 448, 400)}, "eval_shape 448x448x400 holds no whole windows"),
        ({"oversampling": 1.5}, "oversampling must be a number, from 0 to 1"),
    ],
)
def test_impossible_fields_are_refused(changes: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        UNet3D(**changes)


def test_flops() -> None:
    assert UNet3D().flops_per_sample == pytest.approx(2860e9, rel=1e-3)


def test_example_shapes() -> None:
    side = (128, 128, 128)
    assert UNet3D().example() == {
        "image": jax.ShapeDtypeStruct((*side, 1), jnp.float32),
        "label": jax.ShapeDtypeStruct(side, jnp.uint8),
    }
    whole = UNet3D().eval_example()
    assert whole["windows"].shape == (3,)
    assert whole["label"].shape == (448, 448, 448)
