"""What a run returns and saves as `result.json`, and how it may be shown.

Unreviewed results may be shown only as "unverified", with the sentence and the legend below: the
MLPerf® Results Messaging Guidelines bind whoever uses the name. There is no way to print without.
"""

import dataclasses
import hashlib
import html
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from mlperf_jax.errors import UserError
from mlperf_jax.results import durable

UNVERIFIED = "Result not verified by MLCommons Association."
LEGEND = (
    "The MLPerf name and logo are registered and unregistered trademarks of MLCommons Association in "
    "the United States and other countries. All rights reserved. Unauthorized use strictly prohibited. "
    "See www.mlcommons.org for more information."
)
NOTICE = f"{UNVERIFIED} {LEGEND}"
MARKS = {"verified": False, "notice": NOTICE}  # of a score as JSON
SMALL_PRINT = f"<small>{html.escape(NOTICE)}</small>"  # below one as HTML

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "mlperf-jax")


def versions() -> dict[str, str]:
    """Versions of the libraries that decide a run's numbers; "not installed" for what is absent.

    Read from the installed packages' metadata, so nothing is imported. Running this package from its
    sources counts as "not installed" too.
    """
    found = {name: installed(name) or "not installed" for name in _LIBRARIES}
    return {"python": platform.python_version(), **found}


def installed(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def config_hash(config: dict[str, Any]) -> str:
    """Eight hex digits that two equal configurations share, whatever the order of their fields.

    Example:
        >>> config_hash({"a": 1, "b": (2, 3)}) == config_hash({"b": [2, 3], "a": 1})
        True

    Raises:
        UserError: a field has no JSON form.
    """
    text = json.dumps(durable.plain(config, "the configuration"), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:8]


def trained_hash(config: dict[str, Any]) -> str:
    """The same of what checkpoints belong to: all but the optimizer, which may change on the way."""
    changing = ("optimizer", "optimizer_changes")
    return config_hash({name: value for name, value in config.items() if name not in changing})


def run_name(benchmark: str, config: dict[str, Any], *, tiny: bool) -> str:
    """The default name of an output folder: `<benchmark>[-tiny]-<8 hex digits of the configuration>`."""
    return f"{benchmark}{'-tiny' if tiny else ''}-{config_hash(config)}"


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Result:
    """How one run ended.

    Attributes:
        benchmark: the benchmark's name.
        tiny: whether it was the small stand-in with generated data.
        reached: whether every quality target was met.
        quality: the last evaluation's values by name.
        samples: training samples seen.
        seconds: from `run_start` to `run_stop`.
        examples_per_second: training samples per second of the steps, without evaluation.
        mfu: model FLOPs utilisation in [0, 1], or None where the chip's peak is unknown.
        parameters_sha256: digest of the trained arrays as evaluation reads them, or None where no process holds them
            all.
        seed: the run's seed.
        resumed: how often the run was taken up again.
        versions: library versions, as `versions()` gives them.
        device: the kind of chip.
        mesh: mesh axis name -> size.
        status: "success" when the target was reached, else "aborted".
        log: path of the log in the official format.
        division: "closed" or "open", as the log says.
        ruleset: the round whose rules the run followed, such as "4.0.0".
        device_count: chips used.
        scored: of a run that was scored afterwards, the samples of the checkpoints that were.
        loss_evaluations: how often the optimizer evaluated the training loss beside its gradients: line
            searches and the like.
        optimizer: the name of the one that replaced the benchmark's, "" where nothing did.
        steps: batches trained on, up to the weights that count.
    """

    benchmark: str
    tiny: bool
    reached: bool
    quality: dict[str, float]
    samples: int
    seconds: float
    examples_per_second: float
    mfu: float | None = None
    parameters_sha256: str | None = None
    seed: int
    resumed: int = 0
    versions: dict[str, str] = dataclasses.field(default_factory=versions)
    device: str
    mesh: dict[str, int] = dataclasses.field(default_factory=dict)
    status: Literal["success", "aborted"]
    log: str
    division: str = "open"
    ruleset: str = ""
    device_count: int = 1
    scored: list[int] = dataclasses.field(default_factory=list)
    loss_evaluations: int = 0
    optimizer: str = ""
    steps: int = 0

    @property
    def folder(self) -> pathlib.Path:
        """The folder of the run, which `load`, `show` and `curves` take; they take the result too."""
        log = pathlib.Path(self.log)
        return log.parent / log.stem.replace("result_", "run_")

    def to_dict(self) -> dict[str, Any]:
        """The content of `result.json`: every field, and the notices that go with any score."""
        return durable.plain(dataclasses.asdict(self), "the result") | MARKS

    @classmethod
    def load(cls, path: pathlib.Path) -> "Result":
        """Reads a `result.json`.

        Raises:
            UserError: the file is missing, damaged, or not a result.
        """
        document = durable.read_json(pathlib.Path(path))
        if not isinstance(document, dict):
            document = {}
        names = {field.name for field in dataclasses.fields(cls)}
        try:
            return cls(**{name: value for name, value in document.items() if name in names})
        except (TypeError, AttributeError) as error:
            raise UserError(
                f"{path} is not the result of a run ({error}); give the result.json of a run folder"
            ) from error

    def __repr__(self) -> str:
        return f"<{self._what()}: {self._outcome()}>"

    def __str__(self) -> str:
        chips = f"{self.device_count} x {self.device}"
        rules = f", rules of {self.ruleset}" if self.ruleset else ""
        at = ", ".join(f"{samples:,}" for samples in self.scored)
        scored = f"; scored afterwards at {at}" if at else ""
        lines = [
            f"{self._what()}: {self._outcome()}",
            f"{self.samples:,} samples in {_duration(self.seconds)}, "
            f"{self.examples_per_second:,.0f} samples/s on {chips}{self._mfu()}{scored}",
            *([f"optimizer {self.optimizer}"] if self.optimizer else []),
            f"{self.division} division{rules}. {UNVERIFIED}",
            LEGEND,
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = {
            "outcome": self._outcome(),
            "samples": f"{self.samples:,}",
            "time": _duration(self.seconds),
            "speed": f"{self.examples_per_second:,.0f} samples/s{self._mfu()}",
            "chips": f"{self.device_count} x {self.device}",
            "division": self.division + (f", rules of {self.ruleset}" if self.ruleset else ""),
            **({"optimizer": self.optimizer} if self.optimizer else {}),
            "seed": str(self.seed),
            "log": self.log,
        }
        return html_table(self._what(), rows) + SMALL_PRINT

    @property
    def line(self) -> str:
        """How the run ended, and after what."""
        return f"{self._outcome()}, {self.samples:,} samples in {_duration(self.seconds)}"

    def _what(self) -> str:
        return self.benchmark + (" (tiny)" if self.tiny else "")

    def _outcome(self) -> str:
        values = ", ".join(f"{name} {_number(value)}" for name, value in self.quality.items())
        verdict = "target reached" if self.reached else "target not reached"
        return f"{verdict}, {values} (unverified)" if values else f"{verdict} (unverified)"

    def _mfu(self) -> str:
        return "" if self.mfu is None else f", {self.mfu:.1%} MFU"


def folder_of(given: Any) -> str:
    """The path of a run or a set, which a `Result` may stand for.

    Raises:
        UserError: it is something else.
    """
    if isinstance(given, Result):
        return str(given.folder)
    if isinstance(given, str | os.PathLike) and isinstance(os.fspath(given), str):
        return os.fspath(given)
    raise UserError(
        f"{given!r} is no folder of a run: give its path, or the Result that the run returned"
    )


class Results(list["Result | None"]):
    """The results of a set's runs, by run; None where a run is scored afterwards. A notebook shows them as a table."""

    def __str__(self) -> str:
        lines = [f"{result.seed}: {result.line}" for result in self if result]
        return "\n".join([*lines, UNVERIFIED, LEGEND])

    def _repr_html_(self) -> str:
        columns = ("seed", "outcome", "samples", "time", "samples/s", "optimizer", "log")
        rows = [
            (
                str(result.seed),
                result._outcome(),
                f"{result.samples:,}",
                _duration(result.seconds),
                f"{result.examples_per_second:,.0f}",
                result.optimizer or "of the recipe",
                result.log,
            )
            for result in self
            if result
        ]
        waiting = sum(result is None for result in self)
        note = f"<p>{waiting} are trained and wait for being scored</p>" if waiting else ""
        title = next((result._what() for result in self if result), "")
        return rows_table(title, columns, rows) + note + SMALL_PRINT


def _number(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, int | float) else str(value)


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.2f} min"


def html_table(title: str, rows: Mapping[str, str]) -> str:
    """Names and texts beside each other, escaped."""
    cells = "".join(
        f"<tr><th style='text-align:left;vertical-align:top'>{html.escape(name)}</th>"
        f"<td style='text-align:left'>{'<br>'.join(map(html.escape, text.splitlines()))}</td></tr>"
        for name, text in rows.items()
    )
    return f"<table><caption><b>{html.escape(title)}</b></caption>{cells}</table>"


def rows_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of texts under the names of their columns, escaped; of no rows the title alone."""

    def cells(tag: str, texts: Sequence[str]) -> str:
        align = "style='text-align:left;vertical-align:top'"
        return "".join(f"<{tag} {align}>{html.escape(text)}</{tag}>" for text in texts)

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    head = f"<tr>{cells('th', columns)}</tr>" if body else ""
    return f"<table><caption><b>{html.escape(title)}</b></caption>{head}{body}</table>"
