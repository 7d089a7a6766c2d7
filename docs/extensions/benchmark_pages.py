"""The pages about benchmarks, made from their classes, the rules, the reference points and the tables of docs/."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import pathlib
import re
import sys
from typing import Any

import field_comments
import passages
from mlperf_jax import benchmarks
from mlperf_jax.core.benchmark import Absence, Benchmark
from mlperf_jax.core.fields import allowed, helps_of, hints_of
from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.downloads import choosing, manifest
from mlperf_jax.planning import convergence
from mlperf_jax.results import listing, rcp, rules
from parity import PARITY
from passages import DOCS, ROOT, table

FOLDER = DOCS / "benchmarks"
# what `absent` may state, in words
ABSENT: dict[Absence, str] = {
    "recipes": "reference convergence points: its rounds published none",
    "ruleset": "rules in today's official checker, so that its logs are not checked by it",
    "pictures": "pictures: there is nothing to draw, and `mlperf-jax show` does not take it",
    "training files": "training data in files: the model makes them itself",
}


def pages() -> dict[str, str]:
    """All pages by file name: one a benchmark, their table, what is absent, what is planned."""
    here = {name: page(name) for name in benchmarks.names()}
    return {**here, "index": index(), "absent": absent(), "planned": planned()}


# -- pages of several ------------------------------------------------------------------------------


def index() -> str:
    """The table of all benchmarks, as `mlperf-jax list` has it."""
    rows = [[f"[{row[0]}]({row[0]}.md)", *row[1:]] for row in map(listed, benchmarks.names())]
    order = "\n".join(benchmarks.names())
    return f"""# Benchmarks

{table(listing.HEADER, rows)}
*tiny*: the small stand-in reaches its target in the tests. *full*: the full-size configuration and data pipeline
are there and tested piece by piece.

Each page says what its class says: `mlperf-jax run NAME --help` shows the same fields. What a benchmark's rounds
never had is [stated](absent.md), and so are the benchmarks that are [not here yet](planned.md).

```{{toctree}}
:hidden:

{order}
absent
planned
```
"""


def listed(name: str) -> list[str]:
    """A benchmark's row of `mlperf-jax list`."""
    return listing.cells(listing.describe(rules.entry(name), listing.HERE))


def absent() -> str:
    """What benchmarks have not, as each of them states it."""
    rows = [
        [what, words, ", ".join(f"[{name}]({name}.md)" for name in who) or "none here"]
        for what, words in ABSENT.items()
        for who in [[n for n in benchmarks.names() if what in _class(n).absent]]
    ]
    return f"""# What is not there

Some rounds never had what others have. A benchmark states it (`absent` of its class), and the tests refuse a hole
that is not stated as well as an absence that is not true.

{table(("absence", "what is not there", "stated by"), rows)}"""


def planned() -> str:
    """The official benchmarks that this library does not have."""
    rows = [
        listing.cells(listing.describe(entry, listing.PLANNED))
        for entry in rules.entries().values()
        if entry.name not in benchmarks.names()
    ]
    return f"""# Not here yet

Benchmarks that a round had and this library has not. Their rules are there as data: `check`, `score` and `report` read
logs of any of them.

{table(listing.HEADER[:-1], [row[:-1] for row in rows])}"""


# -- the page of one -------------------------------------------------------------------------------


def page(name: str) -> str:
    """The page of a benchmark."""
    cls, full, tiny = _class(name), benchmarks.get(name), benchmarks.get(name, tiny=True)
    parts = {
        "": _opening(cls),
        "Run it": _commands(name),
        "Rule": _rule(full),
        "Figures": _figures(full),
        "Recipes": _recipes(full),
        "Fields": _fields(full, tiny),
        "Log": _log(full),
        "Data": _data(name),
        "Parity": _parity(name),
        "Plan": _plan(name),
        "Measured": _measured(name),
        "What it has not": _absences(cls),
    }
    return f"# {name}\n\n" + "\n".join(
        f"## {title}\n\n{text}" if title else text for title, text in parts.items() if text
    )


def _class(name: str) -> type[Benchmark]:
    return benchmarks.benchmark_class(name)


def _opening(cls: type[Benchmark]) -> str:
    """What its file says first, and where it stands."""
    module = sys.modules[cls.__module__].__doc__ or ""
    path = pathlib.Path(inspect.getfile(cls)).relative_to(ROOT)
    own = inspect.cleandoc(cls.__doc__ or "")
    return f"""{module.strip()}

{own}

Its class is `{cls.__name__}` in [{path}](../../{path}).
"""


def _commands(name: str) -> str:
    offline = _class(name).metric.mode == "offline"
    lines = {
        f"run {name} --tiny": "here and now, with no data to fetch",
        f"run {name} --data-dir /data --output runs/real": "",
        **({"evaluate runs/real": "its quality is computed after training"} if offline else {}),
        f"bench {name}": "speed on these devices, without data",
        f"plan {name} --on v5p:2x2x4": "fit, time and cost on devices that are not here",
    }
    width = 2 + max(len(line) for line, said in lines.items() if said)
    shown = (f"mlperf-jax {line:{width}}{said and '# ' + said}" for line, said in lines.items())
    return "\n".join(["```", *map(str.rstrip, shown), "```", ""])


def _rule(benchmark: Benchmark) -> str:
    """The rules of each round, rounds alike on one line, and what follows from them at the default batch."""
    entry = rules.entry(benchmark.name)
    alike: dict[tuple[str, str, str], list[str]] = {}
    for name in entry.rounds:
        official = rules.resolve(benchmark.name, name)
        targets = " and ".join(map(str, official.targets))
        said = (targets, str(official.evaluation or "not known"), str(official.runs))
        alike.setdefault(said, []).append(name)
    every = rules.rounds_of(entry.suite)
    rows = [[listing.rounds(names, every, entry.suite), *said] for said, names in alike.items()]
    first = itertools.islice(benchmark.eval_steps(), 4)
    limit = benchmark.last_sample
    end = f"A run gives up after {limit:,} samples." if limit else "No limit ends a run."
    return f"""{entry.task[0].upper()}{entry.task[1:]}: {entry.metric}. The rules applied are those of {benchmark.ruleset},
unless a command is given others.

{table(("rounds", "target", "evaluated", "runs of a score"), rows)}
At the default batch of {benchmark.batch_size:,} quality is evaluated after {", ".join(f"{step:,}" for step in first)} steps
and so on. {end}
"""


def _figures(benchmark: Benchmark) -> str:
    """What is countable without running anything."""
    buckets = {
        f"`{key}` {leaf.dtype.name} {list(leaf.shape) or ''}".strip()
        for bucket in benchmark.buckets()
        for key, leaf in bucket.example.items()
    }
    figures = {
        "trained parameters": f"{benchmark.parameters:,}",
        "FLOPs to train on one sample": shown(float(f"{benchmark.flops_per_sample:.4g}")),
        "training samples": f"{benchmark.train_samples:,}",
        "samples evaluated": f"{benchmark.eval_samples:,}",
        "rows of a batch": ", ".join(f"{b.rows:,}" for b in benchmark.buckets()),
        "arrays of a row": ", ".join(sorted(buckets)),
        "frozen parameters": ", ".join(f"`{pattern}`" for pattern in benchmark.frozen),
        "what the start weights score": shown(benchmark.start_quality or ""),
        "records that a core makes a second": shown(benchmark.records_per_core or ""),
    }
    return table(("of the defaults", ""), [pair for pair in figures.items() if pair[1]])


def _recipes(benchmark: Benchmark) -> str:
    """The official batch sizes, what differs between them, and how long the references took."""
    recipes = type(benchmark).recipes()
    if not recipes:
        return ""
    configs = [dataclasses.asdict(recipe) for recipe in recipes.values()]
    differ = [key for key in configs[0] if any(c[key] != configs[0][key] for c in configs)]
    unit = rules.resolve(benchmark.name, benchmark.ruleset).length_unit
    units = list(dict.fromkeys((unit, "samples")))
    known = {point.batch_size: point for point in rcp.references(benchmark.name, benchmark.ruleset)}
    rows = []
    for size, recipe in recipes.items():
        scales = {unit: 1.0, "samples": convergence.samples_per_unit(recipe)}
        point = known.get(size)
        took = [_spread(point, scales[each]) if point else "" for each in units]
        rows.append([*(shown(getattr(recipe, key)) for key in differ), *took])
    header = [*differ, *(f"{each} to the target" for each in units)]
    lengths = f"""The lengths are those of the reference convergence points of ruleset {benchmark.ruleset}: the mean without the
fastest and slowest of each point's runs, and the standard deviation of all."""
    return f"""`--batch-size` with one of these brings the other values of its line; a batch size in between keeps those of the
nearest one below, and the run says so. {lengths}

{table(header, rows)}"""


def _spread(point: rcp.Reference, scale: float) -> str:
    mean, std = point.mean * scale, point.std * scale
    digits = 0 if mean >= 1000 else 3
    return f"{mean:,.{digits}f} ± {std:,.{digits}f}"


def _fields(full: Benchmark, tiny: Benchmark) -> str:
    """Every field with its value, the small stand-in's where that differs, and what it may hold."""
    cls = type(full)
    hints, helps, said = hints_of(cls), helps_of(cls), field_comments.comments(cls)
    shared = field_comments.comments(Benchmark)
    groups: dict[str, list[list[str]]] = {}
    for name, comment in said.items():
        group = comment.group.partition(":")[0].partition(";")[0] or (
            "of every benchmark" if name in shared else "further"
        )
        value, small = shown(getattr(full, name)), shown(getattr(tiny, name))
        beside = "" if comment == shared.get(name) else comment.note
        note = "; ".join(filter(None, (helps.get(name, ""), beside)))
        row = [f"`{name}`", value, small if small != value else "", _may_be(hints[name]), note]
        groups.setdefault(group, []).append(row)
    order = sorted(groups, key=lambda group: ("hyper" not in group, group == "of every benchmark"))
    header = ("field", "value", "tiny", "may be", "what it is")
    parts = ["Each is an option too, `--base-lr` for `base_lr`, and a setting of `run`."]
    for group in order:
        said = any(row[-1] for row in groups[group])
        columns = None if said else -1  # without the notes where there are none
        rows = table(header[:columns], [row[:columns] for row in groups[group]])
        title = f"### {group[0].upper()}{group[1:]}"
        parts += [title, f"```{{container}} fields\n{rows}```"]
    return "\n\n".join(parts) + "\n"


def _may_be(hint: Any) -> str:
    return allowed(hint).replace("Targets", "targets")


def shown(value: Any) -> str:
    """A field's value as a cell says it."""
    if value == "":
        return ""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return re.sub(r"e([+-])0", r"e\1", f"{value:g}").replace("e+", "e")
    if isinstance(value, tuple):
        return ", ".join(str(v) if isinstance(v, int) else shown(v) for v in value) or "none"
    return f"`{value}`" if isinstance(value, str) else str(value)


def _log(benchmark: Benchmark) -> str:
    """The lines of the official log that only this benchmark has."""
    logged = {**benchmark.log(), **benchmark.optimizer_log(), **benchmark.tables_log()}
    if not logged:
        return ""
    rows = [[f"`{key}`", shown(value)] for key, value in logged.items()]
    return f"""What its log says of the defaults beside the lines that all logs have, as the newest rules spell it.

{table(("key", "value"), rows)}"""


def _data(name: str) -> str:
    """Where its data come from, what building them takes, and its section of the page about data."""
    text = (DOCS / "data.md").read_text(encoding="utf-8")
    takes = _rows("data.md", name, "disk")
    bodies = (
        (title, body)
        for heading, body in passages.sections(text)
        for names, colon, title in [heading.partition(": ")]
        if colon and name in names.split(", ")
    )
    title, body = next(bodies, ("", ""))
    if not (title and takes):
        raise UserError(
            f"docs/data.md says too little of {name}: write a section '## {name}: DATA SET', and its line in "
            "'What building takes'"
        )
    return f"""{title}. `mlperf-jax data fetch {name}` says:

```
{choosing.describe(manifest.load(name), "DIR")}
```

[Building it](../data.md#what-building-takes) takes, beside that:

{takes}{passages.moved(body, DOCS, FOLDER)}"""


def _parity(name: str) -> str:
    """The tests that compare it with its reference, and the scripts that made the reference's numbers."""
    if name not in PARITY:
        raise UserError(f"docs/extensions/parity.py has no line of {name}: name its tests")
    rows = [[f"[{path}](../../{path})", _first_line(ROOT / path)] for path in PARITY[name]]
    return f"""What it computes is compared with what its reference, or a library that computes the same, gives for the same weights
and inputs.

{table(("file", "what it compares or makes"), rows)}"""


def _first_line(path: pathlib.Path) -> str:
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(doc.partition("\n\n")[0].split())


def _plan(name: str) -> str:
    """What it takes on devices that it was planned for, and predictions beside what others measured."""
    fits, published = _rows("plan.md", name, "temporaries"), _rows("plan.md", name, "published")
    if not fits:
        return "Nobody has planned it yet: `python scripts/plan_table.py` adds the line.\n"
    text = f"""At full size, in GiB of one device, by the compiler's account ([what the columns mean](../plan.md)):

{fits}"""
    if published:
        text += f"""In samples a second and chip, beside what others published:

{published}"""
    return text


def _measured(name: str) -> str:
    """What was measured of it so far."""
    text = f"""Status: {listing.HERE}. No result at full size is stated anywhere until a run of this code has made it; what was
measured of speed stands in [measured results](../measured.md).

"""
    if seeds := _rows("tiny_targets.md", name, "reached"):
        text += f"""The small stand-in over many seeds ([what the columns mean](../tiny_targets.md)):

{seeds}"""
    else:
        text += "The small stand-in was not tried over many seeds yet.\n\n"
    if rates := _rows("plan.md", name, "planned with"):
        text += f"""The making of training records, on one core of a shared server ([how](../plan.md#to-the-target)):

{rates}"""
    return text


def _rows(page: str, name: str, column: str) -> str:
    """The benchmark's rows of those tables of a page that have this column."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return "".join(
        table(header[1:], [row[1:] for row in rows]) + "\n"
        for header, rows in passages.rows_of(text, "benchmark", name)
        if column in header
    )


def _absences(cls: type[Benchmark]) -> str:
    return "".join(f"- {ABSENT[what]}\n" for what in cls.absent)
