"""Phantoms in the place of KiTS19: bodies, kidneys and tumours of ellipsoids, written as NIfTI.

Each case has its own spacing, size and noise, so that preparation has the same to do as with real scans;
at the target spacing a volume has 17 to 35 voxels a side.
"""

from __future__ import annotations

import pathlib

import numpy as np

_SEED = 2019
# Hounsfield units: fat and air around, soft tissue, kidney, tumour (brighter than any, so that the rim of a kidney is not like it)
_OUTSIDE, _BODY, _KIDNEY, _TUMOUR = -75.0, 20.0, 130.0, 260.0
_NOISE = 20.0


def write(folder: pathlib.Path, count: int) -> None:
    """Writes `case_00000/imaging.nii.gz` and `segmentation.nii.gz` and so on; the same every time."""
    import nibabel

    for number in range(count):
        image, label, spacing = phantom(np.random.default_rng([_SEED, number]))
        # KiTS19's axes: the first runs down the body, the others to the back and to the left
        affine = np.zeros((4, 4))
        affine[[2, 1, 0], [0, 1, 2]] = -np.asarray(spacing)
        affine[3, 3] = 1
        case = folder / f"case_{number:05d}"
        case.mkdir(parents=True, exist_ok=True)
        for name, voxels in (("imaging", image), ("segmentation", label)):
            volume = nibabel.Nifti1Image(voxels, affine)
            volume.header.set_zooms(spacing)
            nibabel.save(volume, case / f"{name}.nii.gz")


def phantom(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """One case: image i16 [D, H, W] in Hounsfield units, label u8 [D, H, W], spacing in mm."""
    spacing = (
        float(rng.choice([2.0, 3.0, 4.0])),
        *(float(np.round(rng.uniform(0.9, 1.5), 2)),) * 2,
    )
    extent = np.array([rng.uniform(32, 48), *(rng.uniform(28, 38, 2))])  # mm
    sides = np.maximum((extent / spacing).astype(int), 4)
    where = np.stack(np.meshgrid(*(np.arange(n) for n in sides), indexing="ij"), -1) * spacing
    where = where - where.max((0, 1, 2)) / 2  # mm from the centre
    half = sides * spacing / 2

    def inside(centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
        return (((where - centre) / radii) ** 2).sum(-1) < 1

    image = np.full(sides, _OUTSIDE)
    label = np.zeros(sides, np.uint8)
    image[inside(np.zeros(3), np.array([2 * half[0], 0.98 * half[1], 0.98 * half[2]]))] = _BODY
    for left in (-1, 1):
        centre = np.array([rng.uniform(-4, 4), rng.uniform(-3, 3), left * rng.uniform(0.42, 0.5)])
        centre[2] *= half[2]
        radii = np.array([rng.uniform(8, 11), rng.uniform(5.5, 7), rng.uniform(4.5, 5.5)])
        kidney = inside(centre, radii)
        image[kidney], label[kidney] = _KIDNEY, 1
        if left > 0:  # one tumour, growing out of the kidney
            towards = rng.standard_normal(3)
            towards *= 0.5 / np.linalg.norm(towards)
            tumour = inside(centre + towards * radii, rng.uniform(3.8, 5.0) * np.array([1.3, 1, 1]))
            image[tumour], label[tumour] = _TUMOUR, 2
    image += rng.normal(0, _NOISE, sides)
    return np.round(image).astype(np.int16), label, spacing
