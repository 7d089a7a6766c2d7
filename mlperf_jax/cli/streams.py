"""The standard streams of the command: closed ones are opened, and what stderr cannot take is dropped."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

NAMES = ("stdin", "stdout", "stderr")


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


def open_standard() -> None:
    """Opens closed standard streams on the null device, and makes stderr forgiving.

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
    if not isinstance(sys.stderr, Forgiving):
        sys.stderr = Forgiving(sys.stderr)
