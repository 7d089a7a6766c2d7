"""The fields of a benchmark without what trains it, so that `--help` waits for neither JAX nor NumPy.

A benchmark's fields stand beside its model, so its module imports all that it trains with. While they are read
something that can be imported, called, computed with, subclassed and decorated with takes the place of that,
as when a builder of documentation imports what it describes. Real are Python's own modules, the contract of a
benchmark, and what its fields have types and defaults from.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Iterator
from typing import Any

LIBRARIES = frozenset(
    "array_record cv2 flax grain jax jaxlib ml_dtypes nibabel numpy optax orbax pycocotools safetensors "
    "simplejpeg tensorstore tokenizers".split()
)
ROOMS = tuple(
    f"mlperf_jax.{room}."
    for room in "core.brief core.placement decoding metrics models ops optimizers pictures".split()
)
# but what fields have their defaults from
DEFAULTS = frozenset(
    f"mlperf_jax.{name}"
    for name in "models models.decoder models.decoder_config ops ops.embedding_plan".split()
)


class _Anything(types.ModuleType):
    """A module, class, function or value: whatever is done with it gives it again."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return self

    __getitem__ = __neg__ = __call__
    __add__ = __sub__ = __mul__ = __truediv__ = __or__ = __call__
    __radd__ = __rsub__ = __rmul__ = __rtruediv__ = __ror__ = __call__

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __mro_entries__(self, bases: Any) -> tuple[type, ...]:
        return ()  # a class of it has no base


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        ours = f"{fullname}.".startswith(ROOMS) and fullname not in DEFAULTS
        if not (ours or fullname.partition(".")[0] in LIBRARIES):
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Anything(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


@contextlib.contextmanager
def for_what_trains() -> Iterator[bool]:
    """Yields whether it is stood in for: not where JAX is there already. What was imported is forgotten."""
    if "jax" in sys.modules:
        yield False
        return
    before, finder = set(sys.modules), _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield True
    finally:
        sys.meta_path.remove(finder)
        for name in sys.modules.keys() - before:
            package, _, last = name.rpartition(".")
            if name.partition(".")[0] in LIBRARIES | {"mlperf_jax"}:
                del sys.modules[name]
                if package in before:  # which would give its module to `from package import last`
                    delattr(sys.modules[package], last)
