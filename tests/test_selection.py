"""The battery is whole for the benchmarks whose imports changed."""

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


def test_own_files_are_followed_past_packages_and_into_functions(root: pathlib.Path) -> None:
    one = inside(selection.own("mlperf_jax.benchmarks.one", root), root)
    assert one == {"benchmarks/one.py", "metrics/mean.py", "ops/norm.py", "ops/sums.py"}
    two = inside(selection.own("mlperf_jax.benchmarks.two", root), root)
    assert two == {"benchmarks/two.py", "metrics/area.py", "ops/lookup.py"}


def test_shared_files_are_the_core_and_what_it_imports(root: pathlib.Path) -> None:
    shared = inside(selection.shared(root), root)
    assert shared == {"core/__init__.py", "core/loop.py", "ops/shard.py", "benchmarks/__init__.py"}


def test_a_package_used_as_a_whole_counts_as_a_whole(root: pathlib.Path) -> None:
    file = root / "mlperf_jax" / "benchmarks" / "one.py"
    file.write_text("from mlperf_jax import metrics\nfound = getattr(metrics, 'Me' + 'an')")
    selection.imported.cache_clear()
    own = inside(selection.own("mlperf_jax.benchmarks.one", root), root)
    assert {"metrics/mean.py", "metrics/area.py", "ops/lookup.py"} <= own


def known(root: pathlib.Path, **more: str) -> dict[str, selection.Files]:
    """The own files of resnet, which is `one`, of bert, which is `two`, and of others as said."""
    modules = {"resnet": "one", "bert": "two", **more}
    return {n: selection.own(f"mlperf_jax.benchmarks.{m}", root) for n, m in modules.items()}


@pytest.mark.parametrize(
    ("changed", "whole"),
    [
        ("", ()),
        ("mlperf_jax/ops/sums.py", ("resnet",)),
        ("mlperf_jax/metrics/area.py", ("bert",)),
        ("mlperf_jax/cli/__init__.py", ()),
        ("README.md tests/ops/test_norm.py", ()),
        ("mlperf_jax/core/loop.py", ("resnet",)),  # it stands for all
        ("mlperf_jax/core/loop.py mlperf_jax/ops/lookup.py", ("bert", "resnet")),
        ("mlperf_jax/results/data/rules.toml", ("resnet",)),
        ("pyproject.toml", ("resnet",)),
        ("tests/test_battery_whole.py", ("resnet",)),
    ],
)
def test_what_a_change_selects(root: pathlib.Path, changed: str, whole: tuple[str, ...]) -> None:
    files = frozenset(root / name for name in changed.split())
    assert selection.choose(known(root), files, selection.shared(root), "", root) == whole


OTHERS = {f"other{number}": "one" for number in range(9)}


def test_no_more_than_fit_are_selected_and_they_reach_all_that_changed(root: pathlib.Path) -> None:
    changed = frozenset(root / "mlperf_jax" / name for name in ("ops/sums.py", "metrics/area.py"))
    turns = set()
    for turn in "abcdefgh":
        own = known(root, **OTHERS)
        whole = selection.choose(own, changed, selection.shared(root), turn, root)
        assert len(whole) == selection.MOST
        assert "bert" in whole, "no other reaches metrics/area.py"
        turns.add(whole)
    assert len(turns) > 1, "commits take turns"


def test_without_a_base_all_counts_as_changed(root: pathlib.Path) -> None:
    own = known(root, **OTHERS)
    whole = selection.choose(own, None, selection.shared(root), "", root)
    assert len(whole) == selection.MOST
    assert {"resnet", "bert"} <= set(whole)


def test_our_benchmarks_reach_their_own_models_and_not_the_core() -> None:
    own = {}
    for name in benchmarks.names():
        files = selection.own(benchmarks.benchmark_class(name).__module__)
        own[name] = {path.relative_to(selection.ROOT).as_posix() for path in files}
        assert not {file for file in own[name] if file.startswith("mlperf_jax/core/")}
        assert any(file.startswith("mlperf_jax/models/") for file in own[name])
    assert {f"mlperf_jax/{f}.py" for f in ("models/resnet", "optimizers/lars")} <= own["resnet"]
    assert "mlperf_jax/models/decoder.py" not in own["resnet"]
    assert set(selection.STAND_FOR_ALL) <= set(benchmarks.names())


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
