"""Which benchmarks a change can have touched: the battery is whole for those and short for the rest.

A benchmark's *own* files are those of the package that its file imports, directly or not, except what
every benchmark has: the core and all that the core imports. Imports are read from the syntax tree, so one
inside a function counts too, and are followed through the packages' `__init__.py` to where a name is defined.

* The battery is whole for each benchmark with an own file that differs from the base commit, and for two
  that stand for all when a shared file does. Were it more than `MOST`, those are taken that together reach
  most of what changed; between equals a hash of commit and name decides, so that commits take turns.
* The base is `MLPERF_JAX_BASE`, else where this branch left origin/main, else (on main itself) the commit
  `RECENT` commits ago; where history does not go back that far, all counts as changed.
* `pytest --battery=all`, the default and what `make test-all` does, leaves nothing out.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import pathlib
import subprocess
from collections.abc import Collection, Iterable, Iterator, Mapping

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = "mlperf_jax"
RECENT = 10  # commits, about a day's
MOST = 4  # whole batteries that fit into 20 minutes on two cores, beside all other tests
STAND_FOR_ALL = (
    "resnet",
    "llama31_8b",
)  # images and batch norm; tokens, attention and stacked layers
# outside of the package, what the battery itself depends on
HARNESS = {"pyproject.toml"}
HARNESS |= {f"tests/{name}.py" for name in ("battery", "conftest", "test_battery_whole")}
HARNESS |= {f"{PACKAGE}/testing/{name}.py" for name in ("checks", "child", "runs")}

MERGE_BASE = ["merge-base", "HEAD", "origin/main"]

Files = frozenset[pathlib.Path]


# -- who imports what ------------------------------------------------------------------------------


def file_of(name: str, root: pathlib.Path = ROOT) -> pathlib.Path | None:
    """The file of a module or package of ours, if there is one of this name."""
    path = root.joinpath(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@functools.cache
def imported(path: pathlib.Path) -> Mapping[str, str]:
    """Local name -> full name of what a file imports of ours: {"sgd": "mlperf_jax.optimizers.sgd"}."""
    found = {}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            pairs = [(alias.asname or alias.name, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            pairs = [(a.asname or a.name, f"{node.module}.{a.name}") for a in node.names]
        else:
            continue
        found |= {here: name for here, name in pairs if name.split(".")[0] == PACKAGE}
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


def own(module: str, root: pathlib.Path = ROOT) -> Files:
    """What a benchmark needs beyond that, from the full name of its module."""
    start = file_of(module, root)
    assert start is not None, f"{module} is no module below {root}"
    return reached([start], root, beyond=shared(root))


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


# -- the choice ------------------------------------------------------------------------------------


def choose(
    own_of: Mapping[str, Files],
    changed: Files | None,
    common: Files,
    turn: str = "",
    root: pathlib.Path = ROOT,
) -> tuple[str, ...]:
    """The names whose battery is whole.

    Args:
        own_of: name -> own files.
        changed: files that differ from the base; None for all.
        common: the files of `shared`.
        turn: text that the hash takes beside the name, such as the commit.
        root: of the repository.
    """
    everything = changed is None
    changed = frozenset().union(*own_of.values()) if changed is None else changed
    left = sorted((n for n in own_of if own_of[n] & changed), key=lambda name: hashed(turn, name))
    chosen: list[str] = []
    if everything or any(concerns_all(path, common, root) for path in changed):
        chosen = [name for name in STAND_FOR_ALL if name in own_of]
    while left and len(chosen) < MOST:
        reached_already = frozenset().union(*(own_of[name] for name in chosen))
        best = max(left, key=lambda name: len((own_of[name] & changed) - reached_already))
        left.remove(best)
        chosen += [best] if best not in chosen else []
    return tuple(sorted(chosen))


def hashed(turn: str, name: str) -> str:
    return hashlib.sha256(f"{turn} {name}".encode()).hexdigest()


def concerns_all(path: pathlib.Path, common: Files, root: pathlib.Path = ROOT) -> bool:
    """Whether a changed file is shared code, data of the package, or the battery's own."""
    inside = path.relative_to(root)
    data = inside.parts[0] == PACKAGE and path.suffix != ".py"
    return path in common or data or inside.as_posix() in HARNESS


def selected(modules: Mapping[str, str]) -> tuple[tuple[str, ...], str]:
    """The names whose battery is whole in this checkout, and the reason.

    Args:
        modules: benchmark name -> full name of its module.

    Raises:
        NoBase: `MLPERF_JAX_BASE` is set and no commit.
    """
    base = base_commit()
    names = choose(
        {name: own(module) for name, module in modules.items()},
        changed_since(base) if base else None,
        shared(),
        git("rev-parse", "HEAD") or "",
    )
    return names, f"changed since {base[:10]}" if base else "no base commit known"
