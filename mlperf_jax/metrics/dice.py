"""DICE: how well predicted and true voxels of a class overlap, the mean over volumes and classes.

B volumes of an evaluation batch · N volumes of the data set · K classes, 0 the background
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

SMOOTH = 1e-6


def overlap(prediction: jax.Array, label: jax.Array, classes: int) -> jax.Array:
    """Voxels in common, predicted and true of each class above 0: int32 [3, K - 1].

    Labels of K and above mark what is not part of the volume. Whole numbers, so that the parts of a
    volume add up to the last voxel.

    >>> overlap(jnp.array([0, 1, 1, 2]), jnp.array([0, 1, 2, 255]), 3).tolist()
    [[1, 0], [2, 0], [1, 1]]
    """
    kinds = jnp.arange(1, classes)
    part = (label < classes)[..., None]
    predicted = (prediction[..., None] == kinds) & part
    true = label[..., None] == kinds
    axes = tuple(range(prediction.ndim))
    counts = [jnp.sum(x, axes, dtype=jnp.int32) for x in (predicted & true, predicted, true)]
    return jnp.stack(counts)


@dataclass(frozen=True)
class Dice:
    """Mean DICE; `predict` returns `overlap` of each volume: int32 [B, 3, K - 1].

    A volume and class count (2 both + 1e-6) / (predicted + true + 1e-6); every volume weighs the same.
    Differs: the reference takes the mean of its workers' means, which is this one only where the
    volumes divide evenly.

    Attributes:
        classes: names of the classes above 0.
        mode: see `core.protocols.Metric`.

    >>> quality = Dice(("kidney",)).result(np.array([[[1], [2], [2]], [[3], [3], [3]]]))
    >>> round(quality["mean_dice"], 6)
    0.75
    """

    classes: tuple[str, ...]
    mode: str = "inline"
    rows: ClassVar[bool] = True  # a few numbers a volume, divided on the host in float64

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        return dict.fromkeys(("mean_dice", *(f"{c}_dice" for c in self.classes)), (0, 1))

    def sums(self, outputs: jax.Array, mask: jax.Array) -> Mapping[str, jax.Array]:
        raise NotImplementedError("DICE takes rows")

    def result(self, total: Any) -> dict[str, float]:
        """`mean_dice` over volumes and classes, and `<class>_dice` over volumes, of rows [N, 3, K - 1]."""
        both, predicted, true = np.moveaxis(np.asarray(total, np.float64), 1, 0)
        by_class = ((2 * both + SMOOTH) / (predicted + true + SMOOTH)).mean(0)
        named = {f"{name}_dice": float(v) for name, v in zip(self.classes, by_class, strict=True)}
        return {"mean_dice": float(by_class.mean()), **named}
