"""Text -> token files: JSON lines and a tokenizer become a Megatron `.bin`/`.idx` pair.

The organisers' C4 is 1,024 training files `c4-train.00000-of-01024.json.gz` and 8 for validation; each
line is a JSON object with the field `text`. Its ids are written without BOS or EOS, and a text
without ids gets no entry, as in NeMo's preprocessor. `build_tiny` does the same with docstrings.

Every file of text becomes a pair of its own, in any order and in several processes; at the end they are
joined in the order of the files. A build that was killed keeps the pairs that it had finished.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import building, records, text
from mlperf_jax.input_pipelines.tokens import megatron_file

C4_GROUP = 128  # files of C4 in each of the organisers' groups c4-train.en_0 .. en_7
C4_VALIDATION_DOCUMENTS = 91_205  # the benchmark's share of the 364,608
_BATCH = 256  # documents that a tokenizer is given at once


def c4_train_files(folder: str | os.PathLike, group: int) -> list[str]:
    """Returns the 128 files of the organisers' group c4-train.en_<group>, in order.

    Raises:
        UserError: some are missing; names the first.
    """
    numbers = range(group * C4_GROUP, (group + 1) * C4_GROUP)
    return _present(folder, [f"c4-train.{n:05d}-of-01024.json.gz" for n in numbers])


def c4_validation_files(folder: str | os.PathLike) -> list[str]:
    """Returns the 8 validation files of C4; the benchmark takes their first 91,205 documents."""
    return _present(folder, [f"c4-validation.{n:05d}-of-00008.json.gz" for n in range(8)])


def _present(folder: str | os.PathLike, names: Sequence[str]) -> list[str]:
    folder = records.local(folder)
    have = records.listing(folder) or {}
    missing = [name for name in names if name not in have]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of {len(names)} files of C4, the first is {missing[0]}; get "
            "them from https://huggingface.co/datasets/allenai/c4 (folder en)"
        )
    return [f"{folder}/{name}" for name in names]


# -- building ------------------------------------------------------------------------------------


def build(
    files: Sequence[str | os.PathLike],
    prefix: str | os.PathLike,
    tokenizer: str | os.PathLike,
    *,
    processes: int | None = None,
    documents: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> megatron_file.TokenFile:
    """Writes `<prefix>.bin` and `<prefix>.idx`, or finds them there already, and opens them.

    With more than one process, a script that calls this needs the guard `if __name__ == "__main__"`.

    Args:
        files: JSON lines, plain or .gz, in the order in which their documents are to stand.
        prefix: path of the result without its ending.
        tokenizer: file or folder, see `text.open_tokenizer`.
        processes: one per core by default; 1 to stay in this one.
        documents: take only the first so many lines of all files together.
        report: is told how far the build has come.

    Raises:
        UserError: a file is missing or damaged, no room on the disk, or a process was killed.
    """
    prefix, paths = records.local(prefix), [records.local(file) for file in files]
    with building.alone(prefix, resumes=True):
        if os.path.exists(f"{prefix}.idx"):
            return megatron_file.TokenFile(prefix)
        if not paths:
            raise UserError(f"there is no text to build {prefix} from")
        reader, parts = text.open_tokenizer(tokenizer), pathlib.Path(f"{prefix}.parts")
        sizes = [os.path.getsize(path) if os.path.exists(path) else None for path in paths]
        settings = {
            "texts": list(zip(map(os.path.abspath, paths), sizes)),
            "tokenizer": hashlib.sha256(pathlib.Path(reader.path).read_bytes()).hexdigest(),
            "documents": documents,
        }
        building.begin(parts, settings, restart=True)
        groups = [paths] if documents is not None else [[path] for path in paths]
        jobs = [(group, f"{parts}/{number:05d}") for number, group in enumerate(groups)]
        left = [job for job in jobs if not os.path.exists(f"{job[1]}.idx")]
        building.in_processes(
            functools.partial(_tokenize, reader.path, documents),
            left,
            processes or os.cpu_count() or 1,
            lambda done: report(f"{done} of {len(left)} files tokenized"),
        )
        with megatron_file.Writer(prefix, megatron_file.dtype_for(reader.size)) as writer:
            for _, part in jobs:
                if os.path.getsize(f"{part}.bin"):  # else all its texts were empty
                    writer.append(megatron_file.TokenFile(part))
        shutil.rmtree(parts, ignore_errors=True)
    return megatron_file.TokenFile(prefix)


def build_c4(
    source: records.Folder,
    data_dir: records.Folder,
    groups: Mapping[str, int],
    validation: str,
    validation_texts: Sequence[str] = (),
    report: Callable[[str], None] = print,
) -> None:
    """Writes token files of the organisers' groups of C4, and of its validation documents.

    Args:
        source: folder with C4's json.gz files and a tokenizer.
        data_dir: where the pairs go.
        groups: name of each training pair -> number of its group of 128 files.
        validation: name of the validation pair.
        validation_texts: files below `source` that are taken whole; by default the first documents of
            C4's own.
        report: is told how far the build has come.

    Raises:
        UserError: as `build`.
    """
    folder = records.local(data_dir)
    tokenizer = text.open_tokenizer(source).path
    wanted = {name: c4_train_files(source, group) for name, group in groups.items()}
    held_out = [f"{records.local(source)}/{name}" for name in validation_texts]
    documents = None if held_out else C4_VALIDATION_DOCUMENTS
    held_out = held_out or c4_validation_files(source)
    build(held_out, f"{folder}/{validation}", tokenizer, documents=documents, report=report)
    for name, files in wanted.items():
        build(files, f"{folder}/{name}", tokenizer, report=report)


_opened = functools.lru_cache(maxsize=1)(text.open_tokenizer)


def _tokenize(path: str, documents: int | None, job: tuple[list[str], str]) -> None:
    """Writes the pair of some files of text, or of the first documents of them."""
    if multiprocessing.parent_process():  # there is one for each core
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer, (files, prefix) = _opened(path), job
    lines = itertools.chain.from_iterable(text.read_lines(file, ["text"]) for file in files)
    texts = (line for (line,) in itertools.islice(lines, documents))
    with megatron_file.Writer(prefix, megatron_file.dtype_for(tokenizer.size)) as writer:
        while batch := list(itertools.islice(texts, _BATCH)):
            for ids in tokenizer.encode(batch):
                writer.add(ids)


# -- tiny ----------------------------------------------------------------------------------------

TINY_FILES = {
    "train": "docstrings.train_text_document",
    "train_0": "docstrings.train_0_text_document",
    "train_1": "docstrings.train_1_text_document",
    "validation": "docstrings.validation_text_document",
    "cut": "docstrings.cut_text_document",
}
_TINY_HELD_OUT = 16  # each 16th document validates
_TINY_CUT = 7659  # tokens of validation as one document: 119 windows of 64 and a short one


def build_tiny(data_dir: records.Folder, vocabulary: int = 512) -> dict[str, str]:
    """Writes `tiny_text_<vocabulary>` below `data_dir`: docstrings as token files, and their tokenizer.

    Returns:
        "train", its halves "train_0" and "train_1", "validation" and the beginning of it, "cut" -> prefix,
        "tokenizer" -> file. What is there already is kept.
    """
    folder = f"{records.local(data_dir)}/tiny_text_{vocabulary}"
    paths = {split: f"{folder}/{name}" for split, name in TINY_FILES.items()}
    paths["tokenizer"] = f"{folder}/tokenizer.json"
    with building.alone(folder) as target:
        if not all(os.path.exists(f"{paths[split]}.idx") for split in TINY_FILES):
            target.mkdir(exist_ok=True)
            _write_tiny(paths, vocabulary)
    return paths


def _write_tiny(paths: Mapping[str, str], vocabulary: int) -> None:
    texts = text.docstrings()
    text.train_tokenizer(texts, vocabulary, paths["tokenizer"])
    parts = {"train": [], "train_0": [], "train_1": [], "validation": []}
    for number, document in enumerate(texts):
        if (number + 1) % _TINY_HELD_OUT:
            parts["train"].append(document)
            parts[f"train_{number % 2}"].append(document)
        else:
            parts["validation"].append(document)
    for split, part in parts.items():
        lines = pathlib.Path(f"{paths[split]}.json")
        lines.write_text("".join(json.dumps({"text": document}) + "\n" for document in part))
        build([lines], paths[split], paths["tokenizer"], processes=1)
        lines.unlink()
    whole = megatron_file.TokenFile(paths["validation"])
    with megatron_file.Writer(paths["cut"], whole.dtype) as writer:
        writer.add(whole.read([0], [_TINY_CUT]))
