"""LAION-400M's images whose licence is known, as moments of latents with captions, for Stable Diffusion v2.

The organisers' 832 shards are read where they lie, in an order of our own: each sample once an epoch, reshuffled.
Differs: the reference draws shards with replacement and shuffles a thousand samples of theirs. Evaluation's prompts are
captions of COCO. Tiny are coloured shapes in the same files.

Reference: mlcommons/training, stable_diffusion, ldm/data.
Shape legend: T tokens of a caption, S side of a latent, C its channels, W width of the text encoder.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import building, drawing, pipeline, records
from mlperf_jax.input_pipelines.laion import (
    builder,
    embeddings,
    files,
    prompts,
    rows,
    tiny as shapes,
)
from mlperf_jax.input_pipelines.laion.prompts import Prompts
from mlperf_jax.input_pipelines.sources import Batch
from mlperf_jax.input_pipelines.tokenizers import clip_bpe
from mlperf_jax.input_pipelines.tokenizers.clip_bpe import ClipBpe

_VOCABULARY = 49_408  # of CLIP's byte pairs; the last two begin and end a caption
_MEAN_CAPTION = 10  # tokens between those two
_LOOKED_AT = 4  # samples of each shard that `check` reads, and 1,024 prompts


@dataclasses.dataclass(frozen=True)
class Laion:
    """The data set: every method takes the folder that holds `laion`, or the shards themselves.

    Attributes:
        tokenizer: of captions; None for CLIP's, whose vocabulary lies beside the shards or in the data folder.
        length: T.
        side: S.
        channels: C.
        shards: how many there are.
        embedding_width: W of embeddings that were written beforehand and are read in the place of tokens; 0 for none.
        tiny: the shapes in the place of LAION, so many.
    """

    tokenizer: rows.Tokenizer | None = None
    length: int = 77
    side: int = 64
    channels: int = 4
    shards: int = 832
    embedding_width: int = 0
    tiny: shapes.Sizes | None = None

    def __post_init__(self) -> None:
        if self.tiny and (self.side * shapes.PATCH, self.channels) != (
            self.tiny.image,
            shapes.CHANNELS,
        ):
            raise UserError(
                f"side and channels are {self.side} and {self.channels}: shapes of {self.tiny.image} pixels have "
                f"latents of {self.tiny.image // shapes.PATCH} and {shapes.CHANNELS}"
            )

    def train(self, folder: records.Folder) -> pipeline.Split:
        """Training rows {"moments": f32 [S, S, 2C], "tokens": i32 [T]}, see `rows.CaptionedMoments`.

        Each sample once an epoch in a fresh order; batches run on across epochs.

        Raises:
            UserError: a shard, its index or its embeddings are missing, cut short or of another form.
        """
        samples = self.samples(folder)
        found = None
        if self.embedding_width:
            given = self.embeddings(folder), samples, self.length, self.embedding_width
            found = embeddings.Embeddings(*given)
        source = rows.CaptionedMoments(
            samples, self._tokenizer(folder), self.length, self.embedding_width, found
        )
        return pipeline.training(source, last_batch="mix")

    def validation(self, folder: records.Folder) -> pipeline.Split:
        """Evaluation's rows {"tokens": i32 [T], "image_id": i32, "id": i32}, each prompt once in the table's order.

        Raises:
            UserError: the table is missing or damaged.
        """
        source = rows.PromptRows(self.prompts(folder), self._tokenizer(folder), self.length)
        return pipeline.evaluation(source)

    def drawn(self, rows: int, example: Mapping[str, Any], rng: np.random.Generator) -> Batch:
        """{"moments", "tokens", "image_id", "id"}: captions of about twelve tokens; see `DrawsBatches`."""
        vocabulary = shapes.VOCABULARY if self.tiny else _VOCABULARY
        length = np.minimum(2 + rng.poisson(_MEAN_CAPTION, rows), self.length)[:, None]
        place = np.arange(self.length)
        words = drawing.log_uniform(rng, vocabulary - 2, (rows, self.length))
        tokens = np.where(place < length - 1, words, np.where(place < length, vocabulary - 1, 0))
        tokens[:, 0] = vocabulary - 2
        form = (rows, self.side, self.side, self.channels)
        mean, log_variance = rng.standard_normal((2, *form), np.float32)
        number = np.arange(rows, dtype=np.int32)
        return {
            "moments": np.concatenate([5 * mean, log_variance - 8], -1),
            "tokens": tokens.astype(np.int32),
            "image_id": number,
            "id": number,
        }

    def counts(self, folder: records.Folder) -> dict[str, int]:
        """Prompts; training's samples are repeated as a run asks. Raises as `train` and `validation`."""
        self.samples(folder)
        return {"validation": len(self.prompts(folder).captions)}

    def samples(self, folder: records.Folder) -> files.Samples:
        """The shards, for `write_embeddings`; raises as `train`."""
        return files.Samples(self._place(folder), self.shards, self._form)

    def embeddings(self, folder: records.Folder) -> str:
        """The folder of captions' embeddings, for `write_embeddings`; raises as `train`."""
        return f"{self._place(folder).folder}/{embeddings.FOLDER}"

    def prompts(self, folder: records.Folder) -> Prompts:
        """The captions of evaluation and their images' numbers; raises as `validation`."""
        return prompts.read(self._beside(folder, prompts.FILE))

    def build(self, folder: records.Folder, source: records.Folder | None = None) -> None:
        """Writes the index of the shards, one process a core; the indices that are there are kept.

        Args:
            folder: holds `laion` with the shards, or the shards.
            source: the folder of shards that lie elsewhere, and stay there: the index goes below `folder`.

        Raises:
            UserError: no shards, one is missing or damaged, or the folder may not be written.
        """
        if self.tiny:
            self._build_tiny(folder, self.tiny)
            return
        place = files.locate(self._folders(folder))
        if source is not None:
            given = os.path.abspath(records.mapped(source))
            if place is None:
                place = files.Place(self._folders(folder)[0], given)
                with (
                    building.alone(f"{place.folder}/{files.ELSEWHERE}") as path,
                    building.unfinished(path) as part,
                ):
                    part.write_text(given)
            elif os.path.abspath(place.shards) != given:
                raise UserError(
                    f"{place.folder} reads the shards in {place.shards}, not those in {given}: remove "
                    f"{place.folder}, or leave out --source"
                )
        if place is None:
            raise UserError(self._missing(folder))
        builder.build(place, self.shards, self._form, pipeline.usable_cores(), print)

    def class_names(self, folder: records.Folder) -> tuple[str, ...]:
        """The pieces of CLIP's vocabulary by id, which `clip_bpe.spelled` joins; none of another tokenizer."""
        tokenizer = self._tokenizer(folder)
        return tokenizer.pieces if isinstance(tokenizer, ClipBpe) else ()

    def check(self, folder: records.Folder) -> list[str]:
        """Reads some samples of every shard, and some prompts; says how many captions are cut."""
        source: Any = self.train(folder).source
        samples = source.samples
        size = sum(shard.size for shard in samples.shards)
        found = [
            f"train: {len(samples):,} samples in {len(samples.shards)} shards, {size / 1e9:,.2f} GB"
        ]
        captions = []
        for shard in samples.shards:
            looked_at = sorted({*np.linspace(0, len(shard) - 1, _LOOKED_AT).astype(int).tolist()})
            ranges = [shard.array(i) for i in looked_at] + [shard.member(i) for i in looked_at]
            read = shard.files.read(ranges)
            for index, array, text in zip(looked_at, read, read[len(looked_at) :]):
                try:
                    captions.append(self._examined(shard, index, array, text))
                except UserError as error:
                    found.append(f"problem: {error}")
        found.append(self._cut("train", captions, source.tokenizer))
        table = self.prompts(folder)
        found.append(f"validation: {len(table.captions):,} prompts")
        found.append(self._cut("validation", list(table.captions[:1024]), source.tokenizer))
        return found

    def _examined(self, shard: files.Shard, index: int, array: Any, text: Any) -> str:
        """The caption of a sample whose array is one of moments; both in bytes."""
        files.check_header(shard.describe(index), bytes(array[:256]), self._form)
        shard.check_finite(index, shard.moments(index, array))
        return shard.caption(index, text)

    def _cut(self, split: str, captions: list[str], tokenizer: rows.Tokenizer) -> str:
        cut = sum(rows.is_cut(tokenizer, caption, self.length) for caption in captions)
        return (
            f"{split}: {cut:,} of {len(captions):,} captions looked at have more than {self.length} tokens and are "
            "cut, as CLIP cuts them"
        )

    @property
    def _form(self) -> files.Form:
        return files.Form(2 * self.channels, self.side)

    def _folders(self, folder: records.Folder) -> list[str]:
        """Where the shards may lie, the usual place first."""
        base = records.local(folder)
        if self.tiny:
            sizes = "_".join(map(str, (*self.tiny, self.shards)))
            return [f"{base}/tiny_{files.NAME}_{sizes}"]
        return [f"{base}/{files.NAME}", base]

    def _place(self, folder: records.Folder) -> files.Place:
        place = files.locate(self._folders(folder))
        if place is None:
            raise UserError(self._missing(folder))
        return place

    def _missing(self, folder: records.Folder) -> str:
        if self.tiny:
            return records.missing_tiny("shapes as LAION", "stable_diffusion", str(folder))
        return (
            f"no shards of LAION in {self._folders(folder)[0]}: fetch the organisers' moments "
            f"(mlperf-jax data fetch stable_diffusion), {files.shard_name(0)} to "
            f"{files.shard_name(self.shards - 1)}, or name their folder with --source"
        )

    def _tokenizer(self, folder: records.Folder) -> rows.Tokenizer:
        return self.vocabulary(folder) if self.tokenizer is None else self.tokenizer

    def vocabulary(self, folder: records.Folder) -> ClipBpe:
        """CLIP's tokenizer, by the vocabulary of the data folder.

        Raises:
            UserError: it is missing or damaged.
        """
        return ClipBpe(self._beside(folder, clip_bpe.VOCABULARY), context=self.length)

    def _beside(self, folder: records.Folder, name: str) -> str:
        """A file of the data's own folder, of that of the shards, or of the one that holds them."""
        place = self._place(folder)
        folders = [place.folder, place.shards, records.local(folder)]
        there = [at for at in folders if name in (records.listing(at) or {})]
        return f"{(there or folders)[0]}/{name}"

    def _build_tiny(self, folder: records.Folder, sizes: shapes.Sizes) -> None:
        with building.alone(self._folders(folder)[0]) as target:
            if target.exists():
                return
            with building.unfinished(target) as part:
                part.mkdir()
                shapes.write(part, sizes, self.shards)
                place = files.Place(os.fspath(part), os.fspath(part))
                builder.build(place, self.shards, self._form)
