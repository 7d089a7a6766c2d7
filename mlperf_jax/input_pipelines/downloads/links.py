"""Whether the addresses that manifests state still answer, and with what they state."""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import requests

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.downloads import listing, manifest, web

_THREADS = 16
_PATIENCE = (5.0, 10.0)  # seconds: to be connected, to be answered


@dataclasses.dataclass(frozen=True)
class Link:
    """One address, and what it answered.

    Attributes:
        address: where was asked.
        names: the benchmarks whose manifests state it.
        good: whether it answered, with the stated size if there is one.
        text: what it answered.
    """

    address: str
    names: tuple[str, ...]
    good: bool
    text: str

    def __str__(self) -> str:
        return f"{'ok  ' if self.good else 'BAD '}{self.address} ({', '.join(self.names)}): {self.text}"


def stated(manifests: Sequence[manifest.Manifest]) -> dict[str, tuple[tuple[str, ...], int | None]]:
    """Every address of some manifests once: whose it is, and the size stated of it.

    Of many numbered files these are the first and the last, of a set its two lists.
    """
    found: dict[str, tuple[tuple[str, ...], int | None]] = {}
    for each in manifests:
        for part in each.parts.values():
            for address, size in _addresses(part):
                names, before = found.get(address, ((), None))
                found[address] = (
                    (*names, each.name) if each.name not in names else names,
                    size or before,
                )
    return found


def test(addresses: Mapping[str, tuple[tuple[str, ...], int | None]]) -> Iterator[Link]:
    """Asks all addresses side by side, by a request without a body each; in their order."""
    with web.session(_THREADS) as session, concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(lambda item: _link(session, item[0], *item[1]), addresses.items())


def _addresses(part: manifest.Part) -> Iterator[tuple[str, int | None]]:
    if part.set:
        yield part.set, None
        yield listing.sums_of(part.set), None
    elif part.numbered:
        for number in sorted({part.first, part.last}):
            yield part.numbered.format(n=number), None
    elif part.address:
        yield part.address, part.bytes
    else:
        yield part.page, None
    yield part.licence.address, None


def _link(
    session: requests.Session, address: str, names: tuple[str, ...], size: int | None
) -> Link:
    try:
        said = web.size(session, address, _PATIENCE)
    except UserError as error:
        return Link(address, names, False, str(error))
    if size is not None and said is not None and said != size:
        return Link(address, names, False, f"{said:,} bytes, and {size:,} are stated")
    as_stated = ", as stated" if size is not None and said == size else ""
    told = "answers, without a size" if said is None else f"{said:,} bytes{as_stated}"
    return Link(address, names, True, told)
