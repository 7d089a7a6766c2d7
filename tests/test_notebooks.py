"""Every notebook runs from top to bottom, as its reader would run it, and is kept without outputs.

`make test` runs those whose code a change can have touched, with the small settings that a notebook states in its metadata and
without its cells tagged "slow"; `make test-all` runs all of them so, and once more as they stand.
"""

import json
import os
import pathlib
import re

import nbclient
import nbformat
import pytest
import selection

from mlperf_jax import benchmarks

FOLDER = pathlib.Path(__file__).parent.parent / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
ALONE = "import importlib.util"  # the first cell's first line of code
SECONDS = 180  # of a notebook on two cores


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code(name: str) -> list[str]:
    return [cell.source for cell in read(name).cells if cell.cell_type == "code"]


def small(book: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with its small settings, and without what takes long."""
    book.cells = [cell for cell in book.cells if "slow" not in cell.metadata.get("tags", ())]
    for cell in book.cells:
        if "parameters" in cell.metadata.get("tags", ()):
            cell.source = book.metadata["mlperf_jax"]["small"]
    return book


def executed(book: nbformat.NotebookNode, folder: pathlib.Path, cache: str, seconds: float) -> str:
    """Runs a notebook in a folder, on one CPU device; gives all its outputs as text."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": cache,
        "PYTHONPATH": str(selection.ROOT),
    }
    client = nbclient.NotebookClient(book, timeout=seconds, kernel_name="python3")
    with client.setup_kernel(cwd=str(folder), env=environment):
        for number, cell in enumerate(book.cells):
            client.execute_cell(cell, number)
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    assert not any("Traceback" in json.dumps(output) for output in outputs)
    return json.dumps(outputs)


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_with_small_settings(name, tmp_path, compile_cache):
    shown = executed(small(read(name)), tmp_path, compile_cache, SECONDS)
    assert "unverified" in shown or "h100" in shown


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_as_it_stands(name, tmp_path, compile_cache):
    executed(read(name), tmp_path, compile_cache, 2 * SECONDS)


def test_there_is_one_for_each_reader():
    assert len(NAMES) == 6 and [name[0] for name in NAMES] == [*"123456"]


def test_they_name_benchmarks_that_there_are():
    text = "\n".join(source for name in NAMES for source in code(name))
    named = {*re.findall(r"\b(?:run|show|plan)\(\s*\"(\w+)\"", text)} - {"resnte"}
    assert "resnet" in named and named <= {*benchmarks.names()}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_kept_without_outputs(name):
    for cell in read(name).cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


@pytest.mark.parametrize("name", NAMES)
def test_its_first_cells_install_what_is_missing(name):
    first, second, *_ = code(name)
    anywhere = re.sub(r"NEEDS = .*?(?= +#)", "NEEDS = {}", first)
    assert anywhere == re.sub(r"NEEDS = .*?(?= +#)", "NEEDS = {}", code(NAMES[0])[0])
    assert second == code(NAMES[0])[1] and second.endswith("jax.devices()")


def installed(name, monkeypatch, *, there=(), devices=(), tools=(), source=""):
    """What the first cell of a notebook asks pip for."""
    asked = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name in there else None)
    monkeypatch.setattr("pathlib.Path.exists", lambda path: str(path) in devices)
    monkeypatch.setattr("pathlib.Path.is_dir", lambda path: False)
    monkeypatch.setattr("shutil.which", lambda name: name if name in tools else None)
    monkeypatch.setattr("subprocess.run", lambda words, check: asked.append(words[-1]))
    exec(code(name)[0].replace('SOURCE = ""', f'SOURCE = "{source}"'), {})
    return asked


@pytest.mark.parametrize(
    ("devices", "tools", "extras"),
    [
        ((), (), ""),
        (("/dev/accel0",), (), "tpu"),
        (("/dev/vfio/0",), (), "tpu"),
        ((), ("nvidia-smi",), "cuda"),
    ],
)
def test_the_devices_decide_what_is_installed(devices, tools, extras, monkeypatch):
    given = dict(devices=devices, tools=tools, source="git+https://y")
    asked = installed("1_first_run", monkeypatch, **given)
    assert asked == [f"mlperf-jax[{extras}] @ git+https://y"]
    asked = installed("4_use_what_was_trained", monkeypatch, **given)
    assert asked == [f"mlperf-jax[pictures{',' * bool(extras)}{extras}] @ git+https://y"]


def test_what_is_there_is_not_installed_again(monkeypatch):
    everything = ("mlperf_jax", "PIL")
    assert installed("4_use_what_was_trained", monkeypatch, there=everything) == []
    asked = installed("4_use_what_was_trained", monkeypatch, there=("mlperf_jax",))
    assert asked == ["mlperf-jax[pictures]"]


def test_without_a_place_to_install_from_it_is_said(monkeypatch):
    with pytest.raises(SystemExit, match="open this notebook in a checkout"):
        installed("1_first_run", monkeypatch)


INTERRUPTED = """
import os, signal
from mlperf_jax.core import profiling

step = profiling.Trace.step

def interrupted(trace, number):
    if number == 20:
        os.kill(os.getpid(), signal.SIGINT)
    return step(trace, number)

profiling.Trace.step = interrupted
run("resnet", tiny=True, output="x", max_samples=2000)
"""


def test_mistakes_and_interrupts_are_sentences_in_pythons_words(tmp_path, compile_cache):
    cells = [
        "from mlperf_jax.benchmarks import run\nrun('resnet', tiny=True, output='x', resume=True)",
        INTERRUPTED,
        "profiling.Trace.step = step\nrun('resnet', tiny=True, output='x', resume=True, max_samples=2000)",
    ]
    book = nbformat.v4.new_notebook()
    tags = {"tags": ["raises-exception"]}
    book.cells = [nbformat.v4.new_code_cell(cell, metadata=tags) for cell in cells]
    executed(book, tmp_path, compile_cache, SECONDS)
    mistake, stopped, resumed = (cell.outputs for cell in book.cells)
    (told,) = mistake
    assert "holds no unfinished run: leave resume=True out" in "".join(told.traceback)
    assert len(json.dumps(told)) < 1000
    _, told = stopped
    assert told.traceback == [f"Interrupted: {told.evalue.replace('--resume', 'resume=True')}"]
    assert "after step 21; --resume takes the run up" in told.evalue
    assert "resumed after step 21" in json.dumps(resumed[0]) and len(resumed) == 2
