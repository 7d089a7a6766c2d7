"""Weights of other libraries: which names and shapes do not fit, and torch's arrays in our layout."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mlperf_jax.errors import UserError


class Leaf(NamedTuple):
    """One array: our path, torch's name, and its shape there."""

    path: str
    name: str
    shape: tuple[int, ...]


def fitted(
    tensors: Mapping[str, np.ndarray], leaves: Collection[Leaf], wanted: str
) -> dict[str, np.ndarray]:
    """A torchvision state dict by our paths: kernels from OIHW to HWIO, dense ones swapped.

    Args:
      tensors: by torchvision's names; `num_batches_tracked` is ignored.
      leaves: all arrays of the network.
      wanted: what the network is called.

    Raises:
      UserError: names what is missing, unexpected or of the wrong shape.
    """
    shapes = {leaf.name: leaf.shape for leaf in leaves}
    given = {name: x for name, x in tensors.items() if not name.endswith("num_batches_tracked")}
    if faults := misfits(given, shapes):
        raise UserError(
            f"torchvision weights do not fit a {wanted}: {some(faults, 6, '; ')}; give the state dict of "
            "that network"
        )
    return {leaf.path: transposed(np.asarray(tensors[leaf.name])) for leaf in leaves}


def transposed(array: np.ndarray) -> np.ndarray:
    """Torch's kernels OI… as …IO, vectors as they are."""
    order = (*range(2, array.ndim), 1, 0) if array.ndim > 1 else None
    return np.ascontiguousarray(array.transpose(order))


def misfits(given: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What is missing, what is unexpected, and what has another shape."""
    return [
        *(f"{name} is missing" for name in sorted(wanted.keys() - given.keys())),
        *(f"{name} is unexpected" for name in sorted(given.keys() - wanted.keys())),
        *(
            f"{name} has shape {tuple(given[name].shape)}, not {shape}"
            for name, shape in wanted.items()
            if name in given and tuple(given[name].shape) != shape
        ),
    ]


def some(items: Sequence[str], most: int, between: str = ", ") -> str:
    """The first of them, and how many there are besides.

    >>> some(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    rest = len(items) - most
    return between.join(items[:most]) + f"{between.strip(', ')} and {rest} more" * (rest > 0)
