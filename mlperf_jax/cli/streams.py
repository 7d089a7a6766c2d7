"""The standard streams of the command.

Closed ones are opened, what stderr cannot take is dropped, and what a terminal has no signs for is spelled.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
from typing import Any

NAMES = ("stdin", "stdout", "stderr")
SPELLED = dict(zip("®©…—–·×→≥≤µ█", "(R) (C) ... - - - x -> >= <= u #".split(), strict=True))


class Forgiving:
    """A stream of text that loses what it cannot write instead of ending the work: a full disk, a terminal gone.

    >>> Forgiving(open("/dev/full", "w")).write("lost")
    4
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):  # ValueError: it was closed
            self._stream.write(text)
            self._stream.flush()
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def spell(error: UnicodeError) -> tuple[str, int]:
    """What stands for signs that a terminal's encoding lacks, as a handler of such errors.

    >>> codecs.register_error("spell", spell)
    >>> "MLPerf® 5 × é".encode("ascii", "spell")
    b'MLPerf(R) 5 x ?'
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    return "".join(SPELLED.get(sign, "?") for sign in signs), error.end


def open_standard() -> None:
    """Opens closed standard streams on the null device, makes stderr forgiving, and has foreign signs spelled.

    Else the first file that is opened takes the descriptor of a closed one, and what is meant for a person is
    written into it.
    """
    for number, name in enumerate(NAMES):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            opened = open(number, mode, closefd=False, encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, opened)
    codecs.register_error("spell", spell)
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="spell")
    if not isinstance(sys.stderr, Forgiving):
        sys.stderr = Forgiving(sys.stderr)
