"""The fields of a benchmark without the libraries that train it, so that `--help` need not wait for JAX.

A benchmark's fields stand beside its model, so its module imports JAX. While they are read something that
can be imported, called, subclassed and decorated with takes the place of such libraries, as when a builder of
documentation imports what it describes.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Iterator
from typing import Any

LIBRARIES = frozenset({"flax", "grain", "jax", "jaxlib", "optax", "orbax"})


class _Anything(types.ModuleType):
    """A module, class, function or value: whatever is done with it gives it again."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return self

    __getitem__ = __or__ = __ror__ = __call__

    def __mro_entries__(self, bases: Any) -> tuple[type, ...]:
        return ()  # a class of it has no base


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname.partition(".")[0] in LIBRARIES:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Anything(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


@contextlib.contextmanager
def for_libraries() -> Iterator[None]:
    """Libraries that train are stood in for, unless JAX is there already; what was imported is forgotten."""
    if "jax" in sys.modules:
        yield
        return
    before, finder = set(sys.modules), _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in sys.modules.keys() - before:
            package, _, last = name.rpartition(".")
            if name.partition(".")[0] in LIBRARIES | {"mlperf_jax"}:
                del sys.modules[name]
                if package in before:  # which would give its module to `from package import last`
                    delattr(sys.modules[package], last)
