"""What tests of models share: a module taken apart without arrays, and an importer's readers all read."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx
from flax.traverse_util import unflatten_dict

from mlperf_jax.core import state as states


def abstract(make: Callable[[], nnx.Module]) -> tuple[Any, Any]:
    """The definition of the module that `make` makes, and the shapes of its parameters; nothing is allocated."""
    found = []

    def parts() -> Any:
        graphdef, state = states.split(make())
        found.append(graphdef)
        return state["params"]

    shapes = jax.eval_shape(parts)
    return found[0], shapes


def whole(readers: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """The arrays that readers give, all of each, as our nested dict."""
    read = {path: reader((slice(None),) * len(reader.shape)) for path, reader in readers.items()}
    return unflatten_dict({path: x.astype(dtype) for path, x in read.items()}, sep="/")
