"""The rounds, the benchmarks and their quality targets, as one table.

The table is `data/benchmarks.toml`; what the closed division allows is in `data/closed*.toml`, read by
`closed.py`; what a log's keys are called in `data/keys.toml`, read by `keys.py`. A round is named as its rules are, "4.0"; the official tools call its ruleset "4.0.0".
"""

import dataclasses
import difflib
import functools
import importlib.resources
import json
import pathlib
import tomllib
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

from mlperf_jax.errors import UserError
from mlperf_jax.results.evaluations import Evaluation


@dataclasses.dataclass(frozen=True)
class Target:
    """One quality target, in the unit that is logged.

    Attributes:
        name: the quality's name, such as "accuracy".
        at_least: the smallest value that passes.
        at_most: the largest value that passes.
        above: a bound the value must exceed.
        note: what a number cannot say.
    """

    name: str
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    note: str = ""

    def __str__(self) -> str:
        bounds = [f"at least {self.at_least:g}"] if self.at_least is not None else []
        bounds += [f"at most {self.at_most:g}"] if self.at_most is not None else []
        bounds += [f"above {self.above:g}"] if self.above is not None else []
        text = f"{self.name} {' and '.join(bounds)}".strip()
        return f"{text} ({self.note})" if self.note else text


@dataclasses.dataclass(frozen=True)
class Entry:
    """A row of the table: what a benchmark is, and in which rounds.

    Attributes:
        name: our name; the official one, except where one official name means two benchmarks.
        suite: "training" or "hpc".
        task, model, dataset, metric: a few words each.
        rounds: in order, such as ("0.5", …, "4.0").
        drop: how many of the best and how many of the worst runs a score leaves out.
    """

    name: str
    suite: str
    task: str
    model: str
    dataset: str
    metric: str
    rounds: tuple[str, ...]
    drop: int
    _targets: tuple[tuple[tuple[str, ...], Target], ...]
    _runs: tuple[tuple[tuple[str, ...], int], ...]
    _log_names: tuple[tuple[tuple[str, ...], str], ...]
    _evaluations: tuple[tuple[tuple[str, ...], Evaluation], ...]

    @property
    def last_ruleset(self) -> str:
        """The ruleset of the last round that ran it, such as "4.0.0"."""
        return f"{self.rounds[-1]}.0"

    def targets(self, ruleset: str | None = None) -> tuple[Target, ...]:
        """The quality targets of a round (the last one's by default); all must be met."""
        name = self.round(ruleset)
        return tuple(target for rounds, target in self._targets if name in rounds)

    def runs(self, ruleset: str | None = None) -> int:
        """How many runs make a score in that round."""
        name = self.round(ruleset)
        return next(n for rounds, n in self._runs if name in rounds)

    def log_name(self, ruleset: str | None = None) -> str:
        """What the official tools call it in that round, logged as `submission_benchmark`."""
        name = self.round(ruleset)
        return next((n for rounds, n in self._log_names if name in rounds), self.name)

    def evaluation(self, ruleset: str | None = None) -> Evaluation | None:
        """When to evaluate in that round; None where the rules of so early a round are not known."""
        name = self.round(ruleset)
        return next((e for rounds, e in self._evaluations if name in rounds), None)

    def round(self, ruleset: str | None = None) -> str:
        """The round that "4.0", "v4.0" or "4.0.0" names; the benchmark's last one by default.

        Raises:
            UserError: there is no such round, or the benchmark was not in it.
        """
        if ruleset is None:
            return self.rounds[-1]
        name = round_name(ruleset, self.suite)
        if name not in self.rounds:
            raise UserError(
                f"{self.name} was in the rounds {self.rounds[0]} to {self.rounds[-1]}, not in {name}; "
                f"give one of these."
            )
        return name


def entry(name: str) -> Entry:
    """The row of a benchmark.

    Example:
        >>> entry("resnet").last_ruleset, str(entry("resnet").targets()[0])
        ('4.0.0', 'accuracy at least 0.759')

    Raises:
        UserError: there is no benchmark of that name.
    """
    table = entries()
    if name not in table:
        raise UserError(f"there is no official benchmark {name!r}{_meant(name, table)}.")
    return table[name]


def at(name: str, ruleset: str | None) -> tuple[Entry, str]:
    """The row of a benchmark and the round that a ruleset names.

    Args:
        name: of the benchmark.
        ruleset: as `Entry.round` takes it; "" for a benchmark that no round had, whose row is empty and
            whose log is spelled as in the newest round.

    Raises:
        UserError: there is no such benchmark or round.
    """
    if ruleset != "":
        row = entry(name)
        return row, row.round(ruleset)
    newest = rounds_of("training")[-1]
    words = dict.fromkeys(("task", "model", "dataset", "metric"), "")
    return _entry(name, {**words, "rounds": newest, "targets": [], "runs": []}), newest


@functools.cache
def entries() -> dict[str, Entry]:
    """All rows by name, in the order of the file."""
    table = data("benchmarks.toml")["benchmarks"]
    return {name: _entry(name, dict(row)) for name, row in table.items()}


def in_round(ruleset: str, suite: str | None = None) -> list[Entry]:
    """The benchmarks of a round, in the order of the file.

    Example:
        >>> [row.name for row in in_round("5.1")][:3]
        ['retinanet', 'flux1', 'llama2_70b_lora']

    Args:
        ruleset: such as "5.1"; a round of training and one of HPC may bear the same number.
        suite: "training" or "hpc"; both by default.

    Raises:
        UserError: there is no such round.
    """
    suites = [suite] if suite else list(data("benchmarks.toml")["rounds"])
    name = _spelled(ruleset)
    if not any(name in rounds_of(each) for each in suites):
        round_name(ruleset, suites[0])  # raises, and says which there are
    return [row for row in entries().values() if row.suite in suites and name in row.rounds]


def by_log_name(log_name: str, ruleset: str | None = None) -> list[Entry]:
    """The benchmarks that a log may mean by its `submission_benchmark`.

    Args:
        log_name: such as "ssd", which meant two benchmarks.
        ruleset: leave only those that were in this round under that name.
    """
    wanted = None if ruleset is None else _spelled(ruleset)
    return [
        row
        for row in entries().values()
        if any(row.log_name(r) == log_name for r in row.rounds if wanted in (None, r))
    ]


@functools.cache
def rounds_of(suite: str) -> tuple[str, ...]:
    """The rounds of "training" or "hpc", in order."""
    rounds = data("benchmarks.toml")["rounds"]
    if suite not in rounds:
        raise UserError(f"there is no suite {suite!r}; give one of {', '.join(rounds)}.")
    return tuple(rounds[suite])


def round_name(ruleset: str, suite: str = "training") -> str:
    """The round of a ruleset: "4.0" for "4.0.0", "v4.0" or "4.0".

    Raises:
        UserError: there is no such round.
    """
    name = _spelled(ruleset)
    rounds = rounds_of(suite)
    if name not in rounds:
        raise UserError(
            f"there is no ruleset {ruleset!r}{_meant(name, rounds)}; give one of "
            f"{', '.join(f'{r}.0' for r in rounds)}."
        )
    return name


def span(rounds: str | Iterable[str], suite: str = "training") -> tuple[str, ...]:
    """The rounds that "0.5-4.0" spans, both ends included; a list of spans is their sum."""
    every = rounds_of(suite)
    if not isinstance(rounds, str):
        return tuple(r for part in rounds for r in span(part, suite))
    first, _, last = rounds.partition("-")
    return every[every.index(first) : every.index(last or first) + 1]


@functools.cache
def data(name: str) -> dict[str, Any]:
    """The content of a file of `results/data`."""
    file = importlib.resources.files("mlperf_jax.results") / "data" / name
    return tomllib.loads(file.read_text(encoding="utf-8"))


def _entry(name: str, row: dict[str, Any]) -> Entry:
    suite = row.pop("suite", "training")
    rounds = span(row.pop("rounds"), suite)

    def spans(items: Any, value: str) -> tuple:
        """((rounds, value), …) of a list of tables, whose `rounds` default to all."""
        items = items if isinstance(items, list) else [{value: items}]
        return tuple((span(i.get("rounds", rounds), suite), i[value]) for i in items)

    targets = []
    for target in row.pop("targets"):
        when = span(target.get("rounds", rounds), suite)
        targets.append((when, Target(**{k: v for k, v in target.items() if k != "rounds"})))
    evaluations = []
    for evaluation in row.pop("evaluation", []):
        when = span(evaluation.get("rounds", rounds), suite)
        values = {k: v for k, v in evaluation.items() if k != "rounds"}
        evaluations.append((when, Evaluation(**{**values, "at": tuple(values.get("at", ()))})))
    return Entry(
        name=name,
        suite=suite,
        rounds=rounds,
        drop=row.pop("drop", 1),
        _targets=tuple(targets),
        _runs=spans(row.pop("runs"), "n"),
        _log_names=spans(row.pop("log_names", []), "name"),
        _evaluations=tuple(evaluations),
        **row,
    )


def _spelled(ruleset: str) -> str:
    text = str(ruleset).removeprefix("v")
    return text.removesuffix(".0") if text.count(".") == 2 else text


def _meant(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


@dataclasses.dataclass(frozen=True)
class ReferencePoint:
    """A reference convergence point: how long the reference takes at one batch size.

    Attributes:
        name: the organisers' name for it.
        batch_size: the global batch.
        lengths: how long each run took, in the benchmark's own unit (epochs for resnet).
        hyperparameters: what the runs used; information, never compared by the official tools.
    """

    name: str
    batch_size: int
    lengths: tuple[float, ...]
    hyperparameters: Mapping[str, Any]


def rcp(benchmark: str, ruleset: str | None = None) -> list[ReferencePoint]:
    """The reference convergence points of a benchmark by batch size, from the official package.

    Args:
        benchmark: our name.
        ruleset: the round; the benchmark's last one by default.

    Raises:
        UserError: the package is not installed, or has no points for that round.
    """
    row = entry(benchmark)
    version = f"{row.suite}_{row.round(ruleset)}.0"
    name = f"rcps_{row.log_name(ruleset)}.json"
    path = official_package() / "rcp_checker" / version / name
    if not path.is_file():
        raise UserError(
            f"the installed mlperf-logging has no reference convergence points for {benchmark} in "
            f"{version.replace('_', ' ')}; give another ruleset."
        )
    return rcp_file(path)


def rcp_file(path: pathlib.Path) -> list[ReferencePoint]:
    """The points of one file in the official form, by batch size.

    Raises:
        UserError: the file cannot be read, or a point in it lacks its batch size or its runs.
    """
    try:
        points = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        found = [_point(name, point) for name, point in points.items()]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is not a file of reference convergence points ({error!r}); it holds one object per "
            'point, with "BS" and "Epochs to converge".'
        ) from error
    return sorted(found, key=lambda point: point.batch_size)


def _point(name: str, point: Mapping[str, Any]) -> ReferencePoint:
    # two benchmarks' files name the field differently
    field = "samples to converge" if "samples to converge" in point else "Epochs to converge"
    return ReferencePoint(
        name=name,
        batch_size=int(point["BS"]),
        lengths=tuple(float(length) for length in point[field]),
        hyperparameters=point.get("Hyperparams", {}),
    )


def checker(suite: str, version: str) -> pathlib.Path | None:
    """The folder of the official checker's rules of a round, such as "4.0.0"; None where it has none.

    Raises:
        UserError: the official package is not installed.
    """
    folder = official_package() / "compliance_checker" / f"{suite}_{version}"
    # it keeps those of the first two rounds, whose logs have another form, and cannot read them
    return folder if folder.is_dir() and version not in ("0.5.0", "0.6.0") else None


def official_package() -> pathlib.Path:
    """The folder of the installed `mlperf_logging`.

    Raises:
        UserError: it is not installed.
    """
    found = find_spec("mlperf_logging")
    if found is None or not found.submodule_search_locations:
        raise UserError(
            "the official result tools are not installed; "
            'install them with: pip install "mlperf-jax[results]".'
        )
    return pathlib.Path(next(iter(found.submodule_search_locations)))
