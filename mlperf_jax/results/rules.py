"""The rules of every benchmark in every round, each pair one value: `resolve(benchmark, ruleset)`.

The tables are in `data/`: `benchmarks.toml` has rounds, targets, runs and schedules, `closed*.toml` and
`common.toml` the lines that a closed log holds and what their values may be, `keys.toml` how older rounds
spell them. `keys.py` and `closed.py` apply a round's rules to a run. A round is named as its rules are,
"4.0"; the official tools call its ruleset "4.0.0".
"""

import dataclasses
import functools
import importlib.resources
import operator
import pathlib
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlperf_jax.errors import UserError, did_you_mean, optional
from mlperf_jax.results.constraints import Constraint
from mlperf_jax.results.evaluations import Evaluation

# What the values of a log's lines, or of a benchmark's fields, may be.
Allowed = Mapping[str, tuple[Constraint, ...]]


@dataclasses.dataclass(frozen=True)
class Target:
    """Bounds that one named quality must meet, in the unit that is logged.

    Example:
        >>> target = Target("accuracy", at_least=0.759)
        >>> target.words, target.met({"accuracy": 0.76})
        ('accuracy at least 0.759', True)

    Attributes:
        name: the quality's name, such as "accuracy".
        at_least: the smallest value that passes.
        at_most: the largest value that passes.
        above: a bound the value must exceed.
    """

    name: str
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None

    def met(self, quality: Mapping[str, float]) -> bool:
        """Whether the value of this name is inside the bounds; NaN never is."""
        value = quality[self.name]
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.above is None or value > self.above)
            and value == value
        )

    @property
    def bound(self) -> float | None:
        """The one bound of most targets, the smallest value of those that have two."""
        given = (self.at_least, self.at_most, self.above)
        return next((bound for bound in given if bound is not None), None)

    @property
    def words(self) -> str:
        """The bounds as a text."""
        bounds = {"at least": self.at_least, "at most": self.at_most, "above": self.above}
        said = [f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None]
        return f"{self.name} {' and '.join(said)}".strip()

    def __str__(self) -> str:
        return self.words


@dataclasses.dataclass(frozen=True)
class OfficialTarget(Target):
    """A target of the rules. `note` is what its numbers cannot say, or ""."""

    note: str = ""

    def __str__(self) -> str:
        return f"{self.words} ({self.note})" if self.note else self.words


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spelling:
    """How a round's log spells what a benchmark states as its newest round does.

    Attributes:
        first: keys that come first.
        repeated: key -> another that repeats it, where the benchmark does not state that one.
        renamed: key -> its name in this round.
        fixed: key -> the value that this round fixed.
        metadata: key -> the line of which it is metadata, and its name there.
        quality: the keys of the quality.
        open_quality: further ones in the open division.
        epoch_num: what that metadata is, a formula of `epochs`, `samples`, `steps` and logged values.
        step_num: whether evaluations have that metadata.
        trained: the key that says when a run ends how many samples it trained; "" for none.
    """

    first: Sequence[str] = ()
    repeated: Mapping[str, str] = dataclasses.field(default_factory=dict)
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    metadata: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    quality: Sequence[str] = ("eval_accuracy",)
    open_quality: Sequence[str] = ()
    epoch_num: str = "epochs"
    step_num: bool = False
    trained: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
    """The rules of one benchmark in one round. By default it has none, as one that no round had.

    Attributes:
        benchmark: our name.
        suite: "training" or "hpc".
        round: such as "4.0".
        log_name: what the official tools call it, logged as `submission_benchmark`.
        targets: the quality targets; one evaluation must meet all.
        evaluation: when to evaluate; None where the rules of so early a round are not known.
        runs: how many make a score; 0 where there is none.
        drop: how many of the best and how many of the worst of them are left out.
        length_field: the metadata of an evaluation's line in which the official checker reads how long
            a run took.
        length_unit: what is counted there: "epochs", "samples", "steps" or "tokens".
        common: the lines of every benchmark's log; () for a key that logs of this round lack.
        own: the closed log's lines of this benchmark alone; None where the closed division's rules are
            not known.
        when: key -> its value -> lines that a closed log has besides.
        settings: values that the closed division binds but no log shows, by the benchmark's field.
        spelling: how the log spells them.
    """

    benchmark: str
    suite: str
    round: str
    log_name: str
    targets: tuple[OfficialTarget, ...] = ()
    evaluation: Evaluation | None = None
    runs: int = 0
    drop: int = 1
    length_field: str = "epoch_num"
    length_unit: str = "epochs"
    common: Allowed = dataclasses.field(default_factory=dict)
    own: Allowed | None = None
    when: Mapping[str, Mapping[str, Allowed]] = dataclasses.field(default_factory=dict)
    settings: Allowed = dataclasses.field(default_factory=dict)
    spelling: Spelling = Spelling()

    @property
    def ruleset(self) -> str:
        """What the official tools call the round's rules, such as "4.0.0"."""
        return f"{self.round}.0"

    def allowed(self, logged: Mapping[str, Any], *, common: bool = True) -> Allowed:
        """The lines of a closed log, and what their values may be.

        Args:
            logged: what is logged, in the round's spelling: some lines depend on others.
            common: with those of every benchmark.
        """
        lines = {**(self.common if common else {}), **(self.own or {})}
        for key, cases in self.when.items():
            lines |= cases.get(str(logged.get(key)), {})
        return {key: given for key, given in lines.items() if given}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A row of the table: what a benchmark is, and in which rounds.

    Attributes:
        name: our name; the official one, except where one official name means two benchmarks.
        suite: "training" or "hpc".
        task, model, dataset, metric: a few words each.
        rounds: in order, such as ("0.5", …, "4.0").
    """

    name: str
    suite: str
    task: str
    model: str
    dataset: str
    metric: str
    rounds: tuple[str, ...]


def resolve(benchmark: str, ruleset: str | None = None) -> Round:
    """The rules of a benchmark in a round; here alone it is decided which benchmarks have any.

    Example:
        >>> official = resolve("resnet")
        >>> official.ruleset, str(official.targets[0]), official.runs
        ('4.0.0', 'accuracy at least 0.759', 5)

    Args:
        benchmark: our name.
        ruleset: the round, as "4.0", "v4.0" or "4.0.0"; the benchmark's last one by default; "" for a
            benchmark that no round had, which has no rules and logs in the newest round's spelling.

    Raises:
        UserError: there is no such benchmark or round, or the benchmark was not in it.
    """
    if ruleset == "" and benchmark not in entries():
        return _resolved(benchmark, "training", rounds_of("training")[-1])
    row = entry(benchmark)
    name = row.rounds[-1] if ruleset is None else round_name(ruleset, row.suite)
    if name not in row.rounds:
        raise UserError(
            f"{row.name} was in the rounds {row.rounds[0]} to {row.rounds[-1]}, not in {name}; "
            "give one of these"
        )
    return _resolved(row.name, row.suite, name)


@functools.cache
def _resolved(benchmark: str, suite: str, name: str) -> Round:
    """The rules as the tables have them; of a benchmark in none, the lines that all logs share."""

    def here(given: Any) -> list[dict[str, Any]]:
        """Of a table or a list of tables those of this round, without their `rounds`."""
        return [
            {key: value for key, value in table.items() if key != "rounds"}
            for table in (given if isinstance(given, list) else [given])
            if "rounds" not in table or name in span(table["rounds"], suite)
        ]

    def allowed(table: Mapping[str, Any]) -> Allowed:
        return {key: tuple(here(given)) for key, given in table.items()}

    facts = data("benchmarks.toml")["benchmarks"].get(benchmark, {})
    facts = functools.reduce(operator.or_, here(facts.get("changes", [])), facts)
    plain = ("runs", "drop", "length_field", "length_unit")
    common, spelling = data("common.toml")[suite], data("keys.toml")
    closed = (data("closed.toml") | data("closed_hpc.toml")).get(benchmark, [])
    closed = next(iter(here(closed)), {})
    return Round(
        benchmark=benchmark,
        suite=suite,
        round=name,
        log_name=facts.get("log_name", benchmark),
        **{field: facts[field] for field in plain if field in facts},
        targets=tuple(OfficialTarget(**each) for each in here(facts.get("targets", []))),
        evaluation=next((Evaluation(**each) for each in here(facts.get("evaluation", []))), None),
        common=allowed(common["keys"]),
        own=allowed(closed["keys"]) if closed else None,
        when={
            key: {value: allowed(table) for value, table in cases.items()}
            for key, cases in closed.get("when", {}).items()
        },
        settings=allowed(common["settings"] | closed.get("settings", {})),
        spelling=Spelling(
            first=spelling["first"],
            **functools.reduce(operator.or_, here(spelling.get(benchmark, [])), {}),
        ),
    )


def entry(name: str) -> Entry:
    """The row of a benchmark.

    Raises:
        UserError: there is no benchmark of that name.
    """
    table = entries()
    if name not in table:
        raise UserError(f"there is no official benchmark {name!r}{did_you_mean(name, table)}")
    return table[name]


@functools.cache
def entries() -> dict[str, Entry]:
    """All rows by name, in the order of the file."""
    found = {}
    for name, facts in data("benchmarks.toml")["benchmarks"].items():
        suite = facts.get("suite", "training")
        words = {word: facts[word] for word in ("task", "model", "dataset", "metric")}
        found[name] = Entry(name=name, suite=suite, rounds=span(facts["rounds"], suite), **words)
    return found


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


def by_log_name(log_name: str, ruleset: str | None = None) -> list[Round]:
    """What a log may mean by its `submission_benchmark`, in the order of the file and then of the rounds.

    Args:
        log_name: such as "ssd", which meant two benchmarks.
        ruleset: only in this round.
    """
    wanted = None if ruleset is None else _spelled(ruleset)
    every = (
        resolve(row.name, name)
        for row in entries().values()
        for name in row.rounds
        if wanted in (None, name)
    )
    return [official for official in every if official.log_name == log_name]


def round_above(path: pathlib.Path) -> str:
    """The round that the name of a results repository says, around a path or of it; "" for none that there was.

    Example:
        >>> round_above(pathlib.Path("/data/training_results_v3.1/lab/results/system/resnet"))
        '3.1'
    """
    said = re.findall(r"_results_v(\d+\.\d+)", str(path.absolute()))
    every = [name for suite in data("benchmarks.toml")["rounds"] for name in rounds_of(suite)]
    return said[-1] if said and said[-1] in every else ""


@functools.cache
def rounds_of(suite: str) -> tuple[str, ...]:
    """The rounds of "training" or "hpc", in order."""
    rounds = data("benchmarks.toml")["rounds"]
    if suite not in rounds:
        raise UserError(f"there is no suite {suite!r}; give one of {', '.join(rounds)}")
    return tuple(rounds[suite])


def round_name(ruleset: str, suite: str = "training") -> str:
    """The round of a ruleset: "4.0" for "4.0.0", "v4.0" or "4.0".

    Raises:
        UserError: there is no such round.
    """
    name = _spelled(ruleset)
    rounds = rounds_of(suite)
    if name not in rounds:
        given = ", ".join(f"{each}.0" for each in rounds)
        raise UserError(f"there is no ruleset {ruleset!r}; give one of {given}")
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


def _spelled(ruleset: str) -> str:
    text = str(ruleset).removeprefix("v")
    return text.removesuffix(".0") if text.count(".") == 2 else text


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
    package = optional("mlperf_logging", "results", "comparing with the official tools")
    return pathlib.Path(next(iter(package.__path__)))
