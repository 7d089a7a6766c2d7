"""FID against pytorch-fid with SciPy's `sqrtm`, singular sets against closed forms, statistics, bad input."""

import doctest
import functools
import json

import numpy as np
import pytest

from mlperf_jax import metrics
from mlperf_jax.errors import UserError
from mlperf_jax.metrics import fid
from mlperf_jax.metrics.fid import FidClip, Statistics, frechet_distance, statistics
from scripts import make_fid_reference as reference

WIDTH = 12


@functools.cache
def normal(rows, width, seed=0):
    return np.random.RandomState(seed).standard_normal((rows, width))


@functools.cache
def turn(width):
    return np.linalg.qr(normal(width, width, 9))[0]


def rows_of(deviations, rows=50):
    """Rows whose covariance is the diagonal of these deviations, squared, turned."""
    width = len(deviations)
    noise = normal(rows, width, 4)
    axes = np.linalg.qr(noise - noise.mean(0))[0]
    return axes * np.sqrt(rows - 1) * deviations @ turn(width)


# -- full rank -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", reference.CASES)
def test_equals_the_formula_with_scipys_root(case):
    made, real = (reference.features(case, kind) for kind in ("generated", "real"))
    assert made.dtype == np.float32
    wanted = json.loads(reference.OUTPUT.read_text())[case]
    assert frechet_distance(made, statistics(real)) == pytest.approx(wanted, rel=1e-9)


def test_one_feature_is_a_difference_of_means_and_of_deviations():
    made, real = normal(30, 1), 3 * normal(40, 1, 1) + 5
    wanted = (made.mean() - real.mean()) ** 2 + (made.std(ddof=1) - real.std(ddof=1)) ** 2
    assert frechet_distance(made, statistics(real)) == pytest.approx(wanted, rel=1e-12)


def test_deviations_over_six_decades():
    made, real = np.geomspace(1, 1e-6, WIDTH), np.geomspace(2e-6, 3, WIDTH)
    covariance = turn(WIDTH).T @ np.diag(real**2) @ turn(WIDTH)
    found = frechet_distance(rows_of(made), Statistics(np.zeros(WIDTH), covariance))
    assert found == pytest.approx(((made - real) ** 2).sum(), rel=1e-9)


def test_the_same_set_is_at_no_distance_and_never_below():
    for rows in (5, 40):  # fewer than features, and more
        made = normal(rows, WIDTH)
        assert 0 <= frechet_distance(made, statistics(made)) < 1e-10


def test_statistics_are_those_of_numpy_in_float64():
    """A mean a million times the deviation: float32 sums would leave nothing."""
    rows = (1000 + 1e-3 * normal(60, WIDTH)).astype(np.float32)
    before, found = rows.copy(), statistics(rows)
    wide = rows.astype(np.float64)
    np.testing.assert_allclose(found.mean, wide.mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.covariance, np.cov(wide, rowvar=False), rtol=1e-7, atol=1e-14)
    np.testing.assert_array_equal(rows, before)


# -- less than full rank ---------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [40, 20])
@pytest.mark.parametrize("real_rows", [50, 15])
def test_features_that_say_the_same_change_nothing(rows, real_rows):
    """Sets in 6 of 30 dimensions are as far from each other as in those 6, whatever the rows."""
    made, real = normal(rows, 6) * 2, normal(real_rows, 6, 1) + 0.5
    inside = turn(30)[:6]
    wanted = frechet_distance(made, statistics(real))
    found = frechet_distance(made @ inside, statistics(real @ inside))
    assert found == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("rows", [2, 7, 12])
def test_fewer_images_than_features(rows):
    """The nonzero eigenvalues of S1 S2 are those of C S2 C', with C the centred rows."""
    made, real = normal(rows, WIDTH), statistics(normal(40, WIDTH, 1))
    centred = made - made.mean(0)
    values = np.linalg.eigvalsh(centred @ real.covariance @ centred.T / (rows - 1))[1:]
    traces = np.trace(np.cov(made, rowvar=False)) + np.trace(real.covariance)
    wanted = ((made.mean(0) - real.mean) ** 2).sum() + traces - 2 * np.sqrt(values).sum()
    assert frechet_distance(made, real) == pytest.approx(wanted, rel=1e-9)


def test_features_that_never_change():
    """Of an image judge whose ReLUs are shut: a column of zeros adds the other's mean and variance."""
    made, real = normal(40, WIDTH), normal(50, WIDTH, 1)
    shut = made.copy()
    shut[:, 3:] = 0
    other = statistics(real)
    wanted = frechet_distance(made[:, :3], statistics(real[:, :3]))
    independent = Statistics(other.mean, other.covariance.copy())
    independent.covariance[:3, 3:] = independent.covariance[3:, :3] = 0
    wanted += (other.mean[3:] ** 2).sum() + np.trace(other.covariance[3:, 3:])
    assert frechet_distance(shut, independent) == pytest.approx(wanted, rel=1e-9)


def test_images_that_are_all_alike():
    made, real = np.ones((30, WIDTH)), statistics(normal(40, WIDTH))
    wanted = ((1 - real.mean) ** 2).sum() + np.trace(real.covariance)
    assert frechet_distance(made, real) == pytest.approx(wanted, rel=1e-12)


# -- the metric ------------------------------------------------------------------------------------


def test_both_targets_come_from_one_evaluation():
    made, real = reference.features("even", "generated"), reference.features("even", "real")
    scores = np.linspace(-0.3, 0.1, len(made)).astype(np.float32)
    metric = metrics.FidClip(statistics(real))
    assert (metric.mode, metric.rows) == ("offline", True)
    assert metric.ranges.keys() == {"FID", "CLIP"}
    quality = metric.result({"features": made, "clip": scores})
    assert quality == {
        "FID": pytest.approx(json.loads(reference.OUTPUT.read_text())["even"], rel=1e-9),
        "CLIP": pytest.approx(-0.1, abs=1e-7),  # not cut at 0
    }
    low, high = metric.ranges["CLIP"]
    assert low <= quality["CLIP"] <= high


def test_scores_are_added_in_float64():
    scores = np.full(3_000_000, 0.1, np.float32)
    found = FidClip(statistics(np.eye(2))).result({"features": np.eye(2), "clip": scores})
    assert found["CLIP"] == pytest.approx(float(np.float32(0.1)), rel=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": np.ones((1, 3))}, r"at least two images, not \[1, 3\]"),
        ({"features": np.ones((4, 2))}, "have 3 features, the images' judge gives 2"),
        ({"features": np.array([[0, 1, np.nan], [1, 2, 3]])}, "of 1 of 2 generated images are NaN"),
        ({"features": np.array([[0, 1, np.inf], [1, 2, 3]])}, "of 1 of 2 generated images are NaN"),
        ({"clip": np.array([0.1, np.nan])}, "1 of 2 CLIP scores are NaN"),
    ],
)
def test_what_has_no_quality_is_refused(changes, message):
    rows = {"features": np.eye(3)[:2], "clip": np.array([0.1, 0.2])} | changes
    with pytest.raises(UserError, match=message):
        FidClip(statistics(np.eye(3))).result(rows)


def test_without_statistics_there_is_no_fid():
    with pytest.raises(UserError, match="needs the statistics of real images"):
        FidClip().result({"features": np.eye(2), "clip": np.zeros(2)})


# -- the file of statistics ------------------------------------------------------------------------


def test_what_was_saved_is_read(tmp_path):
    found = statistics(normal(20, WIDTH).astype(np.float32))
    found.save(tmp_path / "stats.npz")
    with np.load(tmp_path / "stats.npz") as file:  # pytorch-fid's names
        np.testing.assert_array_equal(file["sigma"], found.covariance)
    again = fid.read_statistics(tmp_path / "stats.npz")
    np.testing.assert_array_equal(again.mean, found.mean)
    np.testing.assert_array_equal(again.covariance, found.covariance)


def test_statistics_in_float32_are_taken(tmp_path):
    np.savez(tmp_path / "s.npz", mu=np.ones(2, np.float32), sigma=np.eye(2, dtype=np.float32))
    found = fid.read_statistics(tmp_path / "s.npz")
    assert found.mean.dtype == found.covariance.dtype == np.float64


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(2)}, r"lacks sigma: .* mu and sigma; fetch val2014_30k_stats.npz"),
        ({"mean": np.zeros(2)}, "lacks mu and sigma"),
        ({"mu": np.zeros(2), "sigma": np.eye(3)}, r"has mu \[2\] and sigma \[3, 3\]"),
        ({"mu": np.zeros((1, 2)), "sigma": np.eye(2)}, r"has mu \[1, 2\]"),
        ({"mu": np.array([0, np.nan]), "sigma": np.eye(2)}, "not finite"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 0.5], [0, 1]])}, "without symmetry"),
        ({"mu": np.array([None, 1]), "sigma": np.eye(2)}, "is no whole npz file"),
    ],
)
def test_what_are_no_statistics_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "stats.npz", **arrays)
    with pytest.raises(UserError, match=message):
        fid.read_statistics(tmp_path / "stats.npz")


def test_damaged_and_missing_files_are_named(tmp_path):
    path = tmp_path / "stats.npz"
    with pytest.raises(UserError, match=r"stats.npz is missing: fetch"):
        fid.read_statistics(path)
    statistics(normal(20, WIDTH)).save(path)
    whole = path.read_bytes()
    for part in (b"", b"text", whole[: len(whole) // 2]):
        path.write_bytes(part)
        with pytest.raises(UserError, match=r"stats.npz is no whole npz file"):
            fid.read_statistics(path)
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(UserError, match="a single array"):
        fid.read_statistics(path)


def test_documented_examples():
    assert doctest.testmod(fid).failed == 0
