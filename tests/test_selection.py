"""What a change can have touched runs, and what has its turn, as far as the time goes."""

import pathlib
import subprocess

import pytest
import selection

from mlperf_jax import benchmarks

# a package like ours: `one` and `two` are benchmarks
TREE = {
    "core/__init__.py": "",
    "core/loop.py": "from mlperf_jax.ops.shard import shard",
    "ops/__init__.py": "",
    "ops/shard.py": "",
    "ops/norm.py": "def norm():\n    from mlperf_jax.ops import sums\n    return sums",
    "ops/sums.py": "",
    "ops/lookup.py": "",
    "metrics/__init__.py": "from mlperf_jax.metrics.mean import Mean\n"
    "from mlperf_jax.metrics.area import Area as Auc",
    "metrics/mean.py": "",
    "metrics/area.py": "import mlperf_jax.ops.lookup",
    "benchmarks/__init__.py": "from mlperf_jax.core import loop",
    "benchmarks/one.py": "from mlperf_jax import metrics\nfrom mlperf_jax.ops.norm import norm\n"
    "metric = metrics.Mean()",
    "benchmarks/two.py": "from mlperf_jax.core import loop\nfrom mlperf_jax.metrics import Auc",
    "cli/__init__.py": "from mlperf_jax import benchmarks",
}


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    for name, text in TREE.items():
        path = tmp_path / "mlperf_jax" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "mlperf_jax" / "__init__.py").write_text("")
    return tmp_path


def inside(files: selection.Files, root: pathlib.Path) -> set[str]:
    return {path.relative_to(root / "mlperf_jax").as_posix() for path in files}


def own(root: pathlib.Path, module: str) -> set[str]:
    """What a benchmark reaches beyond what is shared."""
    (part, *_) = selection.parts({"it": f"mlperf_jax.benchmarks.{module}"}, root)
    return inside(part.own, root)


def test_own_files_are_followed_past_packages_and_into_functions(root: pathlib.Path) -> None:
    one = own(root, "one")
    assert one == {"benchmarks/one.py", "metrics/mean.py", "ops/norm.py", "ops/sums.py"}
    assert own(root, "two") == {"benchmarks/two.py", "metrics/area.py", "ops/lookup.py"}


def test_shared_files_are_the_core_and_what_it_imports(root: pathlib.Path) -> None:
    shared = inside(selection.shared(root), root)
    assert shared == {"core/__init__.py", "core/loop.py", "ops/shard.py", "benchmarks/__init__.py"}


def test_a_package_used_as_a_whole_counts_as_a_whole(root: pathlib.Path) -> None:
    file = root / "mlperf_jax" / "benchmarks" / "one.py"
    file.write_text("from mlperf_jax import metrics\nfound = getattr(metrics, 'Me' + 'an')")
    selection.imported.cache_clear()
    assert {"metrics/mean.py", "metrics/area.py", "ops/lookup.py"} <= own(root, "one")


# -- the choice ------------------------------------------------------------------------------------

MODULES = {"resnet": "mlperf_jax.benchmarks.one", "bert": "mlperf_jax.benchmarks.two"}
TESTS = {
    "tests/core/test_loop.py": "from mlperf_jax.core import loop",
    "tests/ops/test_norm.py": "import toy\nfrom mlperf_jax.ops import norm",
    "tests/ops/test_sums.py": "from mlperf_jax.ops import sums",
    "tests/metrics/test_area.py": "from mlperf_jax.metrics import area",
    "tests/test_text.py": "import re",
    "tests/toy.py": "",
}


@pytest.fixture
def tested(root: pathlib.Path) -> pathlib.Path:
    for name, text in TESTS.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def choose(
    root: pathlib.Path, changed: str | None, turn: int = 0, modules: dict[str, str] = MODULES
) -> set[str]:
    """What runs of a suite whose `tests/test_text.py` and short parts always do, without these."""
    parts = selection.parts(modules, root)
    files = None if changed is None else frozenset(root / name for name in changed.split())
    found = set(selection.choose(parts, files, selection.shared(root), {}, turn, root))
    always = {"tests/test_text.py", *(f"short {name}" for name in modules)}
    assert always <= found
    return found - always


@pytest.fixture
def no_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "TURNS", 10**9)
    monkeypatch.setattr(selection, "LONG_TURNS", 10**9)


FILES_OF_PACKAGE = {name for name in TESTS if "test_" in name} - {"tests/test_text.py"}


def test_what_is_run_and_no_module_selects_its_tests(
    tested: pathlib.Path, no_turns: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "RUN", {"tests/ops/test_norm.py": "notebooks/"})
    assert choose(tested, "notebooks/1.ipynb", turn=10**6) == {"tests/ops/test_norm.py"}
    assert choose(tested, "other/1.ipynb", turn=10**6) == set()


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ("README.md", set()),
        ("mlperf_jax/cli/__init__.py", set()),
        (
            "mlperf_jax/ops/sums.py",
            {"steps resnet", "long resnet", "tests/ops/test_sums.py", "tests/ops/test_norm.py"},
        ),
        ("mlperf_jax/metrics/area.py", {"steps bert", "long bert", "tests/metrics/test_area.py"}),
        ("mlperf_jax/benchmarks/two.py", {"steps bert", "long bert"}),
        ("mlperf_jax/core/loop.py", {"steps bert", "steps resnet", "tests/core/test_loop.py"}),
        ("tests/ops/test_sums.py", {"tests/ops/test_sums.py"}),
        ("tests/toy.py", {"tests/ops/test_norm.py"}),
        ("tests/ops/data/values.npz", {"tests/ops/test_norm.py", "tests/ops/test_sums.py"}),
    ],
)
def test_what_a_change_selects(
    tested: pathlib.Path, no_turns: None, changed: str, wanted: set[str]
) -> None:
    # of the parts that reach shared files, the first has turn 0 for ever
    found = choose(tested, changed, turn=10**6)
    assert found == wanted


@pytest.mark.parametrize(
    "changed",
    [
        None,
        "mlperf_jax/results/data/rules.toml",
        "pyproject.toml",
        "tests/conftest.py",
        "tests/test_battery_long.py",
        "tests/rehearsal.toml",
    ],
)
def test_what_concerns_all_touches_all_but_long_parts(
    tested: pathlib.Path, no_turns: None, changed: str | None
) -> None:
    found = choose(tested, changed, turn=10**6)
    assert {"steps bert", "steps resnet", "tests/core/test_loop.py"} <= found
    assert not {name for name in found if name.startswith("long")}


def test_parts_take_turns(tested: pathlib.Path) -> None:
    """Four commits in a row run all but the long parts, each something else."""
    runs = [choose(tested, "README.md", turn) for turn in range(selection.TURNS)]
    assert set().union(*runs) == {"steps bert", "steps resnet", *FILES_OF_PACKAGE}
    assert sum(map(len, runs)) == len(set().union(*runs))


def test_long_parts_take_turns_while_shared_files_change(tested: pathlib.Path) -> None:
    modules = {f"name{number}": MODULES["resnet"] for number in range(6)}
    runs = [choose(tested, "mlperf_jax/core/loop.py", turn, modules) for turn in range(3)]
    long = [{name for name in run if name.startswith("long")} for run in runs]
    assert [len(each) for each in long] == [2, 2, 2]
    assert len(set().union(*long)) == 6


def test_no_more_is_chosen_than_there_is_time_for(
    tested: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What always runs does so all the same, and what is touched comes before what has its turn."""
    modules = MODULES | {f"name{number}": MODULES["bert"] for number in range(9)}
    monkeypatch.setattr(
        selection, "BUDGET", 11 * 10 + 40 + 110 + 25 + 80
    )  # short, text, resnet, two files
    found = choose(tested, "mlperf_jax/ops/sums.py", 1, modules)
    assert found == {
        "steps resnet",
        "long resnet",
        "tests/ops/test_sums.py",
        "tests/ops/test_norm.py",
    }


def test_our_benchmarks_reach_their_own_models_and_not_the_core() -> None:
    modules = {n: benchmarks.benchmark_class(n).__module__ for n in benchmarks.names()}
    own = {
        part.name.partition(" ")[2]: {p.relative_to(selection.ROOT).as_posix() for p in part.own}
        for part in selection.parts(modules)
        if part.kind == selection.LONG
    }
    assert own.keys() == set(benchmarks.names())
    for files in own.values():
        assert not {file for file in files if file.startswith("mlperf_jax/core/")}
        assert any(file.startswith("mlperf_jax/models/") for file in files)
    assert {f"mlperf_jax/{f}.py" for f in ("models/resnet", "optimizers/lars")} <= own["resnet"]
    assert "mlperf_jax/models/decoder.py" not in own["resnet"]


def test_four_times_as_many_benchmarks_would_fit() -> None:
    """What a change to any two of them or to the core makes due, by the durations that were measured."""
    modules = {n: benchmarks.benchmark_class(n).__module__ for n in benchmarks.names()}
    costs, common = selection.measured(), selection.shared()
    parts = selection.repeated(selection.parts(modules), common, 4)
    long = [part for part in parts if part.kind == selection.LONG]
    assert len(long) == 4 * len(modules)
    costly = sorted(modules, key=lambda name: -costs.get(f"long {name}", 0))
    pair = frozenset(selection.file_of(modules[name]) for name in costly[:2])
    core = frozenset({selection.ROOT / "mlperf_jax/core/loop.py"})
    for changed, budget in ((pair, selection.BUDGET), (core, selection.SHARED_BUDGET)):
        for turn in range(12):
            urgent = selection.urgencies(parts, changed, common, turn, costs=costs)
            due = [part for part in parts if urgent[part.name] <= selection.TURN]
            assert sum(selection.cost_of(part, costs) for part in due) <= budget


# -- git -------------------------------------------------------------------------------------------


def git(root: pathlib.Path, *words: str) -> str:
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    command = ["git", *who, *words]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def repository(root: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.delenv("MLPERF_JAX_BASE", raising=False)
    git(root, "init", "-q", "-b", "main")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "all")
    return root


def test_changes_are_committed_edited_or_new(repository: pathlib.Path) -> None:
    base = git(repository, "rev-parse", "HEAD").strip()
    assert selection.changed_since(base, repository) == frozenset()
    (repository / "mlperf_jax/ops/norm.py").write_text("committed = 1")
    git(repository, "commit", "-q", "-a", "-m", "norm")
    git(repository, "mv", "mlperf_jax/ops/sums.py", "mlperf_jax/ops/totals.py")
    (repository / "mlperf_jax/ops/new.py").write_text("")
    found = inside(selection.changed_since(base, repository), repository)
    assert found == {f"ops/{name}.py" for name in ("norm", "sums", "totals", "new")}


def test_base_is_what_is_named_or_where_the_branch_left_main(
    repository: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = git(repository, "rev-parse", "HEAD").strip()
    git(repository, "update-ref", "refs/remotes/origin/main", "HEAD")
    git(repository, "commit", "-q", "--allow-empty", "-m", "more")
    assert selection.base_commit(repository) == first
    monkeypatch.setenv("MLPERF_JAX_BASE", "HEAD")
    assert selection.base_commit(repository) not in (first, None)
    monkeypatch.setenv("MLPERF_JAX_BASE", "nothing")
    with pytest.raises(selection.NoBase, match="MLPERF_JAX_BASE=nothing is no commit"):
        selection.base_commit(repository)


def test_base_of_main_is_some_commits_ago(
    repository: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "RECENT", 2)
    first = git(repository, "rev-parse", "HEAD").strip()
    git(repository, "commit", "-q", "--allow-empty", "-m", "more")
    assert selection.base_commit(repository) is None, "there is no origin/main, and no such commit"
    git(repository, "commit", "-q", "--allow-empty", "-m", "more")
    assert selection.base_commit(repository) == first
    git(repository, "update-ref", "refs/remotes/origin/main", "HEAD")
    assert selection.base_commit(repository) == first


def test_without_git_no_base_is_known(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLPERF_JAX_BASE", raising=False)
    assert selection.base_commit(tmp_path) is None
