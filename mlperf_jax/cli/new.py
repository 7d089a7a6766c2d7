"""The command that begins a benchmark of one's own: new."""

from __future__ import annotations

import importlib.resources
import importlib.util
import keyword
import pathlib
import re
from collections.abc import Sequence

from mlperf_jax.cli import options
from mlperf_jax.cli.options import PROG, Option
from mlperf_jax.errors import UserError


def begin(about: str, words: Sequence[str]) -> int:
    """Writes NAME.py and test_NAME.py into the working directory, and says what to do with them."""
    name = Option("name", help="a name for it, such as wine")
    about = f"{about}: NAME.py and test_NAME.py, here"
    given = options.parse("new", about, words, [name])["name"]
    file, test = write(given, pathlib.Path())
    place = f"{file}:{class_name(given)}"
    print(
        f"{file} and {test} are written: two layers on handwritten digits. Try them, then change them:"
    )
    print(f"  {PROG} run {place} --tiny")
    print(f"  {PROG} run {place}")
    print(f"  python -m pytest {test}")
    return 0


def write(name: str, folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """The two files, written.

    Raises:
        UserError: the name cannot be that of a module, a benchmark or a module has it, one of the files is
            there, or the folder cannot be written.
    """
    from mlperf_jax.results import rules

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise UserError(f"{name!r} names no module: take small letters, digits and _, such as wine")
    if name in rules.entries():
        raise UserError(f"{name!r} is an official benchmark: take another name")
    files = folder / f"{name}.py", folder / f"test_{name}.py"
    for file in files:
        if file.exists():
            raise UserError(f"{file} is there and is not overwritten: take another name or folder")
    if importlib.util.find_spec(name):
        raise UserError(f"{name!r} is a module that Python has already: take another name")
    template = importlib.resources.files("mlperf_jax") / "template"
    for file, source in zip(files, ("my_benchmark.py", "test_my_benchmark.py"), strict=True):
        text = (template / source).read_text(encoding="utf-8")
        text = text.replace("my_benchmark", name).replace("MyBenchmark", class_name(name))
        try:
            with file.open("x", encoding="utf-8") as out:
                out.write(text)
        except OSError as error:
            raise UserError(f"cannot write {file}: {error.strerror}") from error
    return files


def class_name(name: str) -> str:
    """ "my_digits" -> "MyDigits"."""
    return "".join(word.capitalize() for word in name.split("_"))
