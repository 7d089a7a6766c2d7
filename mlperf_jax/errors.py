"""What a user may see without a traceback: errors, a hint that many of their sentences end in, and missing extras."""

import difflib
import importlib
import re
from collections.abc import Iterable
from typing import Any

# options that are said without a value; the others are named alone, or with what they shall be
SWITCHES = frozenset(
    "allow_tiny bisect new_optimizer parallel profile resume score tensorboard tiny".split()
)
# commands of a shell, which stay what they are; then --option and what may be its value
_SHELL = r"`[^`]*`|mlperf-jax [^;,()]*"
_OPTION = r"(?<![\w=-])--(?P<no>no-)?(?P<name>[a-z][a-z0-9-]*)(?![\w-])"
_VALUE = r"(?: (?P<value>(?P<plain>N|I|DIR|PATH|FILE|\d[\d.]*)|open|closed|[\w.]+[=:][\w.=,:]+)(?![\w(]))?"


def in_python(sentence: str) -> str:
    """A sentence about options in the words of Python; commands of a shell in it stay.

    >>> in_python("it is unfinished: --resume takes it up, or give --mesh data=4,fsdp=2 (--runs 2)")
    'it is unfinished: resume=True takes it up, or give mesh="data=4,fsdp=2" (runs=2)'
    >>> in_python("build it: mlperf-jax data build rgat --data-dir DIR, or give another --data-dir")
    'build it: mlperf-jax data build rgat --data-dir DIR, or give another data_dir'
    """

    def spelled(match: re.Match[str]) -> str:
        if match["name"] is None:
            return match[0]
        name, value = match["name"].replace("-", "_"), match["value"]
        if match["no"] or name in SWITCHES:
            return f"{name}={not match['no']}" + (f" {value}" if value else "")
        if value is None:
            return name
        return f"{name}={value}" if match["plain"] else f'{name}="{value}"'

    told = re.sub(f"{_SHELL}|{_OPTION}{_VALUE}", spelled, sentence)
    return re.sub(r"(\S+) \(\1\)", r"\1", told)  # what was said in both ways


def printable(text: str, keep: str = "") -> str:
    """A text without what a terminal would obey instead of showing, such as escapes and turns of direction.

    >>> printable("a\\x1b[31mb\\u202ec\\n", keep="\\n")
    'a?[31mb?c\\n'

    Args:
        text: of logs and file names, which may hold anything.
        keep: what stays all the same.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else "?" for c in text)


class Told(Exception):
    """What is told in its sentence alone: the command line prints it, and a notebook shows it, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback."""
        return [printable(f"{type(self).__name__}: {in_python(str(self))}", keep="\n")]


class UserError(Told):
    """Something the user can mend: a name, an option, a file, a record, a device count.

    The message is one sentence that names what is wrong and says what to do, options as the command
    line spells them. The command line prints it alone and exits with code 2, a notebook shows it alone
    in the words of Python; elsewhere it is raised as it is. Anything else that escapes, but for
    `Interrupted`, is a defect of ours and keeps its traceback.
    """


class DataError(UserError):
    """A record, or what else is read once a run's clock runs, is damaged."""


class Interrupted(Told):
    """The run was asked to stop by a signal; its checkpoint is on the disk and `--resume` takes it up."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number


_LISTED = 500  # characters of known names in a sentence


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """': did you mean …?' with the nearest known name, or the list of them when none is near."""
    known = list(known)
    if not known:
        return ", as there are none"
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f": did you mean {near[0]!r}?"
    listed = ", ".join(sorted(known))
    if len(listed) > _LISTED:
        listed = f"{listed[: listed.rindex(',', 0, _LISTED)]}, … ({len(known)} in all)"
    return f"; known: {listed}"


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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of XLA's says that a device has no more memory."""
    told = str(error)
    return "RESOURCE_EXHAUSTED" in told or "Out of memory allocating" in told
