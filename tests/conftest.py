"""Eight fake CPU devices, one compile cache for all tests, no accelerator, no network; the battery's halves."""

import contextlib
import importlib.metadata
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# XLA's threads: collectives block one each, of which a small machine has but as many as there are devices.
# Children inherit all this.
os.environ.setdefault("NPROC", "32")
# A busy machine makes one device or process wait long for another: seconds until that is an error.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_cpu_collective_call_terminate_timeout_seconds=300 --xla_cpu_collective_timeout_seconds=300"
    # for what tests compile by themselves; core/compiling.py says why
    + " --xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_DOT"
    * importlib.metadata.version("jaxlib").startswith("0.10."),
)

import costs
import hypothesis
import hypothesis.configuration
import jax
import pytest
import selection
from jax.experimental.compilation_cache import compilation_cache

from mlperf_jax import benchmarks
from mlperf_jax.benchmarks import registry
from mlperf_jax.core import brief, compiling, mesh as meshes

CACHE = pathlib.Path(__file__).parent.parent / ".jax_cache"

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update(
    "jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR", str(CACHE))
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

# the same examples every time, of which nothing is kept; what it caches lies with the programs
hypothesis.configuration.set_hypothesis_home_dir(CACHE / "hypothesis")
hypothesis.settings.register_profile(
    "same", derandomize=True, max_examples=100, database=None, deadline=None
)
hypothesis.settings.load_profile("same")


@pytest.fixture
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def compile_cache() -> str:
    """The compile cache that child processes of a test should use too."""
    return str(jax.config.jax_compilation_cache_dir)


@pytest.fixture(autouse=True)
def compiled_anew(request: pytest.FixtureRequest) -> Iterator[None]:
    """JAX's compile cache is off where tests compile for several devices without `Assembly.compile`.

    Read from it, such programs can hang (core/compiling.py says why).
    """
    if request.path.parent.name not in ("core", "models", "ops"):
        yield
        return
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def compiled_quickly() -> Iterator[None]:
    """LLVM optimizes nothing, for files that compile much and compute little, nor does it in their children.

    What XLA makes of a program, its memory, FLOPs and collectives, stays what it is.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        yield
    jax.config.update("jax_disable_most_optimizations", False)


@contextlib.contextmanager
def programs_kept() -> Iterator[None]:
    """Within it a program that is compiled again is the one that there is: toys run some hundred times."""
    programs: dict[tuple[str, ...], jax.stages.Compiled] = {}
    anew = compiling.compiled

    def compiled(lowered: jax.stages.Lowered, wanted: Mapping[str, Any]) -> jax.stages.Compiled:
        if not isinstance(lowered, jax.stages.Lowered):  # a test's own
            return anew(lowered, wanted)
        key = (lowered.as_text(), str(lowered.in_tree), str(lowered.out_tree), str(wanted))
        key += (str(meshes.available()),)
        if key not in programs:
            programs[key] = anew(lowered, wanted)
        return programs[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiling, "compiled", compiled)
        yield


@pytest.fixture(autouse=True, scope="module")
def compiled_once() -> Iterator[None]:
    """The tests of a file share their programs."""
    with programs_kept():
        yield


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test's own benchmarks, and the folders they are looked for in, end with it."""
    monkeypatch.setattr(registry, "_REGISTERED", {})
    monkeypatch.setattr(sys, "path", [*sys.path])


# -- the battery -----------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--battery",
        choices=("all", "changed"),
        default="all",
        help="all tests, or those that a change can have touched (selection.py)",
    )
    parser.addoption("--measure", metavar="FILE", help="write what each part costs (costs.py)")


CHOSEN = pytest.StashKey[frozenset[str] | None]()  # names of parts, None for all
REASON = pytest.StashKey[str]()
LEFT_OUT = pytest.StashKey[set[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Chooses the parts of the suite that run; under xdist the workers are told."""
    told = getattr(config, "workerinput", {})
    config.stash[REASON], config.stash[LEFT_OUT] = "", set()
    config.stash[CHOSEN] = None if told.get("chosen") is None else frozenset(told["chosen"])
    if file := config.getoption("--measure"):
        if not pathlib.Path(file).absolute().parent.is_dir():
            raise pytest.UsageError(f"--measure {file}: there is no such folder")
        config.pluginmanager.register(costs.Costs(file))
    if told or config.getoption("--battery") == "all":
        return
    modules = {n: benchmarks.benchmark_class(n).__module__ for n in benchmarks.names()}
    try:
        config.stash[CHOSEN], config.stash[REASON] = selection.selected(modules)
    except selection.NoBase as error:
        raise pytest.UsageError(str(error)) from None


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    chosen = node.config.stash[CHOSEN]
    node.workerinput["chosen"] = None if chosen is None else sorted(chosen)


def pytest_report_header(config: pytest.Config) -> list[str]:
    chosen = config.stash[CHOSEN]
    if chosen is None:
        return []
    return [f"{config.stash[REASON]}: {selection.summary(chosen, selection.measured())}"]


@pytest.hookimpl(tryfirst=True)  # xdist looks at the groups in its own hook of this name
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what was not chosen; keeps together what shares fixtures.

    Under xdist a benchmark's battery runs in one process, so that its tiny run is made once, and so does
    each other file; the longest come first.
    """
    chosen = config.stash[CHOSEN]
    if chosen is not None:
        left_out = [item for item in items if selection.part(item) not in chosen]
        config.stash[LEFT_OUT] |= {selection.part(item) for item in left_out}
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if selection.part(item) in chosen]
    if config.pluginmanager.has_plugin("xdist"):
        name = selection.benchmark_of
        long = {name(item) for item in items if selection.part(item).startswith(selection.LONG)}
        items.sort(key=lambda item: (not name(item), name(item) not in long))
        for item in items:
            item.add_marker(pytest.mark.xdist_group(name(item) or selection.part(item)))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[LEFT_OUT] |= set(getattr(node, "workeroutput", {}).get("left_out", ()))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = sorted(session.config.stash[LEFT_OUT])


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if left_out := config.stash[LEFT_OUT]:
        said = selection.summary(left_out, selection.measured())
        terminalreporter.write_line(f"left out: {said}; `make test-all` leaves nothing out")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Name -> the folder that holds the tiny data of the benchmark, made once.

    Weights to begin from are those of two steps, which is enough to read them; `trained=True` gives the real ones.
    """
    folders, made = [str(tmp_path_factory.mktemp("data")) for _ in range(2)], set()

    def get(name: str, trained: bool = False) -> str:
        folder, train = folders[trained], brief.train_briefly
        if (name, trained) not in made:
            with pytest.MonkeyPatch.context() as patch:
                if not trained:
                    few = lambda benchmark, folder, steps: train(benchmark, folder, min(steps, 2))  # noqa: E731
                    patch.setattr(brief, "train_briefly", few)
                benchmarks.build_data(benchmarks.get(name, tiny=True), folder)
            made.add((name, trained))
        return folder

    return get


@pytest.fixture
def data_dir(name: str, tiny_data: Callable[..., str], request: pytest.FixtureRequest) -> str:
    return tiny_data(name, trained=request.node.get_closest_marker("long") is not None)


@pytest.fixture(scope="session")
def few_steps(
    tiny_data: Callable[..., str], compile_cache: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], pathlib.Path]:
    """Name -> the folder that `runs.few_steps` left, made once."""
    made: dict[str, pathlib.Path] = {}

    def get(name: str) -> pathlib.Path:
        from mlperf_jax.testing import runs

        if name not in made:
            folder = tmp_path_factory.mktemp(f"{name}-steps")
            runs.few_steps(compile_cache, name, tiny_data(name), folder)
            made[name] = folder
        return made[name]

    return get


@pytest.fixture(scope="session")
def tiny_runs(
    tiny_data: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Any, pathlib.Path]]:
    """Name -> (result, output folder) of one undisturbed tiny run, made once."""
    made: dict[str, Any] = {}

    def get(name: str) -> Any:
        from mlperf_jax.testing import runs

        if name not in made:
            output = tmp_path_factory.mktemp(name)
            settings = runs.settings(tiny_data(name, trained=True), output)
            result = benchmarks.run(name, **settings)
            made[name] = (result or benchmarks.evaluate(output), output)  # some are scored later
        return made[name]

    return get
