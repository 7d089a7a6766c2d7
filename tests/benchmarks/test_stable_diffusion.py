"""Stable Diffusion v2: recipes and schedule, thirty steps of a twin in torch, evaluation, what it refuses."""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rehearsal

from mlperf_jax import benchmarks
from mlperf_jax.benchmarks.stable_diffusion import StableDiffusion
from mlperf_jax.benchmarks.stable_diffusion.judging import Judges
from mlperf_jax.core import (
    evaluation,
    mesh as meshes,
    preflight,
    state as states,
    step as steps,
)
from mlperf_jax.core.benchmark import Start, f32, i32
from mlperf_jax.core.judges import judges_of
from mlperf_jax.core.starts import begin_from
from mlperf_jax.decoding import ddim
from mlperf_jax.errors import UserError
from mlperf_jax.metrics import fid
from mlperf_jax.models import clip, clip_import, diffusion_huggingface
from mlperf_jax.optimizers import flatten_paths
from mlperf_jax.results import compliance, rules
from scripts import (
    make_clip_reference as clip_reference,
    make_diffusion_reference as diffusion_reference,
    make_stable_diffusion_reference as reference,
)
from tests.benchmarks.diffusion import loaded_judges, model_of
from tests.benchmarks.language_models import first_steps, points

FULL = StableDiffusion()
OFFICIAL = points("stable_diffusion", "5.0.0")


@pytest.fixture(scope="module")
def tiny() -> StableDiffusion:
    return preflight.resolve_dtype(benchmarks.get("stable_diffusion", tiny=True))


@pytest.fixture(scope="module")
def folder(tiny_data: Any) -> str:
    return tiny_data("stable_diffusion")


@pytest.fixture(scope="module")
def judges(tiny: StableDiffusion, folder: str) -> Any:
    return loaded_judges(tiny, folder)


# -- recipes, log and schedule ---------------------------------------------------------------------


def test_recipes_are_the_reference_convergence_points() -> None:
    recipes = StableDiffusion.recipes()
    assert OFFICIAL.keys() == recipes.keys() == {256, 384, 512, 1024, 2048}
    for size, point in OFFICIAL.items():
        logged, given = preflight.full_log(recipes[size]), dict(point.hyperparameters)
        # the points state the rate of a sample, logs that of a batch
        assert given.pop("opt_base_learning_rate") == recipes[size].base_lr
        assert logged["opt_base_learning_rate"] == recipes[size].base_lr * size
        assert {key: logged[key] for key in given} == given
    assert recipes[512] == FULL


def test_the_rate_rises_from_a_millionth_and_stays() -> None:
    """At update n of W: base (1e-6 + (1 - 1e-6) n / W), by the size of AdamW's first updates."""
    benchmark = FULL.replace(weight_decay=0.0, warmup_steps=4)
    optimizer = benchmark.optimizer(None)
    weights = {"w": jnp.zeros(())}
    state, rates = optimizer.init(weights), []
    for _ in range(7):  # of a constant gradient each update is the rate
        updates, state = optimizer.update({"w": jnp.ones(())}, state, weights)
        rates.append(-float(updates["w"]))
    wanted = [1e-6 + (1 - 1e-6) * min(n / 4, 1) for n in range(7)]
    np.testing.assert_allclose(rates, np.multiply(wanted, 2.3e-7 * 512), rtol=2e-5)


def test_decay_reaches_all_parameters() -> None:
    weights = {"norm": {"scale": jnp.ones(3)}, "out": {"bias": jnp.ones(3)}}
    optimizer = FULL.replace(warmup_steps=0).optimizer(None)
    zeros = jax.tree.map(jnp.zeros_like, weights)
    updates, _ = optimizer.update(zeros, optimizer.init(weights), weights)
    for update in jax.tree.leaves(updates):
        np.testing.assert_allclose(update, -0.01 * FULL.rate, rtol=1e-6)


@pytest.mark.parametrize(
    ("batch", "every"), [(256, 2000), (384, 1334), (512, 1000), (1024, 500), (2048, 250)]
)
def test_checkpoints_come_every_512_000_samples_rounded_up(batch: int, every: int) -> None:
    recipe = StableDiffusion.recipes()[batch]
    assert first_steps(recipe, 3) == [every, 2 * every, 3 * every]
    # the slowest points converge within the samples that a run may see
    slowest = max(max(point.lengths) for point in OFFICIAL.values())
    assert recipe.last_sample > slowest


def test_sizes_and_work() -> None:
    config = FULL.architecture()
    assert (config.groups, config.transformer_groups) == (16, 32)
    assert FULL.text_tower() == clip.TextConfig(whole=False)
    assert FULL.flops_per_sample == pytest.approx(2.413e12 + 45.1e9, rel=1e-3)
    assert FULL.replace(text_embeddings=True).flops_per_sample == pytest.approx(2.413e12, rel=1e-3)
    assert FULL.eval_samples == 30_000 and FULL.train_samples == 6_513_144


def test_each_checkpoint_has_two_lines_that_name_their_metric() -> None:
    lines = FULL.quality_lines({"FID": 80.0, "CLIP": 0.16})
    assert lines == [(80.0, {"metric": "FID"}), (0.16, {"metric": "CLIP"})]
    assert FULL.meets_targets({"FID": 90.0, "CLIP": 0.15})
    assert not FULL.meets_targets({"FID": 90.1, "CLIP": 0.2})
    assert not FULL.meets_targets({"FID": 50.0, "CLIP": 0.149})
    official = rules.resolve("stable_diffusion", "5.0.0").targets
    assert [t.name for t in official] == ["FID", "CLIP"]


@pytest.mark.parametrize("division", ["closed", "open"])
@pytest.mark.parametrize("size", [256, 2048])
def test_a_recipes_log_passes_the_official_checker(size: int, division: str, tmp_path) -> None:
    """What is logged, with two checkpoints of two metrics, in 5.0.0; one checkpoint is too few."""
    pytest.importorskip("mlperf_logging")
    logged = preflight.full_log(preflight.resolve_dtype(StableDiffusion.recipes()[size]))
    given = {"division": division, "logged": logged}
    log = rehearsal.write(tmp_path / "result_0.txt", "stable_diffusion", "5.0.0", **given)
    assert compliance.check(log, "5.0.0").success
    only = [{"FID": 80.0, "CLIP": 0.16}]
    log = rehearsal.write(
        tmp_path / "result_1.txt", "stable_diffusion", "5.0.0", **given, qualities=only
    )
    assert not compliance.check(log, "5.0.0").success


@pytest.mark.parametrize(
    "changes",
    [{"groups": 32}, {"clip_norm": 1.0}, {"ema_decay": 0.99}, {"guidance": 7.5}, {"sampler_steps": 20},
     {"weight_decay": 0.0}, {"beta_2": 0.99}, {"text_layers": 23}, {"multipliers": (1, 2, 4)},
     {"attention_levels": 2}, {"tokens": 64}, {"side": 32}, {"eval_every": 256_000}],
)  # fmt: skip
def test_closed_refuses_another_benchmark_by_name(changes: dict[str, Any]) -> None:
    name = "evaluation" if "eval_every" in changes else next(iter(changes))
    with pytest.raises(UserError, match=name):
        preflight.resolve_division(
            FULL.replace(dtype="float32", **changes), benchmarks.RunOptions()
        )
    free = FULL.replace(dtype="float32", base_lr=1e-7, warmup_steps=900, text_embeddings=True)
    assert preflight.resolve_division(free, benchmarks.RunOptions()) == "closed"


# -- thirty steps of the twin ----------------------------------------------------------------------

DRAWS = ("latent_noise", "noise", "time")


@dataclass(frozen=True, kw_only=True)
class Given(StableDiffusion):
    """One whose draws come with the batch."""

    def example(self) -> Any:
        latent = f32(self.side, self.side, 4)
        return {**super().example(), "latent_noise": latent, "noise": latent, "time": i32()}

    def draws(self, batch: Any, key: Any) -> Any:
        latent_noise, noise, time = (batch[name] for name in DRAWS)
        return latent_noise.astype(self.dtype), noise.astype(self.dtype), time


GIVEN = Given(
    dtype="float64",
    batch_size=reference.ROWS,
    base_lr=reference.RATE / reference.ROWS,
    warmup_steps=reference.WARMUP,
    side=reference.SIDE,
    tokens=reference.TEXT["tokens"],
    vocab=reference.TEXT["vocab"],
    text_layers=reference.TEXT["layers"],
    text_width=reference.TEXT["width"],
    groups=reference.GROUPS,
    **{name: reference.UNET[name] for name in ("width", "multipliers", "res_blocks", "attention_levels", "head_width")},
)  # fmt: skip


@functools.cache
def told() -> tuple[np.ndarray, dict[str, Any]]:
    with np.load(reference.OUTPUT) as file:
        return file["losses"], json.loads(bytes(file["told"]))


def test_thirty_steps_equal_the_twin_in_torch(x64: None, tmp_path: Any) -> None:
    """Losses, the first step's gradients and the last weights; diffusers, transformers and torch in float64."""
    losses, said = told()
    unet = {n: diffusion_reference.weight(n, tuple(s)) for n, s in said["unet"].items()}
    text = {n: clip_reference.weight(n, tuple(s)) for n, s in said["text"].items()}
    readers = diffusion_huggingface.unet_readers(unet, GIVEN.architecture())
    weights = {f"params/unet/{path}": reader for path, reader in readers.items()}
    config = tmp_path / "config.json"
    layout = {"hidden_act": "gelu", "num_attention_heads": reference.TEXT["heads"]}
    config.write_text(json.dumps(layout))
    text = {n if n.startswith("text_") else f"text_model.{n}": x for n, x in text.items()}
    tower = clip_import.Weights(text, transformers=True, config=config)
    found = clip_import.text_readers(tower, GIVEN.text_tower())
    weights |= {f"frozen/text/{path}": reader for path, reader in found.items()}

    assembly = states.assemble(GIVEN, meshes.make_mesh("data=1"))
    state = begin_from(assembly.create(0), Start(weights))
    batches = [jax.tree.map(jnp.asarray, reference.batch(step)) for step in range(reference.STEPS)]

    train, seen = steps.jit_train_step(assembly), []
    for batch in batches:
        state, metrics = train(state, batch, jax.random.key(0))
        seen.append(float(metrics["loss"]))
        if len(seen) == 1:  # Adam's first moment is then a tenth of the gradient
            first = jax.tree.map(lambda mu: 10 * mu, state["opt"][0].mu)
            close(first, said["first gradients"], 1e-9)
    np.testing.assert_allclose(seen, losses, rtol=1e-9)
    close(state["params"], said["last weights"], 1e-9)
    assert np.std(losses) > 0.1


def close(params: Any, wanted: dict[str, list[float]], off: float) -> None:
    """Norms and projections of arrays by the names of diffusers."""
    arrays = jax.tree.map(np.asarray, params["unet"])
    theirs = diffusion_huggingface.unet_to_huggingface(arrays, GIVEN.architecture())
    found = reference.summary({n: np.asarray(x, np.float64) for n, x in theirs.items()})
    assert found.keys() == wanted.keys()
    norm = np.linalg.norm([value[0] for value in wanted.values()])
    for name, pair in wanted.items():
        np.testing.assert_allclose(found[name], pair, rtol=off, atol=off * norm, err_msg=name)


def test_what_a_step_draws() -> None:
    """Fresh at each step: two different normal noises, and all 1,000 times alike."""
    batch = {"moments": jnp.zeros((4000, 2, 2, 8))}
    tiny = FULL.replace(dtype="float32")
    latent, noise, time = (np.asarray(x) for x in tiny.draws(batch, jax.random.key(1)))
    assert latent.shape == noise.shape == (4000, 2, 2, 4) and time.shape == (4000,)
    for one in (latent, noise):
        assert abs(one.mean()) < 0.02 and abs(one.std() - 1) < 0.02
    assert abs(np.corrcoef(latent.ravel(), noise.ravel())[0, 1]) < 0.03
    assert time.min() == 0 and time.max() == 999
    assert np.histogram(time, 10, (0, 1000))[0] == pytest.approx(np.full(10, 400), rel=0.2)
    other = tiny.draws(batch, jax.random.key(2))
    assert not np.array_equal(other[2], time) and not np.array_equal(other[0], latent)


def test_the_untrained_network_gives_zero_and_the_loss_is_that_of_v(tiny, folder) -> None:
    assembly = states.assemble(tiny, meshes.make_mesh("data=1"))
    view = assembly.eval_view(assembly.create(3))
    batch = tiny.data().train(folder).batched(8, seed=0)[0]
    key = jax.random.key(5)

    @jax.jit
    def computed(view: Any, batch: Any) -> Any:
        model = assembly.eval_model(view)
        context = model.text.conditioning(batch["tokens"])
        out = model.unet(jnp.ones((8, 8, 8, 4)), jnp.arange(8), context)
        return out, tiny.loss(model, batch, key)

    out, loss = computed(view, batch)
    assert not np.asarray(out).any()
    latent, noise, time = (np.float64(x) for x in tiny.draws(batch, key))
    means, log_variances = np.split(np.float64(batch["moments"]), 2, -1)
    x = 0.18215 * (means + np.exp(np.clip(log_variances, -30, 20) / 2) * latent)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = np.cumprod(1 - betas)[time.astype(int)][:, None, None, None]
    v = np.sqrt(kept) * noise - np.sqrt(1 - kept) * x
    assert float(loss) == pytest.approx((v**2).mean(), rel=1e-5)


# -- evaluation ------------------------------------------------------------------------------------


def test_pictures_are_sampled_as_the_rules_have_it(tiny, folder, judges, monkeypatch) -> None:
    """Full: 50 steps, guidance 8, the empty caption begins and ends; the decoder in parts."""
    assert (FULL.sampler_steps, FULL.guidance) == (50, 8.0)
    asked: dict[str, Any] = {}

    def sample(predict, noise, context, unconditional, **how):
        asked.update(how, noise=noise, unconditional=unconditional)
        return noise

    monkeypatch.setattr(ddim, "sample", sample)
    model = model_of(tiny, folder)
    tokens = jnp.asarray(tiny.data().validation(folder).batched(4)[0]["tokens"])
    monkeypatch.setattr(judges.decoder, "decode", lambda x, at_once: asked.update(parts=at_once))
    tiny.generate_images(model, {"tokens": tokens}, jax.random.key(3), judges)
    assert (asked["steps"], asked["guidance"], asked["parts"]) == (10, 2.0, 8)
    empty = tiny.data().vocabulary(folder)("")
    wanted = model.text.conditioning(jnp.asarray(empty)[None])
    np.testing.assert_allclose(asked["unconditional"], np.repeat(wanted, 4, 0), atol=1e-6)
    assert asked["noise"].shape == (4, 8, 8, 4)
    assert float(asked["noise"].std()) == pytest.approx(1, abs=0.1)


def test_judges_know_the_shapes_from_others(tiny, folder, judges) -> None:
    """Real pictures are near the statistics and fit their captions; shuffled, grey and noisy ones do not."""
    from mlperf_jax.input_pipelines.laion import tiny as shapes

    metric = tiny.metric_from(folder)
    tokens = jnp.asarray(tiny.data().validation(folder).batched(256)[0]["tokens"])
    real, captions = shapes.seen(256, shapes.VALIDATION, 32)
    rows = tiny.data().vocabulary(folder).rows(captions)[0]
    np.testing.assert_array_equal(tokens, rows)
    judge = jax.jit(lambda images, said: judges(images, said))

    def quality(images: Any, said: Any = tokens) -> dict[str, float]:
        return metric.result(jax.device_get(judge(jnp.asarray(images, jnp.float32), said)))

    good = quality(real)
    assert good["FID"] < 0.05 and good["CLIP"] > 0.8
    shuffled = quality(real, jnp.roll(tokens, 1, 0))
    assert shuffled["FID"] == pytest.approx(good["FID"]) and abs(shuffled["CLIP"]) < 0.1
    noise = quality(np.random.RandomState(0).random_sample((256, 32, 32, 3)))
    grey = quality(np.full((256, 32, 32, 3), 0.5))
    for bad in (noise, grey):
        assert bad["FID"] > 1 and bad["CLIP"] < 0.2
        assert not tiny.meets_targets(bad)
    assert not tiny.meets_targets(shuffled)


def test_full_judges_are_the_networks_of_the_rules(tmp_path) -> None:
    """Weights of all three from their own files by path and shape; what is missing says what to fetch, and where."""
    benchmark = FULL.replace(dtype="bfloat16")
    judges = judges_of(benchmark, meshes.make_mesh("data=1"))
    assert judges is not None
    kinds = {path.split("/")[1] for path in flatten_paths(judges.abstract)}
    assert kinds == {"decoder", "features", "fit"}
    counts = dict.fromkeys(kinds, 0)
    for path, leaf in flatten_paths(judges.abstract).items():
        counts[path.split("/")[1]] += leaf.size
    assert counts["decoder"] == 49_490_179 + 20 and counts["fit"] == 986_109_441
    weights = tmp_path / FULL.weights
    for call, fetched in (
        (benchmark.judge_weights, r"val2014_30k_stats.npz is missing: fetch"),
        (
            benchmark.start,
            r"weights is missing: fetch open_clip_model.safetensors of .*CLIP-ViT-H-14",
        ),
        (benchmark.metric_from, r"val2014_30k_stats.npz is missing: fetch"),
    ):
        with pytest.raises(UserError, match=fetched):
            call(tmp_path)
    weights.mkdir()
    real = fid.Statistics(np.zeros(2048), np.eye(2048))
    real.save(weights / "val2014_30k_stats.npz")
    with pytest.raises(UserError, match="vae is missing: give a folder of diffusers"):
        benchmark.judge_weights(tmp_path)
    (weights / "512-base-ema.ckpt").write_bytes(b"pickle")
    with pytest.raises(UserError, match=r"is a pickle, which may run anything.*convert it with"):
        benchmark.judge_weights(tmp_path)


def test_statistics_are_looked_at_before_a_run(tiny, folder, tmp_path) -> None:
    """Those of another judge, and none."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / tiny.weights / "val2014_30k_stats.npz"
    fid.statistics(np.random.RandomState(0).standard_normal((90, 32))).save(path)
    options = benchmarks.RunOptions(data_dir=str(tmp_path))
    with pytest.raises(UserError, match="have 32 features, the images' judge gives 64"):
        preflight.preflight(tiny, options, str(tmp_path))
    path.unlink()
    with pytest.raises(UserError, match=r"stats.npz is missing: fetch val2014_30k_stats.npz"):
        preflight.preflight(tiny, options, str(tmp_path))


def test_inception_takes_no_rounding_and_clip_eight_bits() -> None:
    """What the two are given of one picture."""
    given: dict[str, Any] = {}
    judges = Judges(
        None,
        lambda images: given.setdefault("features", images),
        lambda pixels, tokens: given.setdefault("fit", pixels),
        8,
        None,
    )
    images = jnp.full((1, 8, 8, 3), 0.4999)
    judges(images, jnp.zeros((1, 3), int))
    np.testing.assert_array_equal(given["features"], images)
    wanted = (np.floor(0.4999 * 255) / 255 - clip.MEANS) / clip.DEVIATIONS
    np.testing.assert_allclose(given["fit"][0, 4, 4], wanted, rtol=1e-5)


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"groups": 3}, "unet: groups 3 does not divide"),
        ({"head_width": 5}, "unet: head_width 5 does not divide"),
        ({"sampler_steps": 1000}, "a sampler of 1000 steps does not fit"),
        ({"guidance": -1.0}, "guidance"),
        ({"remat": "some"}, "remat"),
    ],
)
def test_fields_that_cannot_be(changes: dict[str, Any], words: str, tiny, folder) -> None:
    options = benchmarks.RunOptions(data_dir=folder)
    with pytest.raises(UserError, match=words):
        preflight.preflight(tiny.replace(**changes), options, folder)


def test_a_limit_below_two_checkpoints_is_refused(tiny, folder, tmp_path) -> None:
    options = benchmarks.RunOptions(data_dir=folder, output=str(tmp_path / "a"), max_samples=14_399)
    with pytest.raises(UserError, match=r"needs two checkpoints: .* at least 14400 samples"):
        preflight.preflight(tiny, options, folder)
    assert not (tmp_path / "a").exists()


# -- on devices -----------------------------------------------------------------------------------


def test_every_device_generates_its_own_as_one_does(tiny, folder) -> None:
    """Features and cosines of a batch of prompts; weights are spread or copied."""
    brief, mesh = tiny.replace(sampler_steps=2), "data=2,fsdp=2,tensor=2"
    one, many = (predicted(brief, folder, where) for where in ("data=1", mesh))
    for name in ("features", "clip"):
        np.testing.assert_allclose(many[name], one[name], atol=2e-4)


def predicted(benchmark: StableDiffusion, folder: str, where: str) -> Any:
    devices = meshes.make_mesh(where)
    assembly, judges = states.assemble(benchmark, devices), judges_of(benchmark, devices)
    assert judges is not None
    start = benchmark.start(folder)
    assert start is not None
    # every weight moved, or the network would give 0
    state = jax.tree.map(lambda x: x + jnp.ones((), x.dtype) / 64, assembly.create(0)["params"])
    view = assembly.eval_view({**begin_from(assembly.create(0), start), "params": state})
    (program,) = evaluation.compile_predict(assembly).values()
    batch = benchmark.data().validation(folder).batched(64)[0]
    mask = batch.pop("mask")
    placed = jax.device_put((batch, mask), meshes.batch_sharding(devices))
    return jax.device_get(program(view, *placed, jax.random.key(1), judges.load(folder)))
