"""Tar files where they lie: names, first bytes and sizes of their members; nothing is unpacked.

Read are the forms that Python's tarfile, webdataset and GNU tar write: ustar, pax (in which a modification time with a
fraction takes two blocks before each member) and GNU's long names. A file that ends without the block of zeros that
ends a tar is refused: it was cut short between two members, and whoever reads on to the end loses the rest unsaid.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple, NoReturn

from mlperf_jax.errors import UserError

BLOCK = 512
_WINDOW = 4096  # bytes read at a time: a caption, the headers around it and that of its array
_FILES = (b"0", b"\0", b"7")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes
# webdataset's rule: a sample's key ends at the first full stop of the file's name
_KEY = re.compile(r"((?:.*/|)[^.]+)\.([^/]*)")


class Member(NamedTuple):
    """A file of a tar: its name, and where its bytes begin and how many they are."""

    name: str
    at: int
    size: int


class Tar:
    """An open tar file, of which only what is asked for is read.

    Raises:
        UserError: it is missing or cannot be read.
    """

    def __init__(self, path: str):
        self.path = path
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115
            self.size = os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise UserError(f"cannot read {path} ({error.strerror}): fetch it again") from error
        self._first, self._window = 0, b""

    def __enter__(self) -> Tar:
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()

    def read(self, at: int, count: int) -> bytes:
        """So many bytes from there on, fewer at the end of the file."""
        begin = at - self._first
        if not 0 <= begin <= begin + count <= len(self._window):
            self._first, begin = at, 0
            self._window = os.pread(self._file.fileno(), max(count, _WINDOW), at)
        return self._window[begin : begin + count]

    def members(self) -> Iterator[Member]:
        """Yields the regular files in order.

        Raises:
            UserError: a header is damaged, or the file ends before its end is marked; names the byte.
        """
        at, common, own = 0, {}, {}
        while any(block := self.read(at, BLOCK)):
            if len(block) < BLOCK:
                self._damaged(at, "it ends within a header")
            kind, size = block[156:157], self._number(at, block[124:136])
            self._check_sum(at, block)
            data = at + BLOCK
            if kind in _FILES:
                size = self._number(at, own["size"].encode(), 10) if "size" in own else size
            elif kind in _WITHOUT_DATA:
                size = 0
            if data + size > self.size:
                name = own.get("path") or _name(block)
                self._damaged(
                    at, f"it ends within {name}, at {self.size:,} of {data + size:,} bytes"
                )
            if kind == b"x":
                own |= self._records(data, size)
            elif kind == b"g":
                common |= self._records(data, size)
            elif kind == b"L":
                own["path"] = _text(self.read(data, size))
            elif kind != b"K":  # but for a long link, a member: what came before it was about it
                name = own.get("path") or common.get("path") or _name(block)
                if kind == b"S" or any(key.startswith("GNU.sparse") for key in own):
                    self._damaged(at, f"{name} is stored with holes, which is not read")
                if kind in _FILES and not name.endswith("/"):
                    yield Member(name, data, size)
                own = {}
            at = data + -(-size // BLOCK) * BLOCK
        if len(block) < BLOCK:
            self._damaged(at, "it ends without the zeros that end a tar")

    def _check_sum(self, at: int, block: bytes) -> None:
        stated = self._number(at, block[148:156])
        if stated != sum(block) - sum(block[148:156]) + 8 * ord(" "):
            self._damaged(at, "the sum of a header's bytes does not match")

    def _number(self, at: int, field: bytes, base: int = 8) -> int:
        if field[:1] == b"\x80":  # too large for octal digits
            return int.from_bytes(field[1:], "big")
        try:
            return int(_until_zero(field).strip() or b"0", base)
        except ValueError:
            self._damaged(at, f"{field!r} is no number of a tar's header")

    def _records(self, at: int, size: int) -> dict[str, str]:
        """The records of a pax header, each its length, a blank, name = value and a line feed."""
        data, found = self.read(at, size), {}
        while data.strip(b"\0"):
            length, blank, _ = data.partition(b" ")
            count = int(length) if length.isdigit() and int(length) <= len(data) else 0
            record, data = data[len(length) + 1 : count], data[count:]
            name, equals, value = record[:-1].partition(b"=")
            if not (blank and equals and record.endswith(b"\n")):
                self._damaged(at, "a pax header has no whole records")
            found[_text(name)] = _text(value)
        return found

    def _damaged(self, at: int, what: str) -> NoReturn:
        raise UserError(
            f"{self.path} is damaged or cut short (byte {at:,}), {what}: fetch it again"
        )


def samples(tar: Tar, endings: Collection[str]) -> dict[str, dict[str, Member]]:
    """The members of each sample by key and ending, in the order of the file; other endings are passed over.

    Raises:
        UserError: the tar is damaged, or a member stands in it twice.
    """
    found: dict[str, dict[str, Member]] = {}
    for member in tar.members():
        split = _KEY.fullmatch(member.name)
        ending = split[2].lower() if split else ""
        if split and ending in endings:
            sample = found.setdefault(split[1].removeprefix("./"), {})
            if ending in sample:
                raise UserError(f"{tar.path} holds {member.name} twice: fetch or make it again")
            sample[ending] = member
    return found


def size_of(block: bytes) -> int | None:
    """The size that a member's header states in octal digits; None of what is no header."""
    try:
        return int(_until_zero(block[124:136]).strip(), 8)
    except ValueError:
        return None


def _name(block: bytes) -> str:
    name = _text(block[:100])
    # where GNU tar writes its own form the field holds something else
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return _until_zero(field).decode("utf-8", "replace")


def _until_zero(field: bytes) -> bytes:
    return field.partition(b"\0")[0]
