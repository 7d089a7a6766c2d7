"""Quality of generated images: Frechet inception distance to real ones, and how well they fit their captions.

FID is the squared distance of two normal distributions of features: |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^½.
With any roots S1 = A A' and S2 = B B' the last trace is the sum of the singular values of A' B: no root of a matrix
without symmetry, as in pytorch-fid and the reference, is needed, and sets of fewer rows than features have one too.

Reference: the evaluation of mlcommons/training, retired_benchmarks/stable_diffusion.

N images · D features of one · R rank of a covariance
"""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from mlperf_jax.errors import UserError


@dataclass(frozen=True, eq=False)
class Statistics:
    """What FID knows of a set of images.

    Attributes:
        mean: float64 [D].
        covariance: float64 [D, D], unbiased.
    """

    mean: np.ndarray
    covariance: np.ndarray

    def save(self, path: str | os.PathLike) -> None:
        """Writes the file that pytorch-fid and `read_statistics` read: `mu` and `sigma` in an npz."""
        with open(path, "wb") as file:
            np.savez_compressed(file, mu=self.mean, sigma=self.covariance)


def statistics(features: np.ndarray) -> Statistics:
    """Mean and unbiased covariance, in float64, of features [N, D].

    Raises:
        UserError: fewer than two rows, or a feature that is no finite number.

    >>> statistics(np.array([[1.0, 0], [3, 0]])).covariance.tolist()
    [[2.0, 0.0], [0.0, 0.0]]
    """
    mean, centred = _centred(features)
    return Statistics(mean, _covariance(centred))


def read_statistics(path: str | os.PathLike) -> Statistics:
    """The statistics of real images, from an npz with `mu` [D] and `sigma` [D, D].

    Raises:
        UserError: no such file, another one, or arrays that are no mean and covariance.
    """
    advice = "fetch val2014_30k_stats.npz from the organisers, or build the data again"
    try:
        file = np.load(path)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array")
        with file:
            found = {n: np.asarray(file[n], np.float64) for n in ("mu", "sigma") if n in file.files}
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {advice}") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is no whole npz file ({error}): {advice}") from error
    if missing := [name for name in ("mu", "sigma") if name not in found]:
        raise UserError(
            f"{path} lacks {' and '.join(missing)}: statistics for FID are the arrays mu and sigma; {advice}"
        )
    mean, covariance = found["mu"], found["sigma"]
    if mean.ndim != 1 or covariance.shape != (*mean.shape, *mean.shape):
        raise UserError(
            f"{path} has mu {list(mean.shape)} and sigma {list(covariance.shape)}, expected [D] and [D, D]: {advice}"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{path} holds numbers that are not finite: {advice}")
    if not np.allclose(covariance, covariance.T, rtol=1e-5, atol=1e-8 * abs(covariance).max()):
        raise UserError(f"{path} has a sigma without symmetry, which is no covariance: {advice}")
    return Statistics(mean, covariance)


def check_width(real: Statistics, width: int) -> None:
    """Nothing, if the statistics are of as many features as the images' judge gives.

    Raises:
        UserError: they are not.
    """
    if width != len(real.mean):
        raise UserError(
            f"the statistics of real images have {len(real.mean):,} features, the images' judge gives {width:,}: "
            "give the statistics that were made with this judge"
        )


def frechet_distance(features: np.ndarray, real: Statistics) -> float:
    """FID of features [N, D] of generated images to those of real ones.

    Where rows are fewer than features the centred rows themselves are the root of their covariance: what
    eigenvalues of a singular product would add, root of rounding each, is not there.

    Raises:
        UserError: another number of features than the real images', fewer than two rows, or a feature that is
            no finite number.
    """
    rows, width = np.shape(features)
    check_width(real, width)
    mean, centred = _centred(features)
    if rows <= width:
        root, full = centred.T / math.sqrt(rows - 1), False  # [D, N]
        total = float((root**2).sum())
    else:
        covariance = _covariance(centred)
        total = float(np.trace(covariance))
        root, full = _root(covariance)
    other, other_full = _root(real.covariance)
    shared = _sum_of_singular_values(root.T @ other, full and other_full)
    distance = ((mean - real.mean) ** 2).sum() + total + np.trace(real.covariance) - 2 * shared
    return max(0.0, float(distance))  # a sum of squares, less only by rounding


def _centred(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and features less the mean [N, D], in float64."""
    rows = np.array(features, np.float64)
    if rows.ndim != 2 or len(rows) < 2:
        raise UserError(
            f"FID takes rows of features of at least two images, not {list(rows.shape)}: evaluate more images"
        )
    mean = rows.mean(0)
    if not np.isfinite(mean).all():  # of a column with one that is not it is not
        bad = int((~np.isfinite(rows).all(1)).sum())
        raise UserError(
            f"features of {bad:,} of {len(rows):,} generated images are NaN or infinite: the model has diverged; "
            "lower the learning rate"
        )
    rows -= mean
    return mean, rows


def _covariance(centred: np.ndarray) -> np.ndarray:
    return centred.T @ centred / (len(centred) - 1)


def _root(covariance: np.ndarray) -> tuple[np.ndarray, bool]:
    """A root [D, R], of which root @ root.T is the covariance, and whether that has full rank."""
    try:
        return np.linalg.cholesky(covariance), True
    except np.linalg.LinAlgError:
        pass  # features that never change, or few images
    values, vectors = np.linalg.eigh(covariance)
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept]), False


def _sum_of_singular_values(matrix: np.ndarray, full: bool) -> float:
    """Of a matrix of full rank by the eigenvalues of its square, which takes half as long."""
    if full:
        return float(np.sqrt(np.maximum(np.linalg.eigvalsh(matrix.T @ matrix), 0)).sum())
    return float(np.linalg.svd(matrix, compute_uv=False).sum())


@dataclass(frozen=True)
class FidClip:
    """FID and mean CLIP score of one evaluation, both targets of text-to-image.

    `predict` returns a dict of rows: `features` f32 [N, D] of the images, and `clip` f32 [N], the cosine of
    each image's and its caption's embeddings, neither scaled nor cut at 0.

    Attributes:
        real: statistics of real images, which the benchmark's `metric_from` reads from the data folder.
        mode: see `core.protocols.Metric`.
    """

    real: Statistics | None = None
    mode: str = "offline"
    rows: ClassVar[bool] = True

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        return {"FID": (0, math.inf), "CLIP": (-1, 1)}

    def sums(self, outputs: Any, mask: Any) -> Any:
        raise NotImplementedError("FID and CLIP take rows")

    def result(self, total: Mapping[str, np.ndarray]) -> dict[str, float]:
        """`FID` and `CLIP` from all rows, in float64.

        Raises:
            UserError: there are no statistics, or they are of other features; a number that is not finite.
        """
        if self.real is None:
            raise UserError(
                "FID needs the statistics of real images: give the metric what read_statistics reads"
            )
        fid = frechet_distance(total["features"], self.real)
        scores = np.asarray(total["clip"], np.float64)
        if bad := int((~np.isfinite(scores)).sum()):
            raise UserError(
                f"{bad:,} of {len(scores):,} CLIP scores are NaN or infinite: the model has diverged; "
                "lower the learning rate"
            )
        return {"FID": fid, "CLIP": float(scores.mean())}
