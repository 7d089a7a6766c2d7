"""Which tests a change can have touched, so that `make test` takes minutes with any number of benchmarks.

The suite has parts: a file of tests is one, and each benchmark has three in the battery: "short NAME", which
always runs, "steps NAME", its three steps in float64, and "long NAME", what trains to the target. A part
*reaches* the files that its tests or its benchmark import, directly or not; imports are read from the syntax tree,
so one inside a function counts too, and are followed through `__init__.py` to where a name is defined. What
every benchmark needs, the core and all that it imports, is *shared*.

The most urgent parts run, as far as the time goes; tests/durations.json has the core-seconds of each:

* what reaches nothing of the package, and the short parts: always;
* what reaches a file of its own that differs from the base commit, or runs one that does (`RUN`); of a change to
  shared files, the tests that reach nothing else of the package;
* whose turn it is: one of every four parts, another one with every commit; a long part only after changes to
  shared files, and one of every three;
* what else a change to shared files touches, but for long parts.

The base is `MLPERF_JAX_BASE`, else where this branch left origin/main, else (on main itself) the commit
`RECENT` commits ago; where history does not go back that far, all counts as changed. `pytest --battery=all`, the
default and what `make test-all` does, leaves nothing out.

`python tests/selection.py [FILE …]` prints what would run if those files were changed, and `--times 4` what if
there were each benchmark four times.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
import subprocess
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = "mlperf_jax"
RECENT = 10  # commits, about a day's

MERGE_BASE = ["merge-base", "HEAD", "origin/main"]

Files = frozenset[pathlib.Path]


# -- who imports what ------------------------------------------------------------------------------


def file_of(name: str, root: pathlib.Path = ROOT) -> pathlib.Path | None:
    """The file of a module or package of ours, or of what tests share, if there is one of this name."""
    path = helpers(root).get(name) or root.joinpath(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@functools.cache
def helpers(root: pathlib.Path) -> Mapping[str, pathlib.Path]:
    """What lies beside tests and is imported by its bare name."""
    found = (root / "tests").rglob("*.py")
    return {path.stem: path for path in found if not path.name.startswith("test_")}


@functools.cache
def imported(path: pathlib.Path) -> Mapping[str, str]:
    """Local name -> full name of what a file imports: {"sgd": "mlperf_jax.optimizers.sgd"}."""
    found: dict[str, str] = {}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            pairs = [(alias.asname or alias.name, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            pairs = [(a.asname or a.name, f"{node.module}.{a.name}") for a in node.names]
        else:
            continue
        found |= dict(pairs)
    return found


@functools.cache
def tree(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def taken(path: pathlib.Path) -> Mapping[str, frozenset[str]]:
    """Name -> the attributes that a file takes of it: {"metrics": {"Mean"}}."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.setdefault(node.value.id, set()).add(node.attr)
    return {name: frozenset(attributes) for name, attributes in found.items()}


def defined_in(name: str, root: pathlib.Path = ROOT) -> Iterator[pathlib.Path]:
    """The file that defines a full name, past packages that only pass it on."""
    package, _, last = name.rpartition(".")
    home = file_of(package, root)
    passed_on = imported(home).get(last) if home and home.name == "__init__.py" else None
    if passed_on and passed_on != name:  # not a module of the package that it imports itself
        yield from defined_in(passed_on, root)
    elif found := file_of(name, root) or home:
        yield found


def imports(path: pathlib.Path, root: pathlib.Path = ROOT) -> Iterator[pathlib.Path]:
    """The files of ours that a file needs."""
    for here, name in imported(path).items():
        home = file_of(name, root)
        if (
            home and home.name == "__init__.py"
        ):  # a whole package: what is taken of it, or all of it
            for attribute in taken(path).get(here) or imported(home):
                yield from defined_in(f"{name}.{attribute}", root)
        else:
            yield from defined_in(name, root)


def reached(
    start: Iterable[pathlib.Path], root: pathlib.Path = ROOT, beyond: Collection[pathlib.Path] = ()
) -> Files:
    """The files and all that they import, not going into those of `beyond`."""
    found: set[pathlib.Path] = set()
    left = list(start)
    while left:
        path = left.pop()
        if path not in found and path not in beyond:
            found.add(path)
            left += imports(path, root)
    return frozenset(found)


def shared(root: pathlib.Path = ROOT) -> Files:
    """What every benchmark needs."""
    package = root / PACKAGE
    return reached([*package.glob("core/*.py"), package / "benchmarks" / "__init__.py"], root)


# -- what changed ----------------------------------------------------------------------------------


class NoBase(Exception):
    """The base commit that was named is none."""


def git(*words: str, root: pathlib.Path = ROOT) -> str | None:
    """What git says, or None if it fails or is not there."""
    try:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def base_commit(root: pathlib.Path = ROOT) -> str | None:
    """The commit to compare with; None where history does not go back to one.

    Raises:
        NoBase: `MLPERF_JAX_BASE` is set and no commit.
    """
    if named := os.environ.get("MLPERF_JAX_BASE"):
        commit = git("rev-parse", "--verify", "--quiet", f"{named}^{{commit}}", root=root)
        if commit is None:
            raise NoBase(f"MLPERF_JAX_BASE={named} is no commit of this repository")
        return commit
    head, left = (git(*words, root=root) for words in (["rev-parse", "HEAD"], MERGE_BASE))
    if left and left != head:
        return left
    return git("rev-parse", "--verify", "--quiet", f"HEAD~{RECENT}", root=root)


def changed_since(commit: str, root: pathlib.Path = ROOT) -> Files:
    """Files that differ from a commit: committed, edited, or new and not ignored."""
    edited = git("diff", "--name-only", "--no-renames", commit, root=root) or ""
    new = git("ls-files", "--others", "--exclude-standard", root=root) or ""
    return frozenset(root / name for name in f"{edited}\n{new}".split("\n") if name)


# -- the parts of the suite ------------------------------------------------------------------------

SHORT, STEPS, LONG = "short", "steps", "long"
# core-seconds of a part that no run has measured: what it may cost at most
EXPECTED = {SHORT: 10.0, STEPS: 25.0, LONG: 110.0, "": 40.0}
TURNS = 4  # commits until each part has run
LONG_TURNS = 3  # the same of the long parts, while commits change what all benchmarks share
# core-seconds: of 25 minutes on two quiet cores, and about 45 where others keep the machine busy: 3,448 took 2,002 s on a
# quiet one (2026-11-29), and 4,300 took 4,237 s on a busy one (2026-11-30).
# After a change to what is shared, what is due may take more, and the rest fills what is left of the smaller one.
BUDGET, SHARED_BUDGET = 2580.0, 4300.0
# outside of the package, what concerns all tests
HARNESS = {"pyproject.toml", "tests/open_findings.txt", "tests/rehearsal.toml"}
HARNESS |= {
    f"tests/{name}.py" for name in ("conftest", "battery", "test_battery", "test_battery_long")
}
HARNESS |= {f"{PACKAGE}/testing/{name}.py" for name in ("checks", "child", "runs")}


# what files of tests run that is no module, a file or a folder; it needs what all benchmarks share
RUN = {"tests/test_notebooks.py": "notebooks/", "tests/test_readme.py": "README.md"}


@dataclass(frozen=True)
class Part:
    """A part of the suite.

    Attributes:
        name: "long resnet", "tests/ops/test_conv.py".
        own: files that it reaches and that not all benchmarks share, those of its tests among them.
        shared: whether it reaches shared ones too.
    """

    name: str
    own: Files
    shared: bool = True

    @property
    def kind(self) -> str:
        """ "short", "steps" or "long"; "" of a file of tests."""
        first, _, benchmark = self.name.partition(" ")
        return first if benchmark else ""


def part(item: pytest.Item) -> str:
    """The name of the part that a test belongs to."""
    file = item.nodeid.partition("::")[0]
    if not item.path.name.startswith("test_battery"):
        return file
    long = item.get_closest_marker("long") is not None
    steps = "few_steps" in item.fixturenames
    return f"{LONG if long else STEPS if steps else SHORT} {benchmark_of(item)}"


def benchmark_of(item: pytest.Item) -> str:
    """The benchmark, if it is a test of the battery."""
    battery = item.path.name.startswith("test_battery")
    return item.callspec.params["name"] if battery else ""


def parts(modules: Mapping[str, str], root: pathlib.Path = ROOT) -> list[Part]:
    """All parts, by name.

    Args:
        modules: benchmark name -> full name of its module.
        root: of the repository.
    """
    common = shared(root)
    found = []
    for name, module in modules.items():
        start = file_of(module, root)
        assert start is not None, f"{module} is no module below {root}"
        own = reached([start], root, beyond=common) - common
        found += [Part(f"{kind} {name}", own) for kind in (SHORT, STEPS, LONG)]
    for path in (root / "tests").rglob("test_*.py"):
        if not path.name.startswith("test_battery"):
            reaches = reached([path], root)
            name = path.relative_to(root).as_posix()
            found.append(Part(name, reaches - common, name in RUN or bool(reaches & common)))
    return sorted(found, key=lambda part: part.name)


# -- the choice ------------------------------------------------------------------------------------

ALWAYS, CHANGED, TURN, TOUCHED, NEVER = range(5)  # how soon a part has its turn


def urgencies(
    parts: Iterable[Part],
    changed: Files | None,
    common: Files,
    turn: int = 0,
    root: pathlib.Path = ROOT,
    costs: Mapping[str, float] | None = None,
) -> dict[str, int]:
    """How soon each part has its turn, by name.

    Args:
        parts: of the suite.
        changed: files that differ from the base; None for all.
        common: the files of `shared`.
        turn: a number that the next commit has one more of.
        root: of the repository.
        costs: name -> core-seconds, as measured; turns cost about as much as each other.
    """
    parts = list(parts)
    long = [part for part in parts if part.kind == LONG]
    others = [part for part in parts if part.kind not in (LONG, SHORT)]
    numbers = dealt(long, LONG_TURNS, costs or {}) | dealt(others, TURNS, costs or {})
    for_all = concerns_all(changed, common, root)
    rooms = _rooms(changed or (), root)
    found = {}
    for part in parts:
        ours = any(PACKAGE in path.relative_to(root).parts for path in part.own)
        runs = part.name in RUN and any(
            path.is_relative_to(root / RUN[part.name]) for path in changed or ()
        )
        own_changed = changed and (part.own & changed or part.name.startswith(rooms) or runs)
        turns = LONG_TURNS if part.kind == LONG else TURNS
        waits = part.kind == LONG and not for_all
        if part.kind == SHORT or not (ours or part.shared):
            found[part.name] = ALWAYS
        elif own_changed or (for_all and not ours and not part.kind):
            found[part.name] = CHANGED
        elif (numbers[part.name] + turn) % turns == 0 and not waits:
            found[part.name] = TURN
        else:
            found[part.name] = TOUCHED if for_all and part.shared and part.kind != LONG else NEVER
    return found


def dealt(parts: Sequence[Part], turns: int, costs: Mapping[str, float]) -> dict[str, int]:
    """Whose turn it is when, by name: the costliest first, each to the turn that has least so far."""
    loads = dict.fromkeys(range(min(turns, len(parts))), 0.0)
    found = {}
    for part in sorted(parts, key=lambda part: (-cost_of(part, costs), part.name)):
        found[part.name] = least = min(loads, key=lambda turn: (loads[turn], turn))
        loads[least] += cost_of(part, costs)
    return found


def choose(
    parts: Collection[Part],
    changed: Files | None,
    common: Files,
    costs: Mapping[str, float],
    turn: int = 0,
    root: pathlib.Path = ROOT,
) -> frozenset[str]:
    """The names of the parts that run: the most urgent, as far as the time goes.

    Args:
        parts: of the suite.
        changed, common, turn, root: as `urgencies` takes them.
        costs: name -> core-seconds, as measured.
    """
    urgent = urgencies(parts, changed, common, turn, root, costs)
    most, spent, chosen = BUDGET, 0.0, set()
    if concerns_all(changed, common, root):
        most = SHARED_BUDGET
    queue = [part for part in parts if urgent[part.name] < NEVER]
    for part in sorted(queue, key=lambda part: (urgent[part.name], hashed(turn, part.name))):
        cost = cost_of(part, costs)
        room = most if urgent[part.name] <= TURN else BUDGET
        if urgent[part.name] == ALWAYS or spent + cost <= room:
            chosen.add(part.name)
            spent += cost
    return frozenset(chosen)


def _rooms(changed: Iterable[pathlib.Path], root: pathlib.Path) -> tuple[str, ...]:
    """Folders of tests whose data changed: "tests/ops/" of tests/ops/data/values.npz."""
    inside = (path.relative_to(root).parts for path in changed if path.suffix != ".py")
    return tuple({f"tests/{p[1]}/" for p in inside if p[0] == "tests" and len(p) > 2})


def hashed(turn: int, name: str) -> str:
    return hashlib.sha256(f"{turn} {name}".encode()).hexdigest()


def concerns_all(changed: Files | None, common: Files, root: pathlib.Path = ROOT) -> bool:
    """Whether shared code, data of the package, or what runs the tests changed; None is everything."""
    if changed is None or changed & common:
        return True
    inside = [path.relative_to(root) for path in changed]
    data = any(path.parts[0] == PACKAGE and path.suffix != ".py" for path in inside)
    return data or any(path.as_posix() in HARNESS for path in inside)


def cost_of(part: Part, costs: Mapping[str, float]) -> float:
    """Core-seconds; of a copy that `repeated` made those of the original."""
    return costs.get(re.sub(r"\.\d+$", "", part.name), EXPECTED[part.kind])


def measured(root: pathlib.Path = ROOT) -> dict[str, float]:
    """Core-seconds by part, as `make durations` left them."""
    file = root / "tests" / "durations.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def selected(modules: Mapping[str, str]) -> tuple[frozenset[str], str]:
    """The names of the parts that run in this checkout, and the reason.

    Args:
        modules: benchmark name -> full name of its module.

    Raises:
        NoBase: `MLPERF_JAX_BASE` is set and no commit.
    """
    base = base_commit()
    turn = int(git("rev-list", "--count", "HEAD") or 0)
    changed = changed_since(base) if base else None
    names = choose(parts(modules), changed, shared(), measured(), turn)
    return names, f"changed since {base[:10]}" if base else "no base commit known"


def summary(names: Collection[str], costs: Mapping[str, float]) -> str:
    """Parts in a few words: "long resnet, unet3d; steps resnet; 12 files of tests; 340 core-seconds"."""
    said = []
    for kind in (SHORT, STEPS, LONG):
        if those := sorted(n.partition(" ")[2] for n in names if n.startswith(f"{kind} ")):
            said.append(f"{kind} {', '.join(those)}")
    files = [name for name in names if "/" in name]
    said += [f"{len(files)} files of tests"] * bool(files)
    known = sum(costs.get(name, 0) for name in names)
    return "; ".join([*said, f"{known:.0f} core-seconds"])


def repeated(parts: Iterable[Part], common: Files, times: int) -> list[Part]:
    """The parts as if there were each benchmark so many times, with files and tests of its own.

    A file of tests is a benchmark's own if it reaches a model, a data set or the benchmark, and nothing that
    no benchmark does; what only reaches ops, metrics or optimizers serves several.
    """
    parts = list(parts)
    of_benchmarks = frozenset().union(*(part.own for part in parts if part.kind))
    found = list(parts)
    for copy in range(2, times + 1):
        for part in parts:
            ours = {path for path in part.own if "tests" not in path.parts} - common
            single = {"benchmarks", "models", "input_pipelines"} & {p.parent.name for p in ours}
            data_set = any(path.parents[1].name == "input_pipelines" for path in ours)
            if part.kind or ((single or data_set) and ours <= of_benchmarks):
                own = frozenset(path.with_suffix(f".{copy}.py") for path in part.own)
                found.append(dataclasses.replace(part, name=f"{part.name}.{copy}", own=own))
    return sorted(found, key=lambda part: part.name)


def main() -> None:
    """Prints what `make test` would run."""
    from mlperf_jax import benchmarks

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("files", nargs="*", metavar="FILE", help="changed since the base")
    parser.add_argument("--times", type=int, default=1, help="how often there is each benchmark")
    given = parser.parse_args()
    modules = {n: benchmarks.benchmark_class(n).__module__ for n in benchmarks.names()}
    everything = repeated(parts(modules), shared(), given.times)
    costs = {part.name: cost_of(part, measured()) for part in everything}
    changed = frozenset(ROOT / name for name in given.files)
    chosen = choose(everything, changed, shared(), costs)
    print("runs:", summary(chosen, costs))
    print("left out:", summary(costs.keys() - chosen, costs))


if __name__ == "__main__":
    main()
