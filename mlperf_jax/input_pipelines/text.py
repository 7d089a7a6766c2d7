"""Text -> token files: JSON lines and a tokenizer become a Megatron `.bin`/`.idx` pair.

The organisers' C4 is 1,024 training files `c4-train.00000-of-01024.json.gz` and 8 for validation; each
line is a JSON object with the field `text`. Its ids are written without BOS or EOS, and a text
without ids gets no entry, as in NeMo's preprocessor. `build_tiny` does the same with docstrings.

Every file of text becomes a pair of its own, in any order and in several processes; at the end they are
joined in the order of the files. A build that was killed keeps the pairs that it had finished.
"""

from __future__ import annotations

import ast
import concurrent.futures
import concurrent.futures.process
import dataclasses
import functools
import gzip
import hashlib
import itertools
import json
import multiprocessing
import os
import pathlib
import shutil
import sysconfig
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import megatron_file, records

C4_GROUP = 128  # files of C4 in each of the organisers' groups c4-train.en_0 .. en_7
C4_VALIDATION_DOCUMENTS = 91_205  # the benchmark's share of the 364,608
_BATCH = 256  # documents that a tokenizer is given at once
_BOS, _EOS = ("<s>", "<|begin_of_text|>"), ("</s>", "<|end_of_text|>")


# -- tokenizers ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A tokenizer read from a file.

    Args:
        path: its file.
        size: entries, the added ones included: ids lie below it.
        encode: texts -> ids, without BOS and EOS.
        decode: ids -> text.
        bos: id that begins a sequence, where the tokenizer has one.
        eos: id that ends it.
    """

    path: str
    size: int
    encode: Callable[[list[str]], list[list[int]]]
    decode: Callable[[Sequence[int]], str]
    bos: int | None
    eos: int | None


def open_tokenizer(path: str | os.PathLike) -> Tokenizer:
    """Reads a `tokenizer.json` (tokenizers), a `.model` file (sentencepiece), or a folder with one.

    Raises:
        UserError: there is none, it is damaged, or its library is not installed.
    """
    found = records.local(path)
    if os.path.isdir(found):
        names = [n for n in sorted(os.listdir(found)) if n == "tokenizer.json" or _is_model(n)]
        if not names:
            raise UserError(f"{found} holds no tokenizer: expected tokenizer.json or *.model")
        found = f"{found}/{'tokenizer.json' if 'tokenizer.json' in names else names[0]}"
    if not os.path.isfile(found):
        raise UserError(f"no tokenizer at {found}: expected tokenizer.json or *.model")
    try:
        return _sentencepiece(found) if _is_model(found) else _tokenizers(found)
    except ImportError as error:
        raise UserError(
            f"reading {found} needs the library {error.name}: pip install {error.name}"
        ) from None
    except UserError:
        raise
    except Exception as error:  # both libraries raise bare Exception or RuntimeError
        raise UserError(f"{found} is no tokenizer, or damaged ({error}); fetch it again") from error


def _is_model(name: str) -> bool:
    return name.endswith((".model", ".model.v1", ".model.v3"))


def _tokenizers(path: str) -> Tokenizer:
    import tokenizers

    model = tokenizers.Tokenizer.from_file(path)
    model.no_padding()
    model.no_truncation()

    def encode(texts: list[str]) -> list[list[int]]:
        return [e.ids for e in model.encode_batch(texts, add_special_tokens=False)]

    def special(names: Sequence[str]) -> int | None:
        ids = (model.token_to_id(name) for name in names)
        return next((i for i in ids if i is not None), None)

    size = model.get_vocab_size(with_added_tokens=True)
    return Tokenizer(path, size, encode, model.decode, special(_BOS), special(_EOS))


def _sentencepiece(path: str) -> Tokenizer:
    import sentencepiece

    model: Any = sentencepiece.SentencePieceProcessor(model_file=path)
    bos, eos = (i if i >= 0 else None for i in (model.bos_id(), model.eos_id()))
    return Tokenizer(
        path, model.get_piece_size(), model.encode, lambda ids: model.decode(list(ids)), bos, eos
    )


# -- JSON lines ----------------------------------------------------------------------------------


def read_lines(path: str, fields: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yields the wanted text fields of each line of a JSON-lines file, gzipped if its name says so.

    Raises:
        UserError: the file is missing or damaged, or a line is not such an object; names the line.
    """
    number = 0
    try:
        with gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _fields(line, fields, f"{path}, line {number}")
    except FileNotFoundError:
        raise UserError(f"{path} is missing; fetch it, or name another file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path} is damaged or cut short after line {number} ({error}); fetch it again"
        ) from error


def _fields(line: bytes, fields: Sequence[str], where: str) -> tuple[str, ...]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is not JSON ({error}); fetch the file again") from error
    values = tuple(record.get(name) if isinstance(record, dict) else None for name in fields)
    for name, value in zip(fields, values):
        if not isinstance(value, str):
            raise UserError(f"{where} has no text in the field {name!r}")
    return values  # type: ignore[return-value]


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


@dataclasses.dataclass(frozen=True)
class _Task:
    """What becomes one pair: some files of text, or the first documents of them."""

    files: tuple[str, ...]
    prefix: str
    tokenizer: str
    field: str
    documents: int | None


def build(
    files: Sequence[str | os.PathLike],
    prefix: str | os.PathLike,
    tokenizer: str | os.PathLike,
    *,
    processes: int | None = None,
    documents: int | None = None,
    field: str = "text",
    report: Callable[[str], None] = lambda line: None,
) -> megatron_file.TokenFile:
    """Writes `<prefix>.bin` and `<prefix>.idx`, or finds them there already, and opens them.

    With more than one process, a script that calls this needs the guard `if __name__ == "__main__"`.

    Args:
        files: JSON lines, plain or .gz, in the order in which their documents are to stand.
        prefix: path of the result without its ending.
        tokenizer: file or folder, see `open_tokenizer`.
        processes: one per core by default; 1 to stay in this one.
        documents: take only the first so many lines of all files together.
        field: of each line.
        report: is told how far the build has come.

    Raises:
        UserError: a file is missing or damaged, no room on the disk, or a process was killed.
    """
    prefix = records.local(prefix)
    if prefix.startswith("gs://"):
        raise UserError(
            "text is tokenized into a local folder; copy the result to gs:// afterwards"
        )
    if os.path.exists(f"{prefix}.idx"):
        return megatron_file.TokenFile(prefix)
    reader, paths = open_tokenizer(tokenizer), tuple(records.local(f) for f in files)
    if not paths:
        raise UserError(f"there is no text to build {prefix} from")
    parts = f"{prefix}.parts-{_recipe(paths, reader.path, field, documents)}"
    groups = [paths] if documents is not None else [(path,) for path in paths]
    tasks = [
        _Task(group, f"{parts}/{number:05d}", reader.path, field, documents)
        for number, group in enumerate(groups)
    ]
    try:
        os.makedirs(parts, exist_ok=True)
        _run([t for t in tasks if not os.path.exists(f"{t.prefix}.idx")], processes, report)
        with megatron_file.Writer(prefix, megatron_file.dtype_for(reader.size)) as writer:
            for task in tasks:
                if os.path.getsize(f"{task.prefix}.bin"):  # else all its texts were empty
                    writer.append(megatron_file.TokenFile(task.prefix))
        shutil.rmtree(parts, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"cannot write {prefix}: {error.strerror or error}; what is finished is kept, run the build again"
        ) from error
    return megatron_file.TokenFile(prefix)


def build_c4(
    source: str | os.PathLike,
    data_dir: str | os.PathLike,
    groups: Mapping[str, int],
    validation: str,
    *,
    validation_files: Sequence[str] = (),
    documents: int | None = C4_VALIDATION_DOCUMENTS,
    report: Callable[[str], None] = print,
) -> None:
    """Writes token files of the organisers' groups of C4, and of its validation documents.

    Args:
        source: folder with C4's json.gz files and a tokenizer.
        data_dir: where the pairs go.
        groups: name of each training pair -> number of its group of 128 files.
        validation: name of the validation pair.
        validation_files: names below `source`; C4's own by default.
        documents: of the validation files, the first so many.
        report: is told how far the build has come.

    Raises:
        UserError: as `build`.
    """
    folder = records.local(data_dir)
    tokenizer = open_tokenizer(source).path
    wanted = {name: c4_train_files(source, group) for name, group in groups.items()}
    if validation_files:
        held_out = [f"{records.local(source)}/{name}" for name in validation_files]
    else:
        held_out = c4_validation_files(source)
    build(held_out, f"{folder}/{validation}", tokenizer, documents=documents, report=report)
    for name, files in wanted.items():
        build(files, f"{folder}/{name}", tokenizer, report=report)


def _recipe(paths: Sequence[str], tokenizer: str, field: str, documents: int | None) -> str:
    """A short digest of what the parts depend on, so that those of another build are never joined."""
    digest = hashlib.sha256(pathlib.Path(tokenizer).read_bytes())
    for path in paths:
        size = os.path.getsize(path) if os.path.exists(path) else None
        digest.update(f"{os.path.abspath(path)}\0{size}\0".encode())
    digest.update(f"{field}\0{documents}".encode())
    return digest.hexdigest()[:12]


def _run(tasks: Sequence[_Task], processes: int | None, report: Callable[[str], None]) -> None:
    processes = min(processes or os.cpu_count() or 1, len(tasks))
    if processes <= 1:
        for number, task in enumerate(tasks, start=1):
            _tokenize(task)
            report(f"{number} of {len(tasks)} files tokenized")
        return
    spawn = multiprocessing.get_context("spawn")  # a fork would inherit the threads of JAX
    pool = concurrent.futures.ProcessPoolExecutor(processes, spawn, initializer=_begin_process)
    try:
        pending = [pool.submit(_tokenize, task) for task in tasks]
        for number, done in enumerate(concurrent.futures.as_completed(pending), start=1):
            done.result()
            report(f"{number} of {len(tasks)} files tokenized")
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError(
            "a process that tokenized was killed, perhaps for want of memory; run the build again with "
            "fewer processes, it keeps what is finished"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_process() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is one process per core already
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when its parent is gone: after a SIGKILL the pool would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@functools.lru_cache(maxsize=1)
def _opened(path: str) -> Tokenizer:
    return open_tokenizer(path)


def _tokenize(task: _Task) -> None:
    tokenizer = _opened(task.tokenizer)
    lines = itertools.chain.from_iterable(read_lines(path, [task.field]) for path in task.files)
    texts = (text for (text,) in itertools.islice(lines, task.documents))
    with megatron_file.Writer(task.prefix, megatron_file.dtype_for(tokenizer.size)) as writer:
        while batch := list(itertools.islice(texts, _BATCH)):
            for ids in tokenizer.encode(batch):
                writer.add(ids)


# -- tiny ----------------------------------------------------------------------------------------

TINY = {
    "train": "docstrings.train_text_document",
    "train_0": "docstrings.train_0_text_document",
    "train_1": "docstrings.train_1_text_document",
    "validation": "docstrings.validation_text_document",
}
_TINY_MODULES = """_pydecimal _pyio argparse ast asyncio/base_events asyncio/events bdb codecs
    collections/__init__ configparser datetime difflib doctest email/_header_value_parser email/message
    enum fractions ftplib functools heapq http/client http/cookiejar http/server imaplib inspect
    ipaddress json/__init__ logging/__init__ logging/handlers mailbox optparse os pdb pickletools
    random shutil smtplib socket socketserver ssl statistics subprocess tarfile textwrap threading
    traceback turtle typing unittest/case unittest/mock urllib/parse urllib/request xml/sax/handler
    xml/etree/ElementTree xmlrpc/server""".split()  # the most docstrings for the least parsing
_TINY_SHORTEST = 80  # characters
_TINY_HELD_OUT = 16  # each 16th document validates


@functools.cache
def docstrings() -> tuple[str, ...]:
    """Returns the longer docstrings of the standard library, each once, in a fixed order.

    They differ a little from one version of Python to the next.

    Raises:
        UserError: this Python came without its sources.
    """
    library, found = pathlib.Path(sysconfig.get_path("stdlib")), {}
    for name in _TINY_MODULES:
        path = library / f"{name}.py"
        if path.exists():
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                    found[ast.get_docstring(node) or ""] = None
    texts = tuple(text for text in found if len(text) >= _TINY_SHORTEST)
    if len(texts) < 100:
        raise UserError(
            f"{library} holds no sources of the standard library to make tiny data of; use a Python that "
            "comes with them"
        )
    return texts


def train_tokenizer(texts: Sequence[str], size: int, path: str | os.PathLike) -> None:
    """Trains a byte-level byte-pair vocabulary and writes it as tokenizer.json.

    Ids 0 and 1 are "<s>" and "</s>"; then come 256 bytes and size - 258 merges. The same texts give the
    same file.
    """
    try:
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers, trainers
    except ImportError as error:
        raise UserError(
            f"a vocabulary is trained with the library {error.name}: pip install {error.name}"
        ) from None
    if size < 258:
        raise UserError(f"a byte-level vocabulary has at least 258 entries, not {size}")
    model: Any = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    unfinished = f"{os.fspath(path)}.incomplete-{os.getpid()}"
    model.save(unfinished)
    os.replace(unfinished, path)


def build_tiny(data_dir: str | os.PathLike, vocabulary: int = 512) -> dict[str, str]:
    """Writes `tiny_text_<vocabulary>` below `data_dir`: docstrings as token files, and their tokenizer.

    Returns:
        "train", its halves "train_0" and "train_1", "validation" -> prefix, "tokenizer" -> file. What is
        there already is kept.
    """
    folder = f"{records.local(data_dir)}/tiny_text_{vocabulary}"
    paths = {split: f"{folder}/{name}" for split, name in TINY.items()}
    paths["tokenizer"] = f"{folder}/tokenizer.json"
    if not all(os.path.exists(f"{paths[split]}.idx") for split in TINY):
        try:
            os.makedirs(folder, exist_ok=True)
            _write_tiny(folder, paths, vocabulary)
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    return paths


def _write_tiny(folder: str, paths: dict[str, str], vocabulary: int) -> None:
    texts = docstrings()
    train_tokenizer(texts, vocabulary, paths["tokenizer"])
    parts = {split: [] for split in TINY}
    for number, text in enumerate(texts):
        if (number + 1) % _TINY_HELD_OUT:
            parts["train"].append(text)
            parts[f"train_{number % 2}"].append(text)
        else:
            parts["validation"].append(text)
    for split, part in parts.items():
        lines = pathlib.Path(f"{folder}/{split}.json")
        lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
        build([lines], paths[split], paths["tokenizer"], processes=1)
        lines.unlink()
