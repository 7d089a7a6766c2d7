"""FID of 2,048 features: our processor time and value beside pytorch-fid's, which takes SciPy's `sqrtm`.

    python scripts/compare_fid.py --cores 1 --rounds 1        # ten minutes
    python scripts/compare_fid.py --features 256 --images 4000 --rounds 3

SciPy is needed by this script alone. Both sides take the same float32 rows of generated images and the same
statistics of real ones. Deviations fall over three decades, as Inception's do.
"""

from __future__ import annotations

import measuring

# isort: split

import numpy as np
import scipy.linalg

from mlperf_jax.metrics import fid


def make(images: int, width: int, seed: int) -> np.ndarray:
    """Float32 rows whose deviations fall from 1 to 0.001 along directions of no axis."""
    rng = np.random.default_rng(seed)
    turned = np.linalg.qr(rng.standard_normal((width, width)))[0] * np.geomspace(1, 1e-3, width)
    return (
        rng.standard_normal((images, width), np.float32) @ turned.astype(np.float32).T
    ) + seed / 100


def by_sqrtm(rows: np.ndarray, real: fid.Statistics) -> float:
    """The reference's formula, where the product is not singular."""
    wide = rows.astype(np.float64)
    mean, covariance = wide.mean(0), np.cov(wide, rowvar=False)
    root = scipy.linalg.sqrtm(covariance @ real.covariance)
    traces = np.trace(covariance) + np.trace(real.covariance) - 2 * np.trace(root).real
    return float(((mean - real.mean) ** 2).sum() + traces)


def main() -> None:
    parser = measuring.parser(__doc__, rounds=1)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--images", type=int, default=30_000)
    options = parser.parse_args()
    print(measuring.header())
    rows, others = (make(options.images, options.features, seed) for seed in (1, 2))
    real = fid.statistics(others)
    found = {}

    def side(name, function):
        def call():
            found[name] = function(rows, real)

        return call

    sides = {
        name: side(name, function)
        for name, function in (("sqrtm", by_sqrtm), ("ours", fid.frechet_distance))
    }
    # without a round that warms up: it would take as long as all others
    spent = {name: [] for name in sides}
    for _, name in measuring.turns(tuple(sides), options.rounds):
        begin = measuring.at_rest()
        sides[name]()
        spent[name].append(measuring.at_rest() - begin)
    print(
        f"{options.images:,} images of {options.features:,} features, mean and covariance included:"
    )
    measuring.report(spent, "sqrtm", "an evaluation")
    off = abs(found["ours"] / found["sqrtm"] - 1)
    print(f"  FID {found['ours']:.9f}, relative difference {off:.1e}")


if __name__ == "__main__":
    main()
