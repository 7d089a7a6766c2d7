"""Manifests: what a benchmark's data consist of, as `manifests/NAME.toml` states it.

A table `[parts.KEY]` is one thing to have, and says in one of four ways where it comes from:

  set      address of a `.uri` file of the organisers' storage, whose `.md5` lists the files
  address  of one file
  numbered address of many files, with `{n}` for their number, `first` to `last`
  page     where a person asks for it or finds it, and `by_hand`, what to do there

Its other keys: `what` it is; `licence`, a key of `licences.toml`; `source`, where all this is read; `into`, its
place below the data folder; `files`, patterns of the set's files that are wanted; `bytes`, exactly, or
`about_bytes`, as the source rounds them; `md5`, `sha256` or `sha512` of the one file; `accept`, that its licence is
to be accepted first; `optional`, that it is fetched when it is asked for by name; `expects`, the files that a person
puts there; `after`, what is left to do with it. On top stand `build`, the command that goes on from there, without
which there is nothing to build; `build_bytes` that it writes; and `shared`, parts of another file ("c4.text").

What no source states is left out. A manifest that is wrong is a defect of this library: `ManifestError`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import posixpath
import re
import tomllib
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

from mlperf_jax.errors import UserError

DIGESTS = {"md5": 32, "sha256": 64, "sha512": 128}  # name in hashlib -> hexadecimal digits
ORIGINS = ("set", "address", "numbered", "page")
_FOLDER = importlib.resources.files("mlperf_jax.input_pipelines.downloads") / "manifests"
_KEY = re.compile(r"[a-z0-9_]+")
_NUMBER = re.compile(r"\{n(:0\d+d)?\}")
_KINDS: dict[str, type] = {
    **dict.fromkeys((*ORIGINS, "what", "licence", "source", "into", "by_hand", "after"), str),
    **dict.fromkeys(DIGESTS, str),
    **dict.fromkeys(("bytes", "about_bytes", "first", "last"), int),
    **dict.fromkeys(("accept", "optional"), bool),
    **dict.fromkeys(("files", "expects"), list),
}
_TOP: dict[str, type] = {"build": str, "build_bytes": int, "shared": list, "parts": dict}


class ManifestError(ValueError):
    """A manifest is damaged: a defect of this library."""


@dataclasses.dataclass(frozen=True)
class Licence:
    """What data may be used for: a name that people know, and where its text stands."""

    name: str
    address: str


@dataclasses.dataclass(frozen=True)
class Digest:
    """A stated checksum: the algorithm's name in hashlib, and hexadecimal digits."""

    algorithm: str
    value: str

    def __str__(self) -> str:
        return f"{self.algorithm.upper()} {self.value}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One thing to have; the module says what each key means, and that of an absent one is empty."""

    key: str
    what: str
    licence: Licence
    source: str
    into: str = ""
    set: str = ""
    address: str = ""
    numbered: str = ""
    page: str = ""
    by_hand: str = ""
    first: int = 0
    last: int = 0
    files: tuple[str, ...] = ()
    expects: tuple[str, ...] = ()
    bytes: int | None = None
    about_bytes: int | None = None
    digest: Digest | None = None
    accept: bool = False
    optional: bool = False
    after: str = ""

    @property
    def size(self) -> str:
        """How large it is, as far as a source says so."""
        if self.bytes is not None:
            return f"{self.bytes:,} bytes"
        return f"about {in_words(self.about_bytes)}" if self.about_bytes else "size unknown"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """All of a benchmark's data.

    Attributes:
        name: the benchmark's.
        parts: by their keys, in the order in which they are told of.
        build: the command that goes on from what was fetched, `{dir}` for the folder; empty if nothing is to be built.
        build_bytes: what it writes, where that is known.
    """

    name: str
    parts: Mapping[str, Part]
    build: str = ""
    build_bytes: int | None = None


def in_words(size: float) -> str:
    """Bytes for people, "2.4 TB", in powers of a thousand."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"


def names() -> tuple[str, ...]:
    """The benchmarks that have a manifest."""
    stems = {entry.name.removesuffix(".toml") for entry in _FOLDER.iterdir()}
    return tuple(sorted(stems - {"licences", "c4"}))


@functools.cache
def load(name: str) -> Manifest:
    """A benchmark's manifest.

    Raises:
        UserError: it has none, as it is a user's own.
        ManifestError: what it states is damaged.
    """
    if name not in names():
        raise UserError(
            f"nobody has stated where the data of {name} come from, so they cannot be fetched: put them where its "
            "data() reads them"
        )
    return read(name, _text(name), licences())


@functools.cache
def licences() -> Mapping[str, Licence]:
    """The licences that manifests name, by key."""
    table = tomllib.loads(_text("licences"))
    return {
        key: Licence(_said(key, each, "name"), _web(_said(key, each, "address"), key))
        for key, each in table.items()
    }


def read(name: str, text: str, known: Mapping[str, Licence]) -> Manifest:
    """The manifest that a TOML text states.

    Args:
        name: the benchmark's.
        text: TOML.
        known: licences by key.

    Raises:
        ManifestError: a key is unknown, missing or of another type, an address is none, a place lies outside of the
            data folder, …
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ManifestError(f"{name}.toml is no TOML: {error}") from None
    _types(f"{name}.toml", table, _TOP)
    parts = {key: _part(name, key, each, known) for key, each in table.get("parts", {}).items()}
    for each in table.get("shared", []):
        file, _, key = str(each).partition(".")
        if not _KEY.fullmatch(file) or not (_FOLDER / f"{file}.toml").is_file():
            raise ManifestError(f"{name}.toml shares {each!r}, and there is no {file}.toml")
        others = read(file, _text(file), known).parts
        if key not in others or key in parts:
            raise ManifestError(f"{name}.toml shares {each!r}, which is missing or its own already")
        parts[key] = others[key]
    if not parts:
        raise ManifestError(f"{name}.toml has no parts")
    return Manifest(name, parts, table.get("build", ""), table.get("build_bytes"))


def _text(stem: str) -> str:
    return (_FOLDER / f"{stem}.toml").read_text(encoding="utf-8")


def _part(name: str, key: str, table: Any, known: Mapping[str, Licence]) -> Part:
    where = f"{name}.toml, {key}"
    if not _KEY.fullmatch(key) or not isinstance(table, dict):
        raise ManifestError(
            f"{where} is no part: a table with a key of small letters, digits and _"
        )
    _types(where, table, _KINDS)
    for said in _complaints(table):
        raise ManifestError(f"{where} {said}")
    for address in (
        *(table[each] for each in ORIGINS if each in table),
        _said(where, table, "source"),
    ):
        _web(address, where)
    if _said(where, table, "licence") not in known:
        raise ManifestError(
            f"{where} has the licence {table['licence']!r}, which licences.toml lacks"
        )
    sums = [Digest(each, table[each]) for each in DIGESTS if each in table]
    for digest in sums:
        if not re.fullmatch(rf"[0-9a-f]{{{DIGESTS[digest.algorithm]}}}", digest.value):
            raise ManifestError(f"{where} has {digest.value!r}, no {digest.algorithm}")
    kept: dict[str, Any] = {
        k: tuple(v) if type(v) is list else v for k, v in table.items() if k not in DIGESTS
    }
    kept |= {"key": key, "what": _said(where, table, "what"), "licence": known[table["licence"]]}
    return Part(**kept, digest=sums[0] if sums else None)


def _complaints(table: Mapping[str, Any]) -> Iterator[str]:
    """What the keys of a part say together that cannot be."""
    have = table.keys()
    origins = [each for each in ORIGINS if each in have]
    if len(origins) != 1:
        yield f"comes from {' and '.join(origins) or 'nowhere'}: say one of {', '.join(ORIGINS)}"
        return
    if not inside(_NUMBER.sub("0", table.get("into", "?"))) and table["into"] != ".":
        yield f"goes to {table['into']!r}, which is no place below the data folder"
    (origin,) = origins
    may = {
        "set": {"into", "files", "about_bytes", "accept", "after"},
        "address": {"into", "bytes", "about_bytes", *DIGESTS, "accept", "after"},
        "numbered": {"into", "first", "last", "about_bytes", "accept", "after"},
        "page": {"by_hand", "expects", "bytes", "about_bytes"},
    }[origin]
    must = {
        "set": {"into"},
        "address": {"into"},
        "numbered": {"into", "first", "last"},
        "page": {"by_hand"},
    }[origin]
    for key in sorted(have - may - {origin, "what", "licence", "source", "optional"}):
        yield f"says {key}, which means nothing of {origin}"
    for key in sorted(must - have):
        yield f"does not state {key}, as {origin} needs"
    if ("bytes" in have and "about_bytes" in have) or len(have & DIGESTS.keys()) > 1:
        yield "states the size or the sum twice"
    if origin == "set" and not table["set"].endswith(".uri"):
        yield "is a set, whose address ends with .uri"
    if origin == "address" and table.get("into") == ".":
        yield "is one file, which needs a name of its own"
    if origin == "numbered" and have >= must:
        if not all(_NUMBER.search(table[each]) for each in ("numbered", "into")):
            yield "is numbered: address and place hold {n}, or {n:05d}"
        if not 0 <= table["first"] <= table["last"]:
            yield "has a first number behind its last"


def _types(where: str, table: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    for key, value in table.items():
        if key not in kinds:
            raise ManifestError(f"{where} has a key {key!r} that means nothing")
        if type(value) is not kinds[key]:
            raise ManifestError(f"{where}: {key} is {value!r}, no {kinds[key].__name__}")
        if isinstance(value, list) and not (value and all(isinstance(each, str) for each in value)):
            raise ManifestError(f"{where}: {key} is {value!r}, no list of texts")
        if type(value) is int and key not in ("first", "last") and value <= 0:
            raise ManifestError(f"{where}: {key} is {value}, no number of bytes")


def _said(where: str, table: Mapping[str, Any], key: str) -> str:
    if not isinstance(table.get(key), str) or not table[key].strip():
        raise ManifestError(f"{where} does not state {key}")
    return table[key]


def _web(address: str, where: str) -> str:
    parsed = urllib.parse.urlsplit(address)
    if parsed.scheme != "https" or not parsed.hostname or " " in address:
        raise ManifestError(f"{where}: {address!r} is no https address")
    return address


def inside(path: str) -> bool:
    """Whether a path lies below the folder it is joined to, on any system, under a name that can be written."""
    return (
        bool(path)
        and not re.search(r"[\x00-\x1f\x7f\\:]", path)
        and not path.startswith("/")
        and posixpath.normpath(path) == path
        and path.split("/")[0] not in ("..", ".")
    )
