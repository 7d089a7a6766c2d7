"""Which parts of a manifest are fetched, which are not and why, and all of it in plain words."""

from __future__ import annotations

import dataclasses
import os
import textwrap
from collections.abc import Iterator, Sequence

from mlperf_jax.errors import UserError, did_you_mean
from mlperf_jax.input_pipelines.downloads.manifest import Manifest, Part, in_words

_WIDTH = 100
_RATE = 100e6  # bytes a second that times are told for


@dataclasses.dataclass(frozen=True)
class Choice:
    """The parts that were asked for, in the manifest's order.

    Attributes:
        fetched: those that can be fetched now.
        unaccepted: those whose licence is to be accepted first.
        by_hand: those that a person asks for, and that are not there.
    """

    fetched: tuple[Part, ...]
    unaccepted: tuple[Part, ...]
    by_hand: tuple[Part, ...]

    def told(self, folder: str) -> list[str]:
        """A sentence for each part that a person has to ask for."""
        return [
            f"{part.key} is to be had by hand ({part.page}): {part.by_hand.format(dir=folder)}"
            for part in self.by_hand
        ]

    def withheld(self) -> str:
        """A sentence about the parts whose licence is to be accepted first; empty if there are none."""
        if not self.unaccepted:
            return ""
        keys = ", ".join(part.key for part in self.unaccepted)
        texts = " and ".join(dict.fromkeys(part.licence.address for part in self.unaccepted))
        return f"not fetched without a licence accepted: {keys}; read {texts}, then add --accept-licence"


def choose(
    manifest: Manifest, folder: str, only: Sequence[str] = (), *, accepted: bool = False
) -> Choice:
    """The parts that are asked for: those named, or all that are not optional.

    Args:
        manifest: whose parts.
        folder: the data folder, in which files that came by hand may lie.
        only: keys of parts.
        accepted: whether licences that ask for it were accepted.

    Raises:
        UserError: there is no such part.
    """
    for key in only:
        if key not in manifest.parts:
            raise UserError(
                f"the data of {manifest.name} have no part {key!r}{did_you_mean(key, manifest.parts)}"
            )
    parts = [p for p in manifest.parts.values() if (p.key in only if only else not p.optional)]
    return Choice(
        fetched=tuple(p for p in parts if not p.page and (accepted or not p.accept)),
        unaccepted=tuple(p for p in parts if p.accept and not accepted),
        by_hand=tuple(p for p in parts if p.page and not arrived(p, folder)),
    )


def arrived(part: Part, folder: str) -> bool:
    """Whether what a person puts there lies below the folder."""
    return bool(part.expects) and all(os.path.exists(f"{folder}/{path}") for path in part.expects)


def next_steps(manifest: Manifest, parts: Sequence[Part], folder: str) -> list[str]:
    """What is left to do when parts have come: by hand first, then the commands."""
    steps = [f"{part.key}: {part.after.format(dir=folder)}" for part in parts if part.after]
    build = [manifest.build.format(dir=folder)] if manifest.build else []
    return [*steps, *build, f"mlperf-jax data check {manifest.name} --data-dir {folder}"]


def describe(manifest: Manifest, folder: str) -> str:
    """The manifest for people: each part, its size, licence and place, and what follows."""
    lines = [f"{manifest.name}: what its data are, and where they come from", ""]
    for part in manifest.parts.values():
        lines += [f"{part.key}{' (optional: --only ' + part.key + ')' if part.optional else ''}"]
        lines += [line for text in _of(part, folder) for line in _wrapped(text)]
    needed = [p for p in manifest.parts.values() if not p.optional]
    known = sum(p.bytes or p.about_bytes or 0 for p in needed)
    whole = all(p.bytes or p.about_bytes for p in needed)
    more = "" if whole else ", and what has no stated size" if known else "what has no stated size"
    disk = f"disk: {in_words(known) if known else ''}{more} for all that is not optional"
    if manifest.build:
        built = in_words(manifest.build_bytes) if manifest.build_bytes else "an unknown size"
        disk += f"; building writes {built} more"
    hours = known / _RATE / 3600
    time = f"time: {hours:,.1f} hours for it at {in_words(_RATE)} a second" if hours > 0.1 else ""
    fetch = f"mlperf-jax data fetch {manifest.name} --data-dir {folder}"
    if any(part.accept for part in needed):
        fetch += " --accept-licence"
    steps = next_steps(manifest, needed, folder)
    lines += ["", *_wrapped(disk, ""), *([time] if time else []), "", "then:"]
    return "\n".join([*lines, *(line for step in (fetch, *steps) for line in _wrapped(step))])


def _of(part: Part, folder: str) -> Iterator[str]:
    yield f"{part.what.format(dir=folder)} ({part.size})"
    if part.page:
        yield f"by hand: {part.page}: {part.by_hand.format(dir=folder)}"
    else:
        place = folder if part.into == "." else f"{folder}/{part.into}"
        numbers = f", n from {part.first} to {part.last}" if part.numbered else ""
        yield f"from {part.set or part.address or part.numbered} to {place}{numbers}"
    must = "; to be accepted: --accept-licence" if part.accept else ""
    yield f"licence: {part.licence.name}, {part.licence.address}{must}"


def _wrapped(text: str, indent: str = "  ") -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
