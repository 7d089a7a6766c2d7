"""Stable Diffusion's data: embeddings and moments made beforehand, and real pictures that judges are checked by."""

from __future__ import annotations

import functools
import re
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import laion_toys
import numpy as np
import pytest
import simplejpeg
from flax import nnx

from mlperf_jax import benchmarks, cli
from mlperf_jax.benchmarks.stable_diffusion import StableDiffusion, judging
from mlperf_jax.core import (
    brief,
    preflight,
    state as states,
)
from mlperf_jax.errors import UserError
from mlperf_jax.metrics import fid
from mlperf_jax.models import diffusion_huggingface
from mlperf_jax.models.autoencoder import Autoencoder, AutoencoderConfig, Encoder
from tests.benchmarks.diffusion import loaded_judges, model_of

FULL = StableDiffusion()


@pytest.fixture(scope="module")
def tiny() -> StableDiffusion:
    return preflight.resolve_dtype(benchmarks.get("stable_diffusion", tiny=True))


@pytest.fixture(scope="module")
def folder(tiny_data: Any) -> str:
    return tiny_data("stable_diffusion")


def test_embeddings_train_as_their_captions_do(tiny, folder, tmp_path) -> None:
    """The same loss but for float16, no text tower in the model, and one among the judges."""
    shutil.copytree(folder, tmp_path / "data")
    data = f"{tmp_path}/data"
    embedded = tiny.replace(text_embeddings=True)
    with pytest.raises(UserError, match="lacks the embeddings of shard 00000: write them with"):
        embedded.data().train(data)
    tower = model_of(tiny, data).text
    tokenizer = tiny.data().vocabulary(data)
    tiny.write_embeddings(data)
    batch, other = (b.data().train(data).batched(8, seed=0)[0] for b in (tiny, embedded))
    np.testing.assert_array_equal(batch["moments"], other["moments"])
    wanted = np.asarray(tower.conditioning(jnp.asarray(batch["tokens"])))
    np.testing.assert_allclose(other["embedding"], wanted, rtol=1e-3, atol=1e-3)
    assert tokenizer.context == 12
    assert embedded.start(data) is None and embedded.frozen == ()
    model = model_of(embedded, data)
    assert model.text is None
    judges = loaded_judges(embedded, data)
    empty = {"tokens": jnp.asarray(batch["tokens"])}
    key = jax.random.key(0)
    images = embedded.generate_images(model, empty, key, judges)
    same = tiny.generate_images(model_of(tiny, data), empty, key, loaded_judges(tiny, data))
    np.testing.assert_allclose(images, same, atol=1e-5)


def test_data_check_scores_real_pictures(tiny, folder, tmp_path, capsys) -> None:
    argv = ["data", "check", "stable_diffusion", "--tiny", "--data-dir"]
    assert cli.main([*argv, folder, "--score", "--mesh", "data=2"]) == 0
    said = capsys.readouterr().out
    assert "captions looked at have more than 12 tokens" in said
    score = re.search(r"the real pictures of the prompts score FID (0\.\d+), CLIP (0\.\d+)", said)
    assert score and float(score[1]) < 0.05 and float(score[2]) > 0.8
    shutil.copytree(folder, tmp_path / "data")
    path = tmp_path / "data" / tiny.weights / "val2014_30k_stats.npz"
    fid.statistics(np.random.RandomState(0).standard_normal((90, 64))).save(path)
    assert cli.main([*argv, str(tmp_path / "data"), "--score"]) == 2
    assert "FID must be about 0: look whether Inception's weights" in capsys.readouterr().err


def test_coco_pictures_are_squeezed_and_once_more_jpeg(tmp_path) -> None:
    """As the reference's script makes those of its statistics: bicubic to a square, quality 75."""
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "val2014").mkdir()
    draw = np.random.RandomState(0).randint(0, 256, (30, 20, 3), np.uint8)
    smooth = image.fromarray(draw).resize((320, 480), image.Resampling.BICUBIC)
    smooth.save(tmp_path / "val2014" / "COCO_val2014_000000000042.jpg")
    found = judging.coco_images(str(tmp_path), [42])
    assert found.shape == (1, 512, 512, 3) and found.dtype == np.float32
    with image.open(tmp_path / "val2014" / "COCO_val2014_000000000042.jpg") as one:
        small = one.resize((512, 512), image.Resampling.BICUBIC)
    small.save(tmp_path / "again.jpg", quality=75)
    with image.open(tmp_path / "again.jpg") as one:
        np.testing.assert_array_equal(np.rint(255 * found[0]), np.asarray(one))
    with pytest.raises(
        UserError, match=r"000000000007.jpg is missing: fetch val2014.zip from coco"
    ):
        judging.coco_images(str(tmp_path), [42, 7])


def test_moments_are_made_of_images_in_0_to_1(tmp_path, monkeypatch) -> None:
    """The encoder's own moments of the pictures, whose range is the reference's mistake; resumed, all is there."""
    small = AutoencoderConfig(width=8, multipliers=(1, 2, 2, 2), res_blocks=1, groups=4)
    monkeypatch.setattr(judging, "AUTOENCODER", small)
    benchmark = FULL.replace(dtype="float32", side=4, shards=1, train_samples=600)
    params = brief.drawn(lambda rngs: Autoencoder(small, jnp.float32, rngs=rngs))
    with pytest.raises(UserError, match="vae is missing: give a folder of diffusers"):
        benchmark.write_moments(tmp_path / "images", str(tmp_path))
    diffusion_huggingface.save_autoencoder(tmp_path / benchmark.weights, params, small)
    (tmp_path / "images").mkdir()
    pixels = np.full((32, 32, 3), (255, 0, 128), np.uint8)
    held = [("7.jpg", simplejpeg.encode_jpeg(pixels, 100, "RGB", "444")), ("7.txt", b"pink")]
    laion_toys.write_tar(tmp_path / "images" / "00000.tar", held)
    benchmark.write_moments(tmp_path / "images", str(tmp_path))
    benchmark.data().build(tmp_path)
    (shard,) = benchmark.data().samples(tmp_path).shards
    (raw,) = shard.files.read([shard.array(0)])
    found = shard.moments(0, raw).transpose(1, 2, 0)
    pictures = simplejpeg.decode_jpeg(held[0][1])[None] / np.float32(255)
    encoder = functools.partial(Encoder, small, jnp.float32)

    @jax.jit
    def encoded(params: Any, x: Any) -> Any:
        graphdef, _ = states.split(encoder(rngs=nnx.Rngs(0)))
        return states.merge(graphdef, params, {}, {})(x)

    wanted = encoded(params["encoder"], pictures)
    np.testing.assert_allclose(found, wanted[0], atol=1e-4)
    before = (tmp_path / "laion" / "00000.tar").stat().st_mtime_ns
    benchmark.write_moments(tmp_path / "images", str(tmp_path))
    assert (tmp_path / "laion" / "00000.tar").stat().st_mtime_ns == before
