"""One thing that is wrong with a log, or with what lies beside it."""

import dataclasses

from mlperf_jax.errors import printable


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is held against a log.

    Attributes:
        file: the log.
        line: line number in it from 1, or None when the trouble is a line that is not there.
        key: the log key, or "" when it is about the whole log.
        expected: what the rules want.
        advice: what to do.
        official: the official checker's own text.
        warning: whether the log passes all the same.
    """

    file: str
    key: str
    expected: str
    advice: str = ""
    official: str = ""
    line: int | None = None
    warning: bool = False

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        key = f" {self.key}:" if self.key else ""
        return printable(f"{where}:{key} {self.expected} {self.advice}".rstrip())
