"""Stable Diffusion v2 on LAION-400M: MLPerf Training v3.1 to v5.0.

Train the UNet from random weights until pictures made for 30,000 captions of COCO lie within an FID of 90 of real ones
and fit their captions by a CLIP score of 0.15.
Reference: mlcommons/training, retired_benchmarks/stable_diffusion; reference convergence points of ruleset 5.0.0.

Shape legend: B rows, S side of a latent, C its channels, T tokens of a caption, K width of the text encoder.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from mlperf_jax import metrics, pictures
from mlperf_jax.benchmarks.stable_diffusion import judging, tiny
from mlperf_jax.benchmarks.stable_diffusion.judging import Judges
from mlperf_jax.core import brief
from mlperf_jax.core.benchmark import Benchmark, Example, Reader, Start, Target, f32, i32
from mlperf_jax.core.fields import Count, Fraction, Positive, Rate, Samples, Several, Whole
from mlperf_jax.decoding import ddim
from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import laion, records
from mlperf_jax.input_pipelines.laion import Laion
from mlperf_jax.input_pipelines.tokenizers import clip_bpe
from mlperf_jax.metrics import fid
from mlperf_jax.models import autoencoder, clip, clip_import, diffusion_huggingface
from mlperf_jax.models.diffusion_unet import RULES, UNet, UNetConfig
from mlperf_jax.ops import diffusion
from mlperf_jax.optimizers import schedules

_FIRST_RATE = 1e-6  # of the rate, at the first step


class Model(nnx.Module):
    """The UNet and, where captions come as tokens, the text tower that it is told them by."""

    def __init__(self, unet: UNet, text: clip.TextTower | None):
        self.unet, self.text = unet, text


@dataclass(frozen=True, kw_only=True)
class StableDiffusion(Benchmark):
    """The defaults are the reference convergence point for batch 512.

    Differs: the reference resamples its shards with replacement, here each sample comes once an epoch. Scored after
    the run: `mlperf-jax evaluate`.
    """

    name = "stable_diffusion"
    ruleset = "5.0.0"  # last round that ran it
    metric = metrics.FidClip()
    rules = (*RULES, *clip.RULES)
    scales = ({"batch_size": 32},)
    parameters = 865_910_724
    records_per_core = 12_000  # scripts/bench_input.py stable_diffusion: 19,993 (16,042 … 21,043)

    # hyperparameters
    batch_size: Samples = 512
    base_lr: Annotated[Rate, "per sample of a batch: the rate is this times batch_size"] = 2.3e-7
    warmup_steps: Whole = 1000
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: Positive = 1e-8
    weight_decay: Annotated[Rate, "of all parameters"] = 0.01
    text_embeddings: Annotated[bool, "read captions' embeddings, made beforehand"] = False
    # evaluation
    eval_every: Samples = 512_000
    sampler_steps: Count = 50
    guidance: Annotated[Rate, "how many times what the caption changes"] = 8.0
    decoded_at_once: Annotated[Count, "pictures on a device, at most"] = 8
    # what the forward pass keeps per block for the backward one, see `models.diffusion_unet_config`
    remat: str | None = None
    # sizes: what tiny() shrinks
    weights: Annotated[str, "folder of the given networks in the data's"] = (
        "stable_diffusion_weights"
    )
    side: Annotated[Count, "of a latent"] = 64
    width: Count = 320
    multipliers: Several[Count] = (1, 2, 4, 4)
    res_blocks: Count = 2
    attention_levels: Annotated[Whole, "from the finest on; the middle has attention too"] = 3
    head_width: Annotated[Count, "of the UNet and the text tower"] = 64
    groups: Annotated[Count, "of norms in residual blocks"] = 16
    transformer_groups: Count = 32
    tokens: Annotated[Count, "of a caption"] = 77
    vocab: Count = 49_408
    text_layers: Count = 24
    text_width: Count = 1024
    shards: Count = 832
    train_samples: Samples = 6_513_144
    eval_samples: Samples = 30_000
    sample_limit: Samples | None = 6_144_000
    targets: Several[Target] = (Target("FID", at_most=90.0), Target("CLIP", at_least=0.15))

    def __post_init__(self) -> None:
        super().__post_init__()
        ddim.steps_of(self.sampler_steps)  # refuses more than there are times

    # -- what is trained -----------------------------------------------------------------------

    @property
    def frozen(self) -> tuple[str, ...]:
        return () if self.text_embeddings else ("text/.*",)

    def example(self) -> Example:
        moments = {"moments": f32(self.side, self.side, 2 * judging.AUTOENCODER.channels)}
        if not self.text_embeddings:
            return moments | {"tokens": i32(self.tokens)}
        form = (self.tokens, self.text_width)
        return moments | {"embedding": jax.ShapeDtypeStruct(form, np.dtype("float16"))}

    def eval_example(self) -> Example:
        return {"tokens": i32(self.tokens), "image_id": i32(), "id": i32()}

    def architecture(self) -> UNetConfig:
        """The UNet's configuration."""
        names = ("width", "multipliers", "res_blocks", "attention_levels", "head_width", "groups")
        return UNetConfig(
            **{name: getattr(self, name) for name in (*names, "transformer_groups", "remat")},
            context_width=self.text_width,
            channels=judging.AUTOENCODER.channels,
        )

    def text_tower(self) -> clip.TextConfig:
        """That of the text tower that the UNet is told captions by: its last layer has no part."""
        return clip.TextConfig(
            layers=self.text_layers,
            width=self.text_width,
            heads=self.text_width // self.head_width,
            hidden=4 * self.text_width,
            vocab=self.vocab,
            tokens=self.tokens,
            whole=False,
        )

    def model(self, rngs: Any) -> Model:
        unet = UNet(self.architecture(), self.dtype, rngs=rngs)
        return Model(unet, None if self.text_embeddings else self._text(rngs))

    def _text(self, rngs: Any) -> clip.TextTower:
        return clip.TextTower(self.text_tower(), self.dtype, rngs=rngs)

    def draws(self, batch: Any, key: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What a step draws: noise of latents and noise added to them [B, S, S, C], and times int [B]."""
        latent, added, when = jax.random.split(key, 3)
        rows, *sides, moments = batch["moments"].shape
        shape, kept = (rows, *sides, moments // 2), jnp.promote_types(self.dtype, jnp.float32)
        latent_noise, noise = (jax.random.normal(one, shape, kept) for one in (latent, added))
        time = jax.random.randint(when, (rows,), 0, diffusion.STABLE_DIFFUSION.times)
        return latent_noise, noise, time

    def loss(self, model: Any, batch: Any, key: Any) -> Any:
        latent_noise, noise, time = self.draws(batch, key)
        x = autoencoder.sample(batch["moments"], latent_noise)
        if self.text_embeddings:
            context = batch["embedding"]
        else:
            context = model.text.conditioning(batch["tokens"])
        v = model.unet(diffusion.add_noise(x, noise, time), time, context)
        return jnp.mean((v - diffusion.v_target(x, noise, time)) ** 2)

    @property
    def rate(self) -> float:
        """The learning rate after the warm-up."""
        return self.base_lr * self.batch_size

    def learning_rate(self) -> schedules.Schedule:
        """Count of updates -> rate: from a millionth of it over the warm-up, then constant."""
        start = _FIRST_RATE * self.rate
        return schedules.warmup_constant(self.rate, self.warmup_steps, start_lr=start)

    def optimizer(self, tree: Any) -> Any:
        betas = self.beta_1, self.beta_2
        return optax.adamw(
            self.learning_rate(), *betas, self.epsilon, weight_decay=self.weight_decay
        )

    @property
    def flops_per_sample(self) -> float:
        """Three passes of the UNet, and one of the text tower unless embeddings were made beforehand."""
        unet = 3 * self.architecture().flops(self.side, self.side, self.tokens)
        return unet + (0 if self.text_embeddings else self.text_tower().conditioning_flops())

    # -- quality -------------------------------------------------------------------------------

    def predict(self, model: Any, batch: Any, key: Any, judges: Any = None) -> Any:
        return judges(self.generate_images(model, batch, key, judges), batch["tokens"])

    def generate_images(self, model: Any, batch: Any, key: Any, judges: Any) -> jax.Array:
        """Pictures [B, 8 S, 8 S, 3] in [0, 1] of captions {"tokens": [B, T]}, from noise that the key draws."""
        tokens = batch["tokens"]
        text = model.text if judges.text is None else judges.text
        # begin and end; a row for each, as the mesh divides these
        nothing = jnp.zeros_like(tokens).at[:, :2].set([self.vocab - 2, self.vocab - 1])
        shape = (len(tokens), self.side, self.side, judging.AUTOENCODER.channels)
        noise = jax.random.normal(key, shape, jnp.promote_types(self.dtype, jnp.float32))
        latents = ddim.sample(
            model.unet,
            noise,
            text.conditioning(tokens),
            text.conditioning(nothing),
            steps=self.sampler_steps,
            guidance=self.guidance,
        )
        return judges.decoder.decode(latents, self.decoded_at_once)

    def judges(self, rngs: Any) -> Judges:
        text = self._text(rngs) if self.text_embeddings else None
        make = tiny.judges if self.is_tiny else judging.full
        return make(self.text_tower(), self.dtype, text=text, rngs=rngs)

    def judge_weights(self, data_dir: str) -> Mapping[str, np.ndarray | Reader]:
        folder, tower = self._weights(data_dir), self.text_tower()
        features = tiny.FEATURES if self.is_tiny else judging.FEATURES
        fid.check_width(self._statistics(data_dir), features)  # no run begins without statistics
        parts: dict[str, Mapping[str, Any]] = {}
        if self.text_embeddings:
            parts["text"] = clip_import.text_readers(folder, tower)
        parts |= tiny.weights(folder) if self.is_tiny else judging.full_weights(folder, tower)
        return {
            f"params/{part}/{path}": array
            for part, arrays in parts.items()
            for path, array in arrays.items()
        }

    def check_judges(self, data_dir: str, mesh: str | None = None) -> str:
        """FID and CLIP of the real pictures of the prompts: about 0, as the statistics are theirs, and high."""
        prompts, rows = self.data().prompts(data_dir), self.eval_rows
        tokens, _ = self.data().vocabulary(data_dir).rows(prompts.captions)
        count = len(tokens)
        numbers = np.arange(-(-count // rows) * rows) % count  # the last batch is filled up
        judge = brief.judging(self, data_dir, lambda j, b: j(b["images"], b["tokens"]), mesh)
        found = []
        for part in numbers.reshape(-1, rows):
            if self.is_tiny:
                images = tiny.real_images(count, part)
            else:
                images = judging.coco_images(data_dir, prompts.numbers[part, 0].tolist())
            found.append(judge({"images": images, "tokens": tokens[part]}))
        outputs = {name: np.concatenate([one[name] for one in found])[:count] for name in found[0]}
        quality = self.metric_from(data_dir).result(outputs)
        told = ", ".join(f"{name} {value:.4f}" for name, value in quality.items())
        if quality["FID"] > judging.REAL_FID or not self.meets_targets(quality):
            raise UserError(
                f"the real pictures of the prompts score {told}, and FID must be about 0: look whether Inception's "
                f"weights, {judging.STATISTICS} and the pictures are those that the rules name"
            )
        return f"the real pictures of the prompts score {told}"

    def metric_from(self, data_dir: str) -> metrics.FidClip:
        return metrics.FidClip(self._statistics(data_dir))

    def _statistics(self, data_dir: str) -> fid.Statistics:
        return fid.read_statistics(f"{self._weights(data_dir)}/{judging.STATISTICS}")

    def eval_steps(self) -> Iterator[int]:
        """Every ceil(512,000 / batch size) steps."""
        return schedules.every_samples(self.eval_every, self.batch_size)

    def quality_lines(self, quality: Mapping[str, float]) -> list[tuple[Any, dict[str, Any]]]:
        return [(quality[name], {"metric": name}) for name in ("FID", "CLIP")]

    # -- pictures ------------------------------------------------------------------------------

    def find(self, model: Any, batch: Any, judges: Any = None) -> Any:
        """Pictures of the captions, f32 [B, 8 S, 8 S, 3] in [0, 1]."""
        if "tokens" not in batch:
            raise UserError(
                f"these batches of {self.name} hold embeddings and no captions: draw split eval"
            )
        return self.generate_images(model, batch, jax.random.key(0), judges)

    def picture(self, batch: Any, names: Sequence[str] = (), found: Any = None) -> Any:
        """Captions with what was generated for them; without that, training's latents, three channels as colours."""
        if found is None and "moments" not in batch:
            raise UserError(
                f"the evaluation data of {self.name} are captions alone: give a run, which draws pictures for "
                "them, or split train"
            )
        images = batch["moments"][..., :3] if found is None else np.rint(255 * found)
        images = images if found is None else images.astype(np.uint8)
        pieces = list(names)
        said = [clip_bpe.spelled(pieces[token] for token in row) for row in batch.get("tokens", ())]
        return pictures.captioned(images, said or [""] * len(images))

    # -- the log and the recipes ---------------------------------------------------------------

    def optimizer_log(self) -> Mapping[str, Any]:
        return {
            "opt_name": "adamw",
            "opt_adamw_beta_1": self.beta_1,
            "opt_adamw_beta_2": self.beta_2,
            "opt_adamw_epsilon": self.epsilon,
            "opt_adamw_weight_decay": self.weight_decay,
            "opt_base_learning_rate": self.rate,
            "opt_learning_rate_warmup_steps": self.warmup_steps,
        }

    @classmethod
    def recipes(cls) -> Mapping[int, Self]:
        """The reference convergence points of ruleset 5.0.0."""
        return cls.recipe_table(
            "batch_size base_lr",
            (256, 2.8e-7),
            (384, 2.3e-7),
            (512, 2.3e-7),
            (1024, 1.25e-7),
            (2048, 1.25e-7),
        )

    # -- data and start ------------------------------------------------------------------------

    def data(self) -> Laion:
        return Laion(
            length=self.tokens,
            side=self.side,
            channels=judging.AUTOENCODER.channels,
            shards=self.shards,
            embedding_width=self.text_width if self.text_embeddings else 0,
            tiny=tiny.SIZES if self.is_tiny else None,
        )

    def start(self, data_dir: str) -> Start | None:
        """The text tower; the UNet begins with random weights, and the released ones are not used."""
        if self.text_embeddings:
            return None
        readers = clip_import.text_readers(self._weights(data_dir), self.text_tower())
        return Start({f"frozen/text/{path}": reader for path, reader in readers.items()})

    def write_embeddings(
        self, data_dir: str, shards: Sequence[int] | None = None, mesh: str | None = None
    ) -> None:
        """Writes the embeddings of all captions, which `text_embeddings` reads; those that are there are kept.

        Args:
            data_dir: holds the shards' index and the text tower.
            shards: numbers of those that are this machine's; all by default.
            mesh: as a run takes it.

        Raises:
            UserError: the index, the vocabulary or the text tower is missing.
        """
        data, rows = self.data(), self.eval_rows
        samples, tokenizer = data.samples(data_dir), data.vocabulary(data_dir)
        encoder = _TextEncoder.from_config(self.config())
        encode = brief.judging(
            encoder, data_dir, lambda tower, b: tower.conditioning(b["tokens"]), mesh
        )

        def embedded(captions: Iterable[str]) -> Iterator[np.ndarray]:
            """Nothing is done before the first is asked for, which of a shard that has its embeddings nobody does."""
            tokens, _ = tokenizer.rows(captions)
            filled = np.pad(tokens, ((0, -len(tokens) % rows), (0, 0)))
            for at in range(0, len(tokens), rows):
                yield encode({"tokens": filled[at : at + rows]})[: len(tokens) - at]

        for number in range(len(samples.shards)) if shards is None else shards:
            shard = samples.shards[number]
            laion.write_embeddings(data.embeddings(data_dir), shard, embedded(shard.captions()))

    def write_moments(
        self,
        images: str | os.PathLike,
        data_dir: str,
        shards: Sequence[int] | None = None,
        mesh: str | None = None,
    ) -> None:
        """Writes shards of moments from the organisers' shards of images; those that are there are kept.

        Args:
            images: holds `00000.tar` and so on, of `KEY.jpg` and `KEY.txt`.
            data_dir: holds the autoencoder; the shards go below it.
            shards: numbers of those that are this machine's; all by default.
            mesh: as a run takes it.

        Raises:
            UserError: the autoencoder or a shard is missing, or one is damaged.
        """
        encoder = _ImageEncoder.from_config(self.config())
        encode = brief.judging(encoder, data_dir, lambda encode, b: encode(b["images"]), mesh)
        folder = records.below(data_dir, laion.NAME)
        os.makedirs(folder, exist_ok=True)
        laion.prepare_all(
            images,
            lambda pixels: encode({"images": pixels}),
            folder,
            shards=range(self.shards) if shards is None else shards,
            rows=8 * jax.device_count(),
            side=judging.AUTOENCODER.side * self.side,
            report=print,
        )

    def make_start(self, data_dir: str) -> None:
        """Tiny's given networks: a random text tower, judges fitted to the shapes, and statistics of these."""
        folder = self._weights(data_dir)
        if not os.path.exists(f"{folder}/{judging.STATISTICS}"):
            tiny.make(folder, self.text_tower(), self.data().vocabulary(data_dir))

    def _weights(self, data_dir: str) -> str:
        return records.below(data_dir, self.weights)

    def tiny(self) -> Self:
        """Coloured shapes of 32 pixels with captions; judges of random convolutions, made by the build."""
        return self.replace(
            size="tiny",
            weights="tiny_stable_diffusion",
            side=tiny.SIDE,
            width=32,
            multipliers=(1,),
            res_blocks=1,
            attention_levels=0,
            head_width=16,
            groups=4,
            transformer_groups=8,
            tokens=12,
            vocab=tiny.VOCABULARY,
            text_layers=2,
            text_width=32,
            shards=4,
            train_samples=tiny.SIZES.train,
            eval_samples=tiny.SIZES.validation,
            batch_size=32,
            eval_batch_size=64,
            base_lr=1.5e-3 / 32,
            warmup_steps=20,
            beta_2=0.99,
            eval_every=32 * 225,
            sampler_steps=10,
            guidance=2.0,
            sample_limit=32 * 675,
            # of 20 seeds the best has CLIP 0.36 after the first third of its samples, 0.03 with shuffled captions
            targets=(Target("FID", at_most=0.75), Target("CLIP", at_least=0.42)),
        )


@dataclass(frozen=True, kw_only=True)
class _TextEncoder(StableDiffusion):
    """One whose only judge is the text tower, for `write_embeddings`."""

    def judges(self, rngs: Any) -> Any:
        return self._text(rngs)

    def judge_weights(self, data_dir: str) -> Mapping[str, np.ndarray | Reader]:
        found = clip_import.text_readers(self._weights(data_dir), self.text_tower())
        return {f"params/{path}": reader for path, reader in found.items()}


@dataclass(frozen=True, kw_only=True)
class _ImageEncoder(StableDiffusion):
    """One whose only judge is the autoencoder's first half, in at least float32, for `write_moments`."""

    def judges(self, rngs: Any) -> Any:
        kept = jnp.promote_types(self.dtype, jnp.float32)
        return autoencoder.Encoder(judging.AUTOENCODER, kept, rngs=rngs)

    def judge_weights(self, data_dir: str) -> Mapping[str, np.ndarray | Reader]:
        folder = self._weights(data_dir)
        found = diffusion_huggingface.open_autoencoder(folder, judging.AUTOENCODER, "encoder")
        return {f"params/{path}": reader for path, reader in found.items()}
