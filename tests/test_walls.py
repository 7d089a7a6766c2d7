"""The walls of DESIGN §2: who may import whom, and what must not be said where.

Imports are read from the syntax tree, so an import inside a function counts too.
"""

import ast
import functools
import pathlib
import re
import subprocess
from collections.abc import Callable, Collection, Iterable, Mapping, Set

import pytest

from mlperf_jax.results import rules

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "mlperf_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

# room -> the rooms it may import; `errors` and `paths` are open to all
MAY_IMPORT = {
    "errors": set(),
    "paths": set(),
    "ops": set(),
    "input_pipelines": set(),
    "pictures": set(),
    "results": {"pictures"},
    "optimizers": {"ops"},
    "models": {"ops"},
    "metrics": {"ops"},
    "decoding": {"ops"},
    "core": {"optimizers", "ops", "results"},
    "benchmarks": {
        "models",
        "decoding",
        "input_pipelines",
        "metrics",
        "optimizers",
        "ops",
        "core",
        "pictures",
        "results",
    },
    "planning": {"benchmarks", "core", "ops", "results"},
    "testing": {"benchmarks", "core", "optimizers", "results"},
    "template": {"benchmarks", "input_pipelines", "metrics", "ops", "optimizers", "testing"},
}
# they may import everything
DOORS = {"__init__", "__main__", "cli"}
NO_JAX = {"errors", "input_pipelines", "pictures", "results"}
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}


def room(path: pathlib.Path) -> str:
    """The folder below the package, or the name of a file that lies in no folder."""
    inside = path.relative_to(PACKAGE)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def name_of(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def tree(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports(path: pathlib.Path) -> frozenset[str]:
    """Full names of what a file imports: "mlperf_jax.core.mesh", "jax.numpy", …"""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name_of(path)}: write imports in full, not relative"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def our_rooms(path: pathlib.Path) -> set[str]:
    ours = {name for name in imports(path) if name.startswith("mlperf_jax.")}
    return {name.split(".")[1] for name in ours}


def offenders(files: Iterable[pathlib.Path], wrong: Callable[[pathlib.Path], object]) -> list[str]:
    """The files of which something is wrong, and what: empty where all is well."""
    found = ((name_of(path), wrong(path)) for path in files)
    return [
        f"{name}: {sorted(what) if isinstance(what, Set) else what}" for name, what in found if what
    ]


def in_room(*rooms: str) -> list[pathlib.Path]:
    return [path for path in FILES if room(path) in rooms]


def attributes(path: pathlib.Path, owner: str) -> set[str]:
    """Names taken from a module: `nnx.split` and `from flax.nnx import split` both give "split"."""
    found = {
        node.attr
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == owner
    }
    return found | {name.rpartition(".")[2] for name in imports(path) if f".{owner}." in name}


def words_of_code(path: pathlib.Path) -> set[str]:
    """Identifiers, and the words in strings that are not docstrings."""
    docstrings = {
        id(node.value)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= set() if id(node) in docstrings else set(re.findall(r"\w+", node.value))
    return found


# -- who may import whom -----------------------------------------------------------------------


def test_every_room_is_known():
    assert {room(path) for path in FILES} <= set(MAY_IMPORT) | DOORS


def test_a_room_imports_only_what_it_may():
    def wrong(path):
        return our_rooms(path) - MAY_IMPORT[room(path)] - {room(path), "errors", "paths"}

    assert offenders([path for path in FILES if room(path) not in DOORS], wrong) == []


def test_some_rooms_work_without_jax():
    def wrong(path):
        return {name for name in imports(path) if name.split(".")[0] in JAX}

    assert offenders(in_room(*NO_JAX), wrong) == []


def test_a_benchmark_knows_no_mesh_no_log_and_no_clock():
    forbidden = ("jax.sharding", "jax.jit", "mlperf_jax.results.log", "time")

    def wrong(path):
        named = attributes(path, "jax") & {"sharding", "jit", "make_mesh", "set_mesh"}
        return named | {
            n for n in imports(path) if f"{n}.".startswith(tuple(f"{f}." for f in forbidden))
        }

    assert offenders(in_room("benchmarks"), wrong) == []


def test_of_results_a_benchmark_sees_only_the_rules():
    def wrong(path):
        seen = {name for name in imports(path) if name.startswith("mlperf_jax.results")}
        doors = {
            "__init__": ("story", "listing", "result"),
            "comparing": ("comparison",),
        }  # they show
        may = (
            "rules",
            *(doors.get(path.stem, ()) if path.parent == PACKAGE / "benchmarks" else ()),
        )
        return {name for name in seen if name.split(".")[2] not in may}

    assert offenders(in_room("benchmarks"), wrong) == []


def test_what_all_benchmarks_share_names_none():
    common = {"transformer", "ssd"}  # words that mean other things too
    names = set(rules.entries()) - common
    shared = in_room("core", "ops", "optimizers")
    assert offenders(shared, lambda path: words_of_code(path) & names) == []


# -- no circles --------------------------------------------------------------------------------


def module_of(path: pathlib.Path) -> str:
    """ "mlperf_jax.core.mesh"; of a package's `__init__.py` the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def needed(path: pathlib.Path, modules: Collection[str]) -> set[str]:
    """Our modules that a file imports anywhere; what only a type checker imports is left out.

    `from package import name` needs the package where the name is no module of it. That Python runs the
    packages around a module first is no need of the file's.
    """
    unread = {
        node
        for block in ast.walk(tree(path))
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree(path)):
        if node in unread:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            found |= {name if name in modules else str(node.module) for name in names}
    return found & set(modules)


def circles(needs: Mapping[str, Collection[str]]) -> list[list[str]]:
    """What needs itself, as paths of names that end where they begin."""
    done: set[str] = set()
    found: list[list[str]] = []

    def visit(name: str, way: list[str]) -> None:
        if name in way:
            found.append([*way[way.index(name) :], name])
        elif name not in done:
            for other in sorted(needs[name]):
                visit(other, [*way, name])
            done.add(name)

    for name in sorted(needs):
        visit(name, [])
    return found


def test_no_module_needs_itself():
    """An import inside a function, for its cost, counts too: a circle is no reason for one."""
    files = {module_of(path): path for path in FILES}
    assert circles({name: needed(path, files) for name, path in files.items()}) == []


def test_circles_are_found():
    assert circles({"a": ["b", "c"], "b": ["c"], "c": []}) == []
    assert circles({"a": ["b"], "b": ["c"], "c": ["b"]}) == [["b", "c", "b"]]


# -- what may be called where ------------------------------------------------------------------


def test_modules_are_split_and_merged_in_two_files_only():
    found = offenders(FILES, lambda p: attributes(p, "nnx") & {"split", "merge", "to_pure_dict"})
    may = ("mlperf_jax/core/state.py", "mlperf_jax/ops/stack.py")
    assert [line for line in found if not line.startswith(may)] == []


def test_no_nnx_transforms():
    """Plain jax transforms only: nnx's cost 10x."""
    forbidden = {"jit", "grad", "value_and_grad", "scan", "remat", "pmap", "Optimizer", "fori_loop"}

    def wrong(path):
        more = set() if name_of(path) == "mlperf_jax/ops/stack.py" else {"vmap"}
        return attributes(path, "nnx") & (forbidden | more)

    assert offenders(FILES, wrong) == []


def test_the_backend_is_asked_for_in_ops_and_once_in_core():
    asking = {path for path in FILES if "default_backend" in attributes(path, "jax")}
    outside = {name_of(path) for path in asking if room(path) != "ops"}
    assert outside <= {"mlperf_jax/core/preflight.py"}


def test_nothing_is_unpickled_or_evaluated():
    def wrong(path):
        calls = {n.func for n in ast.walk(tree(path)) if isinstance(n, ast.Call)}
        called = {n.id for n in calls if isinstance(n, ast.Name)} & {"eval", "exec"}
        imported = {name.split(".")[0] for name in imports(path)} & {"pickle", "dill"}
        return called | imported | attributes(path, "cloudpickle") - {"register_pickle_by_value"}

    assert offenders(FILES, wrong) == []


# -- size and text -----------------------------------------------------------------------------


def test_no_file_over_500_lines():
    def wrong(path):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        return f"{lines} lines" if lines > 500 else ""

    assert offenders([*FILES, *sorted((ROOT / "tests").rglob("*.py"))], wrong) == []


def sentence(node: ast.expr) -> str:
    """The text of an expression; "…" stands for what is only known when it runs."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    parts = node.values if isinstance(node, ast.JoinedStr) else []
    return "".join(map(sentence, parts)) or "…"


def test_what_a_user_can_mend_is_said_in_one_sentence_without_a_full_stop():
    def wrong(path):
        calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call) and node.args]
        said = [sentence(c.args[0]) for c in calls if ast.unparse(c.func).endswith("UserError")]
        return {text for text in said if text.endswith(".") or re.search(r"\. [A-Z]", text)}

    assert offenders(FILES, wrong) == []


def tracked() -> list[pathlib.Path]:
    """The files of the repository, those not yet added too; ignored ones not."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in found.decode().split("\0") if name]


def test_no_text_names_a_path_of_somebodys_machine():
    pattern = re.compile(rf"(?<![\w.:/])/(?:{'|'.join(['work', 'root'])})/")
    found = []
    for path in tracked():
        if not path.is_file() or path.suffix in (".npz", ".png", ".jpg"):
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
            if pattern.search(line):
                found.append(f"{name_of(path)}:{number}: {line.strip()[:80]}")
    assert not found, "\n".join(found)
