"""What the measuring scripts share: turns by processor time, and medians with their ranges.

Other work on a machine disturbs the clock much, processor time less, and the ratio of two processor times
that were taken within seconds of each other least. So what is compared takes turns in one process, every
other round backwards, and what counts is the median of the rounds' ratios, beside the least and the largest.

`--cores N` keeps a process to N cores, both sides alike. Libraries count cores while they are imported: import
this file before NumPy, JAX and PyTorch. `--cores 1` says most on a machine with other work, as PyTorch's
threads wait for each other after every operation, and those of a busy machine wait long.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
if "--cores" in sys.argv:
    _count = int(sys.argv[sys.argv.index("--cores") + 1])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:_count])

Spent = dict[str, list[float]]  # processor seconds by side, a value for each round


def parser(
    doc: str | None, rounds: int = 5, seconds: float | None = 1.0
) -> argparse.ArgumentParser:
    """With the options that every measuring script has; `seconds` None is of one whose turns are steps."""
    made = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    made.add_argument("--cores", type=int, help="take only so many; default all")
    made.add_argument("--rounds", type=int, default=rounds)
    if seconds is not None:
        made.add_argument(
            "--seconds", type=float, default=seconds, help="of processor time, each turn"
        )
    return made


def header() -> str:
    """Where and when: date, commit, versions and cores."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
    known = ("numpy", "jax", "torch", "grain", "cv2", "sklearn")
    versions = [f"{name} {sys.modules[name].__version__}" for name in known if name in sys.modules]
    return (
        f"{datetime.date.today()}, commit {commit}, python {platform.python_version()}, "
        f"{', '.join(versions)}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores; "
        "processor time in turns, median (least … most)"
    )


def processor_seconds() -> float:
    """Of all threads of this process so far, and of the children that have ended."""
    usage = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


def turns(names: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Rounds and whose turn it is, every other round backwards.

    >>> list(turns("ab", 2))
    [(0, 'a'), (0, 'b'), (1, 'b'), (1, 'a')]
    """
    for number in range(rounds):
        yield from ((number, name) for name in (names if number % 2 == 0 else names[::-1]))


def in_turns(
    sides: Mapping[str, Callable[[], Any]],
    rounds: int,
    seconds: float = 1.0,
    *,
    settle: bool = True,
) -> Spent:
    """Processor seconds of one call of each side, a value for each round.

    Args:
        sides: what to call, by name.
        rounds: how many count; the one before them warms up.
        seconds: of processor time that a turn lasts; it ends with a call. 0 makes it one call.
        settle: begin each turn with a call that is not counted, in which caches fill again.
    """
    spent: Spent = {name: [] for name in sides}
    for number, name in turns(tuple(sides), rounds + 1):
        if settle:
            sides[name]()
        begin, calls = at_rest(), 0
        while not calls or processor_seconds() - begin < (seconds if number else seconds / 4):
            sides[name]()
            calls += 1
        if number:
            spent[name].append((at_rest() - begin) / calls)
    return spent


def at_rest(longest: float = 10.0) -> float:
    """`processor_seconds` once no thread works any more: what is read ahead belongs to who asked for it."""
    before, end = processor_seconds(), time.monotonic() + longest
    while True:
        time.sleep(0.03)
        now = processor_seconds()
        if now - before < 0.001 or time.monotonic() > end:
            return now
        before = now


def ratios(spent: Spent, side: str, reference: str) -> list[float]:
    """How many times as fast a side is as the reference, round by round."""
    return [b / a for a, b in zip(spent[side], spent[reference], strict=True)]


def spread(values: Sequence[float], digits: int = 3) -> str:
    """The median with the range.

    >>> spread([1.5, 1.0, 4.0])
    '1.50 (1.00 … 4.00)'
    """
    return "{} ({} … {})".format(
        *(number(v, digits) for v in (statistics.median(values), min(values), max(values)))
    )


def number(value: float, digits: int = 3) -> str:
    """With so many digits that say something, and never in powers of ten.

    >>> number(12345.6), number(1.0), number(0.00123456)
    ('12,346', '1.00', '0.00123')
    """
    decimals = digits - 1 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{max(0, decimals)}f}"


def report(spent: Spent, reference: str, what: str, per: float = 1, *, long: bool = False) -> None:
    """Prints what each side took, and how many times as fast as the reference it was.

    Args:
        spent: of `in_turns`.
        reference: the side that the others are compared with.
        what: one call makes `per` of them, such as "a step".
        per: see there.
        long: say how many times as long as the reference it took instead.
    """
    for name, values in spent.items():
        beside = ""
        if name != reference:
            times = ratios(spent, *((reference, name) if long else (name, reference)))
            how = "long" if long else "fast"
            beside = f"{spread(times)} times as {how} as {reference}"
        each = spread([v / per * 1e6 for v in values])
        print(f"  {name:28} {each + ' us ' + what:42} {beside}".rstrip(), flush=True)
