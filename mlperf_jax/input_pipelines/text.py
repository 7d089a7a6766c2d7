"""Text before it is tokens: tokenizers, files of JSON lines, and the docstrings that tiny data are made of."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import gzip
import io
import json
import os
import pathlib
import sysconfig
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mlperf_jax.errors import UserError, optional
from mlperf_jax.input_pipelines import building, records

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
        UserError: there is none, it is damaged, or the extra that reads it is missing.
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
    sentencepiece = optional("sentencepiece", "text", f"reading {path}")
    model: Any = sentencepiece.SentencePieceProcessor(model_file=path)
    bos, eos = (i if i >= 0 else None for i in (model.bos_id(), model.eos_id()))
    return Tokenizer(
        path, model.get_piece_size(), model.encode, lambda ids: model.decode(list(ids)), bos, eos
    )


# -- lines ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(path: str, line: Callable[[], int]) -> Iterator[gzip.GzipFile | io.BufferedReader]:
    """A file of lines, gzipped if its name says so; a UserError says after which `line()` it is damaged."""
    try:
        with gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb") as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"{path} is missing; fetch it, or name another") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path} is damaged or cut short after line {line():,} ({error}); fetch it again"
        ) from error


def read_lines(path: str, fields: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yields the wanted text fields of each line of a JSON-lines file, gzipped if its name says so.

    Raises:
        UserError: the file is missing or damaged, or a line is not such an object; names the line.
    """
    number = 0
    with opened(path, lambda: number) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                record = json.loads(line)
            except ValueError as error:
                raise UserError(f"{where} is not JSON ({error}); fetch the file again") from error
            for name in fields:
                if not isinstance(record, dict) or not isinstance(record.get(name), str):
                    raise UserError(f"{where} has no text in the field {name!r}")
            yield tuple(record[name] for name in fields)


# -- docstrings ----------------------------------------------------------------------------------

_MODULES = """_pydecimal _pyio argparse ast asyncio/base_events asyncio/events bdb codecs
    collections/__init__ configparser datetime difflib doctest email/_header_value_parser email/message
    enum fractions ftplib functools heapq http/client http/cookiejar http/server imaplib inspect
    ipaddress json/__init__ logging/__init__ logging/handlers mailbox optparse os pdb pickletools
    random shutil smtplib socket socketserver ssl statistics subprocess tarfile textwrap threading
    traceback turtle typing unittest/case unittest/mock urllib/parse urllib/request xml/sax/handler
    xml/etree/ElementTree xmlrpc/server""".split()  # the most docstrings for the least parsing
_SHORTEST = 80  # characters


@functools.cache
def docstrings() -> tuple[str, ...]:
    """Returns the longer docstrings of the standard library, each once, in a fixed order.

    They differ a little from one version of Python to the next.

    Raises:
        UserError: this Python came without its sources.
    """
    library, found = pathlib.Path(sysconfig.get_path("stdlib")), {}
    for name in _MODULES:
        path = library / f"{name}.py"
        if path.exists():
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                    found[ast.get_docstring(node) or ""] = None
    texts = tuple(text for text in found if len(text) >= _SHORTEST)
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
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

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
    with building.unfinished(path) as part:
        model.save(os.fspath(part))
