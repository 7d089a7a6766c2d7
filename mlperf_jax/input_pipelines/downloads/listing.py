"""The files that a part consists of: one, some with numbers, or those that the organisers' storage lists.

The organisers' protocol is that of their own downloader (mlcommons/r2-downloader): `NAME.uri` holds the address
of a folder, and `NAME.md5` beside it a line a file, the MD5 sum and the path below that folder. Sums of very
large files may be blank there; then the size alone is known.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
import urllib.parse

import requests

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.downloads import web
from mlperf_jax.input_pipelines.downloads.manifest import Digest, Part, inside

_LINE = re.compile(r"(?P<md5>[0-9a-f]{32}|\s{32})\s+\*?(?:\./)?(?P<path>\S.*)")
_LONGEST = 64 << 20  # bytes of a list, the longest of which has 0.4 MB


@dataclasses.dataclass(frozen=True)
class File:
    """One file to have.

    Attributes:
        path: below the data folder, `/` between its parts.
        address: where it comes from.
        size: bytes, where they are stated exactly.
        digest: its sum, where one is stated.
    """

    path: str
    address: str
    size: int | None = None
    digest: Digest | None = None


def files(part: Part, session: requests.Session) -> list[File]:
    """The files of a part, of a set as it is listed today; none of one that is asked for by hand.

    Raises:
        UserError: the list cannot be read, or what it says cannot be used.
    """
    if part.address:
        return [File(part.into, part.address, part.bytes, part.digest)]
    if part.numbered:
        numbers = range(part.first, part.last + 1)
        return [File(part.into.format(n=n), part.numbered.format(n=n)) for n in numbers]
    return _listed(part, session) if part.set else []


def sums_of(address: str) -> str:
    """The address of the list that belongs to a `.uri`."""
    return address.removesuffix(".uri") + ".md5"


def _listed(part: Part, session: requests.Session) -> list[File]:
    base = web.text(session, part.set, _LONGEST).strip().rstrip("/")
    ours, theirs = urllib.parse.urlsplit(part.set), urllib.parse.urlsplit(base)
    if (theirs.scheme, theirs.netloc) != (ours.scheme, ours.netloc) or set(base) & set(" ?#\n"):
        raise UserError(
            f"{part.set} should name a folder of {ours.netloc} and says {base[:80]!r}: it has moved, tell "
            "those who keep this library"
        )
    listed: dict[str, Digest | None] = {}
    where = sums_of(part.set)
    for number, line in enumerate(web.text(session, where, _LONGEST).splitlines(), start=1):
        found = _LINE.fullmatch(line.rstrip())
        if not line.strip():
            continue
        if not found or not inside(found["path"]):
            raise UserError(
                f"{where}, line {number} is no sum and path below the folder ({line[:80]!r}): nothing of "
                "this set is fetched"
            )
        listed[found["path"]] = Digest("md5", found["md5"]) if found["md5"].strip() else None
    for pattern in part.files:
        if not fnmatch.filter(listed, pattern):
            raise UserError(
                f"{where} lists no {pattern}: the set was changed, tell those who keep this library"
            )
    wanted = [
        p for p in listed if not part.files or any(fnmatch.fnmatchcase(p, f) for f in part.files)
    ]
    before = "" if part.into == "." else f"{part.into}/"
    return [
        File(before + path, f"{base}/{urllib.parse.quote(path)}", digest=listed[path])
        for path in sorted(wanted)
    ]
