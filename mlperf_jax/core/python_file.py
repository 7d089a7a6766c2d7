"""What users write in Python files of their own: named "my_file.py:name", loaded, and told apart by its code."""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import pathlib
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any

import cloudpickle

from mlperf_jax.errors import UserError, did_you_mean

PACKAGE = __name__.partition(".")[0]
OURS = pathlib.Path(__file__).resolve().parents[1]
_MOST_OBJECTS = 10_000  # that are looked at in one; some make new ones for ever


def load(text: str, what: str, example: str) -> Any:
    """The object that "my_file.py:name" names, or "package.module:name" of what is installed.

    A file runs once for every content it has, and may import what lies beside it.

    Args:
        text: a file or module, a colon, and the object's name in it.
        what: what is looked for, such as "optimizer".
        example: such a name.

    Raises:
        UserError: no such file, module or name, or the file fails: with its own error, file and line.
    """
    where, _, name = (text if ":" in text else f"{text}:").rpartition(":")
    if not name:
        raise UserError(f"say what in {where} is the {what}: write {where}:{example}")
    module = _from_file(pathlib.Path(where), what) if where.endswith(".py") else _imported(where)
    if not hasattr(module, name):
        known = [
            k for k, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__
        ]
        raise UserError(f"{where} has no {name!r}{did_you_mean(name, known) if known else ''}")
    return getattr(module, name)


def described(text: str) -> str:
    """What an option names, with the content of its file if it names one: what a run is told apart by."""
    path = pathlib.Path(text.rpartition(":")[0] or text)
    named = path.suffix == ".py" and path.is_file()
    return f"{text}\n{path.read_text(encoding='utf-8')}" if named else text


def _from_file(path: pathlib.Path, what: str) -> ModuleType:
    if not path.is_file():
        raise UserError(f"there is no file {path} to take the {what} from")
    path = path.resolve()
    content = hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()[:8]
    name = f"user_file_{path.stem}_{content}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look there
    cloudpickle.register_pickle_by_value(module)  # worker processes have no module of this name
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserError(f"{path} failed to load: {in_one_line(error, path.parent)}") from error
    return module


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise UserError(f"{name} cannot be imported: {in_one_line(error)}") from error


def in_one_line(error: BaseException, folder: pathlib.Path | None = None) -> str:
    """An error's kind and first line, and the last line of the user's own files that led to it.

    Those are the files of a folder; without one, all that belong neither to Python nor to what is installed.
    """
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    said = ": ".join([type(error).__name__, *text.strip().splitlines()[:1]])
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError):
        frames.append((error.filename or "", error.lineno))
    own = [
        (file, line)
        for file, line in frames
        if (pathlib.Path(file).parent == folder if folder else _is_users(file))
    ]
    return f"{said} ({own[-1][0]}, line {own[-1][1]})" if own else said


def _is_users(file: str) -> bool:
    """Whether code stands in a file, or notebook cell, that belongs to no installation."""
    if file.startswith("<") and not file.startswith("<ipython"):
        return False
    path = pathlib.Path(file).resolve()
    installed = {*map(sysconfig.get_path, ("stdlib", "purelib", "platlib"))}
    places = (OURS, *(pathlib.Path(each).resolve() for each in installed))
    return not any(path.is_relative_to(each) for each in places)


def objects_inside(value: Any) -> Iterator[Any]:
    """An object and all that it is made of: attributes, items, what functions have closed over; breadth first."""
    seen: dict[int, Any] = {}  # they stay, so that no identity is used twice
    waiting = collections.deque([value])
    while waiting and len(seen) < _MOST_OBJECTS:
        each = waiting.popleft()
        if id(each) in seen or isinstance(each, str | bytes | int | float | type | ModuleType):
            continue
        seen[id(each)] = each
        yield each
        if isinstance(each, FunctionType):
            waiting.extend((*closed_over(each).values(), *(each.__defaults__ or ())))
        elif isinstance(each, tuple | list):
            waiting.extend(each)
        elif isinstance(each, Mapping):
            waiting.extend(each.values())
        elif isinstance(each, MethodType):
            waiting.extend((each.__func__, each.__self__))
        elif isinstance(each, functools.partial):
            waiting.extend((each.func, *each.args, *each.keywords.values()))
        else:
            waiting.extend(_attributes(each).values())
            waiting.extend(getattr(type(each), name, None) for name in ("init", "update"))


def functions_inside(value: Any) -> Iterator[FunctionType]:
    """All functions that an object is made of."""
    return (each for each in objects_inside(value) if isinstance(each, FunctionType))


def contents(value: Any) -> list[str]:
    """The plain values that an object is made of, as texts in one order: what changes if it keeps a count."""
    found = []
    for each in objects_inside(value):
        if isinstance(each, FunctionType):
            held = closed_over(each)
        elif isinstance(each, Mapping):
            held = dict(each)
        elif isinstance(each, tuple | list):
            held = dict(enumerate(each))
        elif type(each).__module__.partition(".")[0] in ("jax", "jaxlib", "numpy", "functools"):
            continue  # what these remember of themselves changes nothing
        else:
            held = _attributes(each)
        plain = {k: v for k, v in held.items() if isinstance(v, bool | int | float | str)}
        found += [f"{type(each).__qualname__} {plain}"] if plain else []
    return found


def _attributes(thing: Any) -> dict[str, Any]:
    try:
        return dict(object.__getattribute__(thing, "__dict__"))
    except AttributeError:
        return {}


def closed_over(function: FunctionType) -> dict[str, Any]:
    """What a function takes from those around it, by name."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # not filled yet
            found[name] = cell.cell_contents
    return found


# -- where a class is from ---------------------------------------------------------------------


def place(cls: type) -> str | None:
    """What `load` takes to give a user's class again; None of a class of ours and of a notebook's."""
    module = sys.modules.get(cls.__module__)
    file = str(getattr(module, "__file__", None))  # "<stdin>" for one
    if is_ours(cls) or module is None or not file.endswith(".py") or "." in cls.__qualname__:
        return None
    inside_a_package = "." in module.__name__  # its relative imports work only there
    return f"{module.__name__ if inside_a_package else pathlib.Path(file).resolve()}:{cls.__name__}"


def code(cls: type) -> str:
    """Eight hex digits of the files that a user's class and those it inherits from stand in.

    A class of a notebook, which is in no file, is told apart by its methods.
    """
    digest = hashlib.sha256()
    for base in cls.__mro__:
        if not is_ours(base) and base.__module__.partition(".")[0] not in sys.stdlib_module_names:
            digest.update("".join(_sources(base)).encode())
    return digest.hexdigest()[:8]


def is_ours(cls: type) -> bool:
    """Whether a class is of this library."""
    return cls.__module__.partition(".")[0] == PACKAGE


def _sources(cls: type) -> Iterator[str]:
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    if file is not None and pathlib.Path(file).is_file():
        yield pathlib.Path(file).read_text(encoding="utf-8", errors="replace")
        return
    for name, member in vars(cls).items():
        if inspect.isfunction(member):
            with contextlib.suppress(OSError):  # those that the dataclass made stand nowhere
                yield inspect.getsource(member)
        elif isinstance(member, bool | int | float | str | tuple):
            yield f"{name} = {member!r}\n"
