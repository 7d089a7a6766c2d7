"""What a user may see without a traceback: errors, a hint that many of their sentences end in, and missing extras."""

import difflib
import importlib
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """Something the user can mend: a name, an option, a file, a record, a device count.

    The message is one sentence that names what is wrong and says what to do. The command line prints
    it alone and exits with code 2; in Python it is raised as it is. Anything else that escapes, but for
    `Interrupted`, is a defect of ours and keeps its traceback.
    """


class Interrupted(Exception):
    """The run was asked to stop by a signal; its checkpoint is on the disk and `--resume` takes it up."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """': did you mean …?' with the nearest known name, or the list of them when none is near."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f": did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"


def optional(module: str, extra: str, purpose: str) -> Any:
    """A module that an extra of the package brings, imported.

    Args:
        module: its full name.
        extra: as `pyproject.toml` names it.
        purpose: who needs it, the beginning of the sentence.

    Raises:
        UserError: it is not installed, or cannot be loaded; says how to install it.

    >>> optional("no_such_package", "pictures", "a picture")
    Traceback (most recent call last):
    mlperf_jax.errors.UserError: a picture needs an extra: pip install "mlperf-jax[pictures]"
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(
            f"{error.name}."
        )
        reason = "" if absent else f", which cannot be loaded ({error})"
        raise UserError(
            f'{purpose} needs an extra{reason}: pip install "mlperf-jax[{extra}]"'
        ) from error
