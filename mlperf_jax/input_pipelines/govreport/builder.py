"""Packs GovReport: documents are concatenated and cut into rows, those longer than a row dropped.

`pack` does that as the reference does, down to which documents share a batch and so a remainder that is
thrown away: 3,901 rows to train and 173 to validate. Labels stand at the positions of their tokens.
Reference: mlcommons/training, llama2_70b_lora, scripts/utils.py.

Shape legend: L tokens of a row.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from mlperf_jax.errors import UserError, optional
from mlperf_jax.input_pipelines import building, records, text
from mlperf_jax.input_pipelines.govreport import files
from mlperf_jax.input_pipelines.tokens.builder import build_tiny as build_docstrings
from mlperf_jax.input_pipelines.tokens.megatron import IGNORED

TINY_ROWS = {"train": 448, "validation": 28}  # of 256 tokens; what any version of Python fills
SHARDS = {"train": 8, "validation": 2}  # processes of the reference: each packs a contiguous share
_BATCH = 1000  # documents that are concatenated; what follows them begins a new row
_ENCODED = 16  # documents given to the tokenizer at once: a report has some 10,000 tokens

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
    stem: str,
    source: records.Folder,
    tokenizer: records.Folder,
    *,
    length: int,
    rows: Mapping[str, int] | None = None,
) -> None:
    """Writes the packed rows; what is there already is kept.

    Args:
        stem: what the paths of the four arrays begin with.
        source: folder with train.jsonl and validation.jsonl: lines with the fields input and output.
        tokenizer: Llama 2's, file or folder.
        length: L.
        rows: keep only so many of each split.

    Raises:
        UserError: a file is missing or damaged, or does not fill a row, or as many as are kept.
    """
    source, reader = records.local(source), text.open_tokenizer(tokenizer)
    with building.alone(stem, resumes=True):
        for split in files.SPLITS:
            if os.path.exists(files.path(stem, split, "labels")):
                continue
            pairs: Iterator = text.read_lines(f"{source}/{split}.jsonl", ["input", "output"])
            documents = encode(pairs, reader, mask_prompt=split == "validation")
            inputs, labels = pack(documents, length, SHARDS[split])
            wanted = rows[split] if rows else 1
            if len(inputs) < wanted:
                raise UserError(
                    f"{source}/{split}.jsonl fills {len(inputs)} rows of {length} tokens, not {wanted}"
                )
            kept = slice(wanted if rows else None)
            _save(stem, split, inputs[kept], labels[kept])


def build_from_parquet(stem: str, source: records.Folder) -> None:
    """Writes the rows that the organisers packed, train*.parquet and validation*.parquet, as arrays.

    Their columns are input_ids and labels, lists of one length.
    """
    parquet = optional("pyarrow.parquet", "text", "reading parquet files")
    source = records.local(source)
    with building.alone(stem):
        for split in files.SPLITS:
            found = sorted(str(path) for path in pathlib.Path(source).glob(f"{split}*.parquet"))
            if not found:
                raise UserError(f"{source} has no {split}*.parquet")
            try:
                tables = [
                    parquet.read_table(path, columns=["input_ids", "labels"]) for path in found
                ]
                columns = [
                    np.concatenate([np.stack(t[key].to_numpy()).astype(np.int32) for t in tables])
                    for key in ("input_ids", "labels")
                ]
            except (OSError, ValueError, KeyError) as error:
                raise UserError(f"{found[0]}: {error}; fetch it again") from error
            _save(stem, split, *columns)


def _save(stem: str, split: str, inputs: np.ndarray, labels: np.ndarray) -> None:
    for what, rows in (("inputs", inputs), ("labels", labels)):  # labels last: then complete
        with building.unfinished(files.path(stem, split, what)) as part, open(part, "wb") as file:
            np.save(file, rows)


# -- tiny ----------------------------------------------------------------------------------------


def build_tiny(data_dir: records.Folder, vocabulary: int, length: int) -> None:
    """Writes docstrings as reports, their first lines as summaries, packed with the tiny tokenizer."""
    stem = files.stem(data_dir, f"{vocabulary}_{length}")
    if os.path.exists(files.path(stem, "validation", "labels")):
        return
    tokenizer = build_docstrings(data_dir, vocabulary)["tokenizer"]
    parts = [document.partition("\n\n") for document in text.docstrings()]
    # those that have a first line, an empty one and a body
    pairs = [(b.strip(), a.strip()) for a, _, b in parts if b.strip() and "\n" not in a]
    source = pathlib.Path(stem).parent
    source.mkdir(exist_ok=True)
    for split in files.SPLITS:
        lines = [
            json.dumps({"input": body, "output": first})
            for body, first in pairs
            if _held_out(body) == (split == "validation")
        ]
        (source / f"{split}.jsonl").write_text("\n".join(lines))
    rows = {split: count * 256 // length for split, count in TINY_ROWS.items()}
    build(stem, source, tokenizer, length=length, rows=rows)


def _held_out(body: str) -> bool:
    """Whether a tiny report validates: by its own words, as versions of Python add and drop others."""
    return hashlib.blake2b(body.encode(), digest_size=1).digest()[0] < 20  # of 256
