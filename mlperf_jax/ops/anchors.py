"""Anchors of a feature pyramid, as torchvision's AnchorGenerator lays them.

They are constants of the image size, hence NumPy. Three traits differ from other RetinaNets and all
matter: cell anchors are rounded to whole pixels (half to even), centres lie at index times stride with
no half cell added, and a level's stride is image // grid, so 61 and 114 for the coarse levels of an
800-pixel image, not 64 and 128.

A anchors of a cell · H, W grid of one level
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RATIOS = (0.5, 1.0, 2.0)  # height to width
LEVELS = 5  # P3 to P7


def scales(smallest: int) -> tuple[tuple[int, int, int], ...]:
    """Three anchor sizes in pixels for each level: an octave in thirds, cut to integers.

    >>> scales(32)[0], scales(32)[-1]
    ((32, 40, 50), (512, 645, 812))
    """
    octaves = (smallest * 2**level for level in range(LEVELS))
    return tuple((s, int(s * 2 ** (1 / 3)), int(s * 2 ** (2 / 3))) for s in octaves)


def grids(image_size: int) -> tuple[int, ...]:
    """Sides of the feature maps P3 to P7: each level halves the one before, rounded up.

    >>> grids(800)
    (100, 50, 25, 13, 7)
    """
    sides = [-(-image_size // 8)]
    while len(sides) < LEVELS:
        sides.append(-(-sides[-1] // 2))
    return tuple(sides)


def cell(sizes: Sequence[int], ratios: Sequence[float] = RATIOS) -> np.ndarray:
    """Anchors around the origin, f32 [A, 4]: ratios slow, sizes fast, rounded half to even.

    >>> cell((32, 40, 50))[0].tolist()
    [-23.0, -11.0, 23.0, 11.0]
    """
    root = np.sqrt(np.asarray(ratios, np.float32))[:, None]
    side = np.asarray(sizes, np.float32)
    height, width = (root * side).ravel(), (1 / root * side).ravel()
    return np.round(np.stack([-width, -height, width, height], 1) / 2)


def level(image_size: int, grid: int, sizes: Sequence[int]) -> np.ndarray:
    """The anchors of one level, f32 [H * W * A, 4], rows slow, anchors of a cell fast."""
    at = np.arange(grid, dtype=np.float32) * (image_size // grid)
    y, x = np.meshgrid(at, at, indexing="ij")
    shifts = np.stack([x, y, x, y], -1).reshape(-1, 1, 4)
    return (shifts + cell(sizes)).reshape(-1, 4)


def pyramid(image_size: int, smallest: int = 32) -> list[np.ndarray]:
    """The anchors of the levels P3 to P7 of a square image; none is clipped.

    >>> sum(len(anchors) for anchors in pyramid(800))
    120087
    """
    return [level(image_size, g, s) for g, s in zip(grids(image_size), scales(smallest))]
