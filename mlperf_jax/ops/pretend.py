"""Lets a program be traced in the forms of a back end that is not here, to learn its sizes.

Such a program is never run: some of its parts keep only the shapes of what they stand for.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

_PLATFORM: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


def pretended() -> str | None:
    """The platform of the surrounding `platform(...)`, or None.

    >>> with platform("gpu"):
    ...     pretended()
    'gpu'
    """
    return _PLATFORM.get()


@contextlib.contextmanager
def platform(name: str) -> Iterator[None]:
    """While it lasts, what is traced takes the forms of this platform ("gpu", "tpu", "cpu")."""
    token = _PLATFORM.set(name)
    try:
        yield
    finally:
        _PLATFORM.reset(token)
