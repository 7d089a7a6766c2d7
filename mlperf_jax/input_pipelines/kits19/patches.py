"""From a volume to an example: training patches, and whole volumes laid out for the sliding window.

Reference: mlcommons/training, retired_benchmarks/unet3d/pytorch, data_loading/pytorch_loader.py (patches)
and runtime/inference.py (cropping and padding of volumes).

D, H, W sides of a volume · S side of a patch or window · P stride of windows, S / 2
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import grain
import numpy as np

from mlperf_jax.errors import UserError

if TYPE_CHECKING:
    from mlperf_jax.input_pipelines.kits19.files import Case

Augmentation = Literal["reference", "dali"]
IGNORED = 255  # label of what is not part of the volume
LARGEST = 2  # label: a tumour
PADDING = -2.2  # of images, near the smallest value that preparation leaves, -2.34

FLIP = 1 / 3  # probability, for each axis by itself
INTENSITY = 0.1  # probability of a change of brightness, and of noise
BRIGHTNESS = 0.3
NOISE = 0.1


class Box(NamedTuple):
    """Where a connected component lies: first voxel and one past the last, by axis."""

    start: tuple[int, ...]
    stop: tuple[int, ...]


def check_voxels(case: Case, image: np.ndarray, label: np.ndarray) -> None:
    """Nothing, if what was read of a case can be trained on and scored.

    Raises:
        UserError: a value is not finite, or a label is none of 0, 1, 2: `IGNORED` within a volume would be left out
            of the score.
    """
    if not np.isfinite(np.sum(image)):
        raise UserError(
            f"{case.image_path} holds values that are not finite; prepare this case again"
        )
    if label.max(initial=0) > LARGEST:
        raise UserError(
            f"{case.label_path} holds the label {label.max()}, allowed are 0 to {LARGEST}; prepare this case again"
        )


# -- training ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Patch(grain.transforms.RandomMap):
    """Volume -> a random patch: image f32 [S, S, S, 1], label u8 [S, S, S].

    Attributes:
        side: S.
        oversampling: share of patches that are laid around a kidney or tumour.
        augmentation: "reference", where brightness is multiplied by 1 + f with f in 0.7 ... 1.3 (so at
            least by 1.7; f itself was surely meant) and the noise's sigma is up to 0.1; or "dali",
            NVIDIA's accepted variant: by f, and sigma always 0.1.
    """

    side: int
    oversampling: float
    augmentation: Augmentation

    def __post_init__(self) -> None:
        if self.augmentation not in ("reference", "dali"):
            raise UserError(f"augmentation is {self.augmentation!r}; it is 'reference' or 'dali'")

    def random_map(self, element: Case, rng: np.random.Generator) -> Any:
        shape = element.image.shape
        if min(shape) < self.side:
            raise UserError(
                f"a volume of {'x'.join(map(str, shape))} voxels holds no patch of {self.side}^3; "
                "prepare it again"
            )
        corner = self._corner(element, shape, rng)
        where = tuple(slice(c, c + self.side) for c in corner)
        turn = tuple(slice(None, None, -1 if rng.random() < FLIP else 1) for _ in shape)
        image = np.array(element.image[where][turn], np.float32)
        label = np.array(element.label[where][turn], np.uint8)
        check_voxels(element, image, label)
        image = change_intensity(image, self.augmentation, rng)
        return {"image": image[..., None], "label": label}

    def _corner(self, volume: Case, shape: Sequence[int], rng: np.random.Generator) -> list[int]:
        boxes = volume.boxes if rng.random() < self.oversampling else {}
        if not boxes:  # no foreground: the reference would stop here, though it means to go on
            return [randrange(n - self.side, rng) for n in shape]
        choice = boxes[sorted(boxes)[int(rng.integers(len(boxes)))]]
        box = choice[int(rng.integers(len(choice)))]
        return [
            foreground_start(start, stop, n, self.side, rng)
            for start, stop, n in zip(*box, shape, strict=True)
        ]


def randrange(count: int, rng: np.random.Generator) -> int:
    """One of 0 ... count - 1, or 0 if there is none: a patch never takes the last place there is."""
    return int(rng.integers(count)) if count else 0


def foreground_start(start: int, stop: int, size: int, side: int, rng: np.random.Generator) -> int:
    """Where along an axis a patch begins that holds a box, or lies in one that is longer.

    >>> foreground_start(40, 50, 60, 16, np.random.default_rng(0)) in range(35, 41)
    True

    Args:
        start, stop: of the box.
        size: of the volume, at least `side`.
        side: of the patch.
        rng: one draw, none where the box has just the side of the patch.
    """
    free = abs(side - (stop - start))
    before = randrange(free, rng)
    if stop - start <= side:
        low, high = max(0, start - before), min(size, stop + (free - before))
    else:
        low, high = start + before, stop - (free - before)
    missing = side - (high - low)  # cut off by an end of the volume
    return low if low == 0 else low - missing


def change_intensity(
    image: np.ndarray, augmentation: Augmentation, rng: np.random.Generator
) -> np.ndarray:
    """Brightness, then noise, each with a probability of 0.1; f32 as given."""
    quirk = augmentation == "reference"
    if rng.random() < INTENSITY:
        factor = rng.uniform(1 - BRIGHTNESS, 1 + BRIGHTNESS)
        image = image * np.float32(1 + factor if quirk else factor)
    if rng.random() < INTENSITY:
        sigma = rng.uniform(0, NOISE) if quirk else NOISE
        noise = rng.standard_normal(image.shape, np.float32)
        image = image + np.float32(sigma) * noise
    return image


# -- evaluation --------------------------------------------------------------------------------------


class Fit(NamedTuple):
    """How one axis of a volume is cut and padded to whole strides.

    Attributes:
        cut: voxels left out before.
        kept: voxels that count.
        pad: voxels of padding before.
        windows: how many windows cover the axis.
    """

    cut: int
    kept: int
    pad: int
    windows: int


def fit(size: int, side: int) -> Fit:
    """Less than half a stride over is cut off, anything more is padded; half of it before, rounded down.

    >>> fit(200, 128), fit(230, 128)
    (Fit(cut=4, kept=192, pad=0, windows=2), Fit(cut=0, kept=230, pad=13, windows=3))
    """
    stride = side // 2
    over = size % stride
    cut = over if over < stride // 2 else 0
    kept = size - cut
    pad = -kept % stride
    pad += stride if kept + pad < side else 0
    return Fit(cut // 2, kept, pad // 2, (kept + pad - side) // stride + 1)


@dataclasses.dataclass(frozen=True)
class WholeVolume(grain.transforms.Map):
    """Volume -> image f32 [D, H, W, 1], label u8 [D, H, W] and windows i32 [3], in a fixed shape.

    The windows along each axis begin at 0, P, ...; what lies behind them, and the padding, has the
    label `IGNORED`.

    Attributes:
        shape: D, H, W of every example; the largest volume must fit.
        side: S.
    """

    shape: tuple[int, int, int]
    side: int

    def map(self, element: Case) -> Any:
        fits = [fit(n, self.side) for n in element.image.shape]
        covered = [(f.windows + 1) * (self.side // 2) for f in fits]
        if any(n > most for n, most in zip(covered, self.shape, strict=True)):
            raise UserError(
                f"a volume of {'x'.join(map(str, element.image.shape))} voxels takes "
                f"{'x'.join(map(str, covered))} with its padding, more than eval_shape "
                f"{'x'.join(map(str, self.shape))}; raise eval_shape"
            )
        check_voxels(element, element.image, element.label)
        source = tuple(slice(f.cut, f.cut + f.kept) for f in fits)
        target = tuple(slice(f.pad, f.pad + f.kept) for f in fits)
        image = np.full((*self.shape, 1), PADDING, np.float32)
        label = np.full(self.shape, IGNORED, np.uint8)
        image[target][..., 0] = element.image[source]
        label[target] = element.label[source]
        windows = np.array([f.windows for f in fits], np.int32)
        return {"image": image, "label": label, "windows": windows}


# -- foreground --------------------------------------------------------------------------------------


def largest_boxes(label: np.ndarray, most: int = 2) -> dict[int, tuple[Box, ...]]:
    """The boxes of the largest components of each class above 0, by the volume of the box.

    Components hang together by faces. Reference: RandBalancedCrop.rand_foreg_cropd.

    >>> label = np.zeros((4, 4, 4), np.uint8)
    >>> label[1:3, 2, 0] = 1
    >>> largest_boxes(label)
    {1: (Box(start=(1, 2, 0), stop=(3, 3, 1)),)}
    """
    from scipy import ndimage

    found = {}
    for number, around in enumerate(ndimage.find_objects(label), start=1):
        if around is None:
            continue
        components: Any = ndimage.label(label[around] == number)
        boxes = [
            Box(
                tuple(int(a.start + s.start) for a, s in zip(around, box, strict=True)),
                tuple(int(a.start + s.stop) for a, s in zip(around, box, strict=True)),
            )
            for box in ndimage.find_objects(components[0])
        ]
        boxes.sort(key=lambda box: np.prod(np.subtract(box.stop, box.start)), reverse=True)
        found[number] = tuple(boxes[:most])
    return found
