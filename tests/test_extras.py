"""Extras: each that is named exists, each optional package is in its own, and a base installation works without them."""

import ast
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
from test_walls import FILES, ROOT, imports, offenders, sentence, tree

from mlperf_jax.errors import UserError, optional

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
# what a requirement is imported as, where that is not its name
MODULES = {
    "jax[tpu]": "libtpu",
    "opencv-python-headless": "cv2",
    "orbax-checkpoint": "orbax",
    "pillow": "PIL",
}
# they come with what the base installation requires: grain, orbax-checkpoint, jax, requests; IPython is what runs a notebook
BROUGHT = {"absl", "etils", "google", "jaxlib", "scipy", "urllib3", "IPython"}


def module(requirement: str) -> str:
    """
    >>> module("orbax-checkpoint>=0.12.8"), module("array-record>=0.8"), module("jax[tpu]>=0.10.2")
    ('orbax', 'array_record', 'libtpu')
    """
    found = re.match(r"[\w.-]+(?:\[[\w,-]+\])?", requirement)
    assert found, requirement
    return MODULES.get(found[0], found[0].replace("-", "_"))


def modules(extra: str) -> set[str]:
    """Names under which the packages of an extra are imported."""
    return {module(line) for line in EXTRAS.get(extra, ())}


BASE = {module(line) for line in PROJECT["dependencies"]} | BROUGHT


# -- names -----------------------------------------------------------------------------------------


def optional_calls(path: pathlib.Path) -> list[tuple[str, str]]:
    """(top module, extra) of each module that a file takes from an extra."""
    calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    given = [node.args for node in calls if ast.unparse(node.func) == "optional"]
    return [(sentence(args[0]).partition(".")[0], sentence(args[1])) for args in given]


def test_an_optional_module_is_of_the_extra_that_is_named():
    named = {path: optional_calls(path) for path in FILES}
    assert {"graphs", "prepare", "gcs"} <= {extra for calls in named.values() for _, extra in calls}

    def wrong(path):
        return {call for call in named[path] if call[0] not in modules(call[1]) - BASE}

    assert offenders(FILES, wrong) == []


def typing_only(path: pathlib.Path) -> set[str]:
    """Top modules that only a type checker imports."""
    return {
        str(node.module).partition(".")[0]
        for block in ast.walk(tree(path))
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
    }


def test_what_is_imported_without_asking_comes_with_the_base_installation():
    def wrong(path):
        roots = {name.partition(".")[0] for name in imports(path)} - sys.stdlib_module_names
        return roots - BASE - {"mlperf_jax"} - typing_only(path)

    tests = {"testing", "template"}  # they run in a project of the user's, which has pytest
    assert offenders([path for path in FILES if not tests & set(path.parts)], wrong) == []


def test_extras_that_are_named_exist():
    def wrong(path):
        text = path.read_text(encoding="utf-8")
        named = re.findall(r"(?:mlperf[-_]jax|pip install \"\.)\[([\w,]+)\]", text)
        named += re.findall(r"\bextra `(\w+)`", text)
        return {extra for found in named for extra in found.split(",")} - set(EXTRAS)

    texts = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "pyproject.toml"]
    assert offenders([*FILES, *texts], wrong) == []


def test_all_leaves_out_only_devices_tools_and_work_on_the_package():
    (line,) = EXTRAS["all"]
    named = set(line.removeprefix("mlperf-jax[").removesuffix("]").split(","))
    assert set(EXTRAS) - named == {"all", "cuda", "tpu", "plan", "profile", "test", "dev", "docs"}


def test_a_module_that_is_there_and_one_that_is_broken(monkeypatch, tmp_path):
    assert optional("PIL.Image", "pictures", "a picture").__name__ == "PIL.Image"
    (tmp_path / "half_installed.py").write_text("import no_such_module_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        UserError, match=r"needs an extra, which cannot be loaded \(No module named"
    ):
        optional("half_installed", "pictures", "a picture")


# -- the base installation -------------------------------------------------------------------------

BLOCKING = """
import importlib, importlib.abc, os, pkgutil, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

sys.meta_path.insert(0, Blocked())
import mlperf_jax
from mlperf_jax import benchmarks
from mlperf_jax.errors import UserError
"""
IMPORTING = """
for found in pkgutil.walk_packages(mlperf_jax.__path__, "mlperf_jax."):
    if not found.name.startswith(("mlperf_jax.testing", "mlperf_jax.__main__")):
        try:
            importlib.import_module(found.name)
        except UserError as error:
            print(found.name, error)
"""
BUILDING = """
def tried(name, **how):
    data = benchmarks.get(name, **how).data()
    try:
        data.build(name, ".")
        print(name, data.counts(name))
    except UserError as error:
        print(name, error, os.path.exists(name))

tried("rgat", tiny=True)
tried("resnet")
tried("resnet", tiny=True)
tried("retinanet", tiny=True)
"""
GRAPHS = 'sampling a graph needs an extra: pip install "mlperf-jax[graphs]"'
PREPARE = 'preparing ImageNet needs an extra: pip install "mlperf-jax[prepare]"'


def said_in_base(code: str, folder: pathlib.Path) -> list[str]:
    """Lines that a program prints where nothing but the base installation can be imported."""
    blocked = sorted(set().union(*map(modules, EXTRAS)) - BASE)
    assert {"PIL", "mlperf_logging", "numba", "pyarrow", "tensorflow_datasets"} <= set(blocked)
    command = [sys.executable, "-c", BLOCKING.format(blocked=blocked) + code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_all_modules_can_be_imported_but_those_of_an_extra(tmp_path):
    inputs = "mlperf_jax.input_pipelines"
    compiled = ("loops", "rows", "sampling", "sampling_kernels")
    assert sorted(said_in_base(IMPORTING, tmp_path)) == [
        *(f"{inputs}.igbh.{name} {GRAPHS}" for name in compiled),
        f"{inputs}.imagenet.builder {PREPARE}",
    ]


def test_data_are_built_or_the_extra_is_named_before_anything_is_made(tmp_path):
    assert said_in_base(BUILDING, tmp_path) == [
        f"rgat {GRAPHS} False",
        f"resnet {PREPARE} False",
        "resnet {'train': 1437, 'validation': 360}",
        "retinanet {'train': 512, 'validation': 96}",
    ]
