"""Objects of users' files: what is loaded, what is said where that fails, and what tells two classes apart."""

import dataclasses
import sys
import types

import pytest

from mlperf_jax.core import python_file
from mlperf_jax.errors import UserError


@pytest.fixture
def write(tmp_path, monkeypatch):
    """(file name, text) -> its path; what is loaded of it is forgotten afterwards."""
    monkeypatch.setattr(sys, "path", [*sys.path])

    def to(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    yield to
    for key, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[key]


def load(text):
    return python_file.load(str(text), "benchmark", "Wine")


def test_a_file_runs_once_for_each_content(write):
    path = write("mine.py", "made = []\nmade.append(1)")
    first = load(f"{path}:made")
    assert load(f"{path}:made") is first == [1]
    write("mine.py", "made = [2]")
    assert load(f"{path}:made") == [2]


def test_what_lies_beside_a_file_can_be_imported(write):
    write("beside_it.py", "value = 3")
    path = write(
        "mine.py",
        "from beside_it import value\ndef late():\n    import beside_it\n    return beside_it.value",
    )
    assert load(f"{path}:value") == load(f"{path}:late")() == 3


def test_dataclasses_find_their_own_module(write):
    path = write(
        "mine.py",
        "from __future__ import annotations\nimport dataclasses, typing\n"
        "@dataclasses.dataclass\nclass Wine:\n    kind: typing.ClassVar[int] = 1\n    size: int = 2",
    )
    assert [field.name for field in dataclasses.fields(load(f"{path}:Wine"))] == ["size"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nowhere.py:Wine", "there is no file nowhere.py to take the benchmark from"),
        ("{mine}", "say what in {mine} is the benchmark: write {mine}:Wine"),
        ("{mine}:", "write {mine}:Wine"),
        ("{mine}:Wnie", "mine.py has no 'Wnie': did you mean 'Wine'?"),
        ("{empty}:Wine", "empty.py has no 'Wine'"),
        ("{raises}:Wine", "failed to load: ZeroDivisionError: division by zero ({raises}, line 3)"),
        ("{deep}:Wine", "failed to load: ZeroDivisionError: division by zero ({raises}, line 3)"),
        ("{syntax}:Wine", "SyntaxError: invalid syntax ({syntax}, line 2)"),
        ("{exits}:Wine", "failed to load: SystemExit: 3 ({exits}, line 2)"),
        ("{lines}:Wine", "failed to load: ValueError: one ({lines}, line 1)"),
        (
            "no_such_package.x:Wine",
            "no_such_package.x cannot be imported: ModuleNotFoundError: No module named 'no_such_package'",
        ),
    ],
)
def test_refused_in_one_line(write, text, words):
    files = {
        "mine": "class Wine: pass",
        "empty": "",
        "raises": "# a file\n\n1 / 0",
        "deep": "\nimport raises",
        "syntax": "x = 1\nx = = 2",
        "exits": "import sys\nsys.exit(3)",
        "lines": "raise ValueError('one\\ntwo')",
    }
    paths = {name: write(f"{name}.py", content) for name, content in files.items()}
    with pytest.raises(UserError) as told:
        load(text.format(**paths))
    assert words.format(**paths) in str(told.value)
    assert "\n" not in str(told.value)


def test_a_file_that_failed_is_read_again(write):
    path = write("mine.py", "import late_to_come")
    with pytest.raises(UserError, match="late_to_come"):
        load(f"{path}:Wine")
    write("late_to_come.py", "")
    write("mine.py", "import late_to_come\nclass Wine: pass")
    assert load(f"{path}:Wine").__name__ == "Wine"


# -- where a class is from ---------------------------------------------------------------------------


def test_a_place_gives_the_class_again(write):
    path = write("mine.py", "class Wine:\n    class Inner: pass\n    size = 2")
    cls = load(f"{path}:Wine")
    assert python_file.place(cls) == f"{path}:Wine"
    assert load(python_file.place(cls)) is cls
    assert python_file.place(cls.Inner) is None
    cls.__module__ = "read_from_a_pipe"
    sys.modules[cls.__module__] = types.SimpleNamespace(__name__=cls.__module__, __file__="<stdin>")
    assert python_file.place(cls) is None
    del sys.modules[cls.__module__]


def test_a_class_of_a_package_is_named_by_its_module(write, tmp_path):
    write("our_group/__init__.py", "")
    write("our_group/base.py", "class Base: pass")
    write("our_group/mine.py", "from .base import Base\nclass Wine(Base): pass")
    sys.path.append(str(tmp_path))
    cls = load("our_group.mine:Wine")
    assert python_file.place(cls) == "our_group.mine:Wine"
    before = python_file.code(cls)
    write("our_group/base.py", "class Base: changed = True")
    assert python_file.code(cls) != before


def test_code_tells_files_apart(write):
    one = load(f"{write('one.py', 'class Wine: size = 1')}:Wine")
    two = load(f"{write('two.py', 'class Wine: size = 2')}:Wine")
    same = load(f"{write('same.py', 'class Wine: size = 1')}:Wine")
    assert python_file.code(one) == python_file.code(same) != python_file.code(two)
    assert len(python_file.code(one)) == 8


def test_a_class_of_no_file_is_told_apart_by_its_methods(monkeypatch):
    """As in a notebook, whose `__main__` has no file."""

    def of(size, method):
        cls = type("Wine", (), {"size": size, "loss": method, "__module__": "no_such_module"})
        return python_file.code(cls)

    def one(self):
        return 1

    def two(self):
        return 2

    assert python_file.place(type("Wine", (), {"__module__": "no_such_module"})) is None
    assert of(1, one) == of(1, one)
    assert len({of(1, one), of(2, one), of(1, two)}) == 3


def test_classes_of_this_library_are_ours():
    from mlperf_jax.benchmarks.resnet import ResNet50

    assert python_file.is_ours(ResNet50)
    assert python_file.place(ResNet50) is None
    assert not python_file.is_ours(pytest.FixtureRequest)
