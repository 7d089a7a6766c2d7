"""GovReport packed into rows of 8,192 tokens, for LoRA fine-tuning of Llama 2 70B.

A document is its report in a prompt, its summary, EOS. Those longer than a row are dropped; the others
are concatenated and cut into rows. `pack` does that as the reference does, down to which documents
share a batch and so a remainder that is thrown away: 3,901 rows to train and 173 to validate.
Stored as `<name>_<split>_{inputs,labels}.npy`, int32 [rows, L], labels at the positions of their tokens.
Reference: mlcommons/training, llama2_70b_lora, scripts/utils.py.

Shape legend: L tokens of a row.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import records, text
from mlperf_jax.input_pipelines.examples import Batch, Examples
from mlperf_jax.input_pipelines.megatron import IGNORED

NAME, TINY_NAME = "govreport", "tiny_reports"
TINY_ROWS = {"train": 448, "validation": 28}  # of 256 tokens; what any version of Python fills
LENGTH = 8192
SHARDS = {"train": 8, "validation": 2}  # processes of the reference: each packs a contiguous share
_BATCH = 1000  # documents that are concatenated; what follows them begins a new row
_ENCODED = 16  # documents given to the tokenizer at once: a report has some 10,000 tokens
_SPLITS = ("train", "validation")

Document = tuple[np.ndarray, np.ndarray]  # tokens and labels, int32 of one length


# -- packing -------------------------------------------------------------------------------------


def encode(
    pairs: Iterable[tuple[str, str]], tokenizer: text.Tokenizer, mask_prompt: bool
) -> Iterator[Document]:
    """Yields the documents of (report, summary) pairs: BOS, prompt, summary, EOS.

    Args:
        pairs: texts.
        tokenizer: with BOS and EOS.
        mask_prompt: give the prompt's tokens and the final EOS the label IGNORED (validation); the
            prompt's are as many as it has when it is tokenized alone. Otherwise labels are tokens.
    """
    if tokenizer.bos is None or tokenizer.eos is None:
        raise UserError(f"{tokenizer.path} has no BOS and EOS; packing needs Llama 2's tokenizer")
    pairs = iter(pairs)
    while batch := list(itertools.islice(pairs, _ENCODED)):
        prompts = [f"### Summarize the following text:\n {r}\n ### Summary:\n" for r, _ in batch]
        whole = tokenizer.encode([f"{p} {s}" for p, (_, s) in zip(prompts, batch)])
        masked = [1 + len(ids) for ids in tokenizer.encode(prompts)] if mask_prompt else None
        for number, ids in enumerate(whole):
            tokens = np.array([tokenizer.bos, *ids, tokenizer.eos], np.int32)
            labels = tokens.copy()
            if masked:
                labels[: masked[number]] = IGNORED
                labels[-1] = IGNORED
            yield tokens, labels


def pack(documents: Iterable[Document], length: int, shards: int) -> tuple[np.ndarray, np.ndarray]:
    """Packs documents into rows; nothing crosses a shard or a batch of 1,000 documents.

    Args:
        documents: those of more than `length` tokens are dropped first.
        length: L.
        shards: contiguous shares of what is left, of equal size or one more.

    Returns:
        Tokens and labels, int32 [rows, L].
    """
    kept = [document for document in documents if len(document[0]) <= length]
    shards = max(1, min(shards, len(kept)))
    small, larger = divmod(len(kept), shards)
    inputs, labels, at = [], [], 0
    for shard in range(shards):
        end = at + small + (shard < larger)
        for first in range(at, end, _BATCH):
            batch = kept[first : min(first + _BATCH, end)]
            inputs.append(_cut([tokens for tokens, _ in batch], length))
            labels.append(_cut([labels for _, labels in batch], length))
        at = end
    empty = [np.zeros((0, length), np.int32)]
    return np.concatenate(inputs or empty), np.concatenate(labels or empty)


def _cut(parts: Sequence[np.ndarray], length: int) -> np.ndarray:
    stream = np.concatenate(parts)
    return stream[: len(stream) // length * length].reshape(-1, length)


def build(
    data_dir: str | os.PathLike,
    source: str | os.PathLike,
    tokenizer: str | os.PathLike,
    *,
    length: int = LENGTH,
    name: str = NAME,
    rows: Mapping[str, int] | None = None,
) -> str:
    """Writes the packed rows below `data_dir` and returns it; what is there already is kept.

    Args:
        data_dir: where `<name>_train_inputs.npy` and its three companions go.
        source: folder with train.jsonl and validation.jsonl: lines with the fields input and output.
        tokenizer: Llama 2's, file or folder.
        length: L.
        name: of the files.
        rows: keep only so many of each split.

    Raises:
        UserError: a file is missing or damaged, or does not fill a row, or as many as are kept.
    """
    folder, source = records.local(data_dir), records.local(source)
    reader = text.open_tokenizer(tokenizer)
    for split in _SPLITS:
        if not os.path.exists(_path(folder, name, split, "labels")):
            pairs: Iterator = text.read_lines(f"{source}/{split}.jsonl", ["input", "output"])
            documents = encode(pairs, reader, mask_prompt=split == "validation")
            inputs, labels = pack(documents, length, SHARDS[split])
            wanted = rows[split] if rows else 1
            if len(inputs) < wanted:
                raise UserError(
                    f"{source}/{split}.jsonl fills {len(inputs)} rows of {length} tokens, not {wanted}"
                )
            if rows:
                inputs, labels = inputs[:wanted], labels[:wanted]
            _save(folder, name, split, inputs, labels)
    return folder


def build_from_parquet(
    data_dir: str | os.PathLike, source: str | os.PathLike, *, name: str = NAME
) -> str:
    """Writes the rows that the organisers packed, train*.parquet and validation*.parquet, as arrays.

    Their columns are input_ids and labels, lists of one length.
    """
    try:
        from pyarrow import parquet
    except ImportError:
        raise UserError("reading parquet files needs pyarrow: pip install pyarrow") from None
    folder, source = records.local(data_dir), records.local(source)
    for split in _SPLITS:
        files = sorted(str(path) for path in pathlib.Path(source).glob(f"{split}*.parquet"))
        if not files:
            raise UserError(f"{source} has no {split}*.parquet")
        try:
            tables = [parquet.read_table(path, columns=["input_ids", "labels"]) for path in files]
            columns = [
                np.concatenate([np.stack(t[key].to_numpy()).astype(np.int32) for t in tables])
                for key in ("input_ids", "labels")
            ]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{files[0]}: {error}; fetch it again") from error
        _save(folder, name, split, *columns)
    return folder


def _path(folder: str, name: str, split: str, what: str) -> str:
    return f"{folder}/{name}_{split}_{what}.npy"


def _save(folder: str, name: str, split: str, inputs: np.ndarray, labels: np.ndarray) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
        for what, rows in (("inputs", inputs), ("labels", labels)):  # labels last: then complete
            path = _path(folder, name, split, what)
            with open(f"{path}.incomplete-{os.getpid()}", "wb") as file:
                np.save(file, rows)
            os.replace(file.name, path)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from error


# -- reading -------------------------------------------------------------------------------------


class PackedRows:
    """The rows of one split, memory mapped. Opening reads the headers, no row."""

    def __init__(self, data_dir: str | os.PathLike, split: str, name: str = NAME):
        folder = records.local(data_dir)
        self._given = folder, split, name
        self.paths = [_path(folder, name, split, what) for what in ("inputs", "labels")]
        self.arrays = [_mapped(path) for path in self.paths]
        inputs, labels = self.arrays
        if inputs.shape != labels.shape:
            raise UserError(
                f"{self.paths[0]} has shape {inputs.shape} and {self.paths[1]} {labels.shape}; build both "
                "again"
            )

    @property
    def length(self) -> int:
        """L, tokens of a row."""
        return self.arrays[0].shape[1]

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __repr__(self) -> str:
        return f"PackedRows({self.paths[0]}, {len(self):,} rows of {self.length})"

    def __reduce__(self) -> Any:  # by its path: a pickled memory map is the whole file
        return PackedRows, self._given

    def __getitem__(self, index: int) -> tuple[int, np.ndarray, np.ndarray]:
        return index, self.arrays[0][index], self.arrays[1][index]

    def describe(self, index: int) -> str:
        return f"{self.paths[0]}, row {index}"


def _mapped(path: str) -> np.ndarray:
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing; build it with: mlperf-jax data build llama2_70b_lora"
        ) from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged or cut short ({error}); build it again") from error
    if rows.ndim != 2 or rows.dtype != np.int32 or not rows.size:
        raise UserError(
            f"{path} holds {rows.dtype} of shape {rows.shape}; expected int32 [rows, tokens]"
        )
    return rows


@dataclasses.dataclass(frozen=True)
class ShiftedRow:
    """Row -> {"inputs": i32 [L], "labels": i32 [L]}: the label of a position is the next token's.

    The last position has none, so 8,191 of 8,192 are scored in training.
    """

    source: PackedRows
    vocabulary: int | None
    rows_at_once: int = 64

    def __len__(self) -> int:
        return len(self.source)

    def in_runs(self, source: PackedRows) -> ShiftedRow:
        """Itself: it is a source of whole batches."""
        return self

    def begin(self, ids: np.ndarray) -> Batch:
        return {n: np.zeros((len(ids), self.source.length), np.int32) for n in ("inputs", "labels")}

    def read(self, ids: np.ndarray, out: Batch) -> None:
        for row, index in enumerate(ids.tolist()):
            inputs, labels = (array[index] for array in self.source.arrays)
            self._check_row(index, inputs, labels)
            out["inputs"][row] = inputs
            out["labels"][row, :-1], out["labels"][row, -1] = labels[1:], IGNORED

    def describe(self, index: int) -> str:
        return self.source.describe(index)

    def __call__(self, row: tuple[int, np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
        index, inputs, labels = row
        self._check_row(index, inputs, labels)
        return {"inputs": inputs, "labels": np.append(labels[1:], np.int32(IGNORED))}

    def _check_row(self, index: int, inputs: np.ndarray, labels: np.ndarray) -> None:
        if self.vocabulary is not None:
            self._check(0, index, inputs, inputs)
            self._check(1, index, labels, np.where(labels == IGNORED, 0, labels))

    def _check(self, which: int, index: int, raw: np.ndarray, ids: np.ndarray) -> None:
        wrong = np.flatnonzero((ids < 0) | (ids >= self.vocabulary))
        if len(wrong):
            rows, at = self.source.arrays[which], int(wrong[0])
            offset = getattr(rows, "offset", 0) + (index * rows.shape[1] + at) * rows.itemsize
            raise UserError(
                f"{self.source.paths[which]}, row {index}: token id {raw[at]} at byte {offset} (position "
                f"{at}) is outside the vocabulary of {self.vocabulary}; build it again with the model's "
                "tokenizer"
            )


def train(
    data_dir: str | os.PathLike, *, vocabulary: int | None = None, name: str = NAME
) -> Examples:
    """Training examples, in a fresh permutation each epoch; batches run on across epochs."""
    rows = PackedRows(data_dir, "train", name)
    return Examples(rows, ShiftedRow(rows, vocabulary), last_batch="mix")


def validation(
    data_dir: str | os.PathLike, *, vocabulary: int | None = None, name: str = NAME
) -> Examples:
    """Validation examples, each row once; only the summaries' tokens have labels."""
    rows = PackedRows(data_dir, "validation", name)
    return Examples(rows, ShiftedRow(rows, vocabulary), shuffle=False, last_batch="keep")


# -- tiny ----------------------------------------------------------------------------------------


def build_tiny(data_dir: str | os.PathLike, vocabulary: int = 512, length: int = 256) -> str:
    """Writes docstrings as reports, their first lines as summaries, packed with the tiny tokenizer.

    Returns:
        The folder; read it with `train(folder, name=TINY_NAME)`.
    """
    folder = records.local(data_dir)
    target = f"{folder}/{TINY_NAME}_{vocabulary}_{length}"
    if os.path.exists(_path(target, TINY_NAME, "validation", "labels")):
        return target
    tokenizer = text.build_tiny(folder, vocabulary)["tokenizer"]
    pairs = [(body.strip(), first.strip()) for first, _, body in _titled(text.docstrings())]
    os.makedirs(target, exist_ok=True)
    for split in TINY_ROWS:
        lines = [
            json.dumps({"input": body, "output": first})
            for body, first in pairs
            if _held_out(body) == (split == "validation")
        ]
        pathlib.Path(target, f"{split}.jsonl").write_text("\n".join(lines))
    rows = {split: count * 256 // length for split, count in TINY_ROWS.items()}
    return build(target, target, tokenizer, length=length, name=TINY_NAME, rows=rows)


def _held_out(body: str) -> bool:
    """Whether a tiny report validates: by its own words, as versions of Python add and drop others."""
    return hashlib.blake2b(body.encode(), digest_size=1).digest()[0] < 20  # of 256


def _titled(texts: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Docstrings that have a first line, an empty one and a body."""
    parts = (document.partition("\n\n") for document in texts)
    return (part for part in parts if part[2].strip() and "\n" not in part[0])
