"""The comparison with the reference, against the official checker on every file it comes with."""

import itertools
import re

import numpy as np
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.results import rcp, rules

official = pytest.importorskip("mlperf_logging.rcp_checker.rcp_checker")

FILES = sorted((rules.official_package() / "rcp_checker").glob("*_*/rcps_*.json"))
IDS = [f"{p.parent.name}-{p.stem.removeprefix('rcps_')}" for p in FILES]
NOT_IN_THE_CHECKER = {"dlrm": 5}  # its files are there, its number of runs is not


def named(path):
    """(usage, ruleset, official name, our name) of a file."""
    usage, ruleset = path.parent.name.split("_")
    name = path.stem.removeprefix("rcps_")
    rows = [row for row in rules.by_log_name(name, ruleset) if row.suite == usage]
    if not rows:  # bert has a file for the round after its last
        return usage, ruleset, name, None
    return usage, ruleset, name, rows[0].benchmark


@pytest.fixture
def checker(monkeypatch):
    for name, runs in NOT_IN_THE_CHECKER.items():
        monkeypatch.setitem(official.submission_runs["training"], name, runs)
    return lambda usage, ruleset, name: official.RCP_Checker(usage, ruleset, name, False)


def test_there_are_files():
    assert len(FILES) > 80
    assert sum(named(path)[3] is None for path in FILES) == 1


def close(value):
    """To a thousandth, and to the checker's own step where that is coarser."""
    return pytest.approx(value, rel=1e-3, abs=2e-4)


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_points_bounds_and_pruning_equal_the_official_checker(path, checker):
    usage, ruleset, name, ours = named(path)
    if ours is None:
        pytest.skip("no benchmark of that round")
    theirs = checker(usage, ruleset, name)
    known = rcp.references(ours, ruleset)
    records = list(theirs.rcp_data.values())
    assert [point.batch_size for point in known] == [record["BS"] for record in records]
    for point, record in zip(known, records):
        assert point.mean == pytest.approx(record["RCP Mean"], rel=1e-12)
        assert point.std == pytest.approx(record["RCP Stdev"], rel=1e-12)
        assert point.bound == close(record["Min Epochs"])
        if point.bound > 0:
            assert point.mean / point.bound == pytest.approx(record["Max Speedup"], rel=1e-3)
    runs = rules.resolve(ours, ruleset).runs
    kept = rcp.pruned(known, runs)
    assert [p.batch_size for p in kept] == [r["BS"] for r in theirs.pruned_rcp_data.values()]
    for low, high in itertools.pairwise(kept):
        for batch in {low.batch_size + 1, (low.batch_size + high.batch_size) // 2}:
            if not low.batch_size < batch < high.batch_size:
                continue
            kind, point = rcp.reference_at(kept, batch, runs)
            assert kind == "interpolated"
            _, record = theirs._create_interp_rcp(
                batch,
                theirs._find_top_min_rcp(batch, "pruned_rcps"),
                theirs._find_bottom_max_rcp(batch, "pruned_rcps"),
            )
            assert point.mean == pytest.approx(record["RCP Mean"], rel=1e-12)
            assert point.std == pytest.approx(record["RCP Stdev"], rel=1e-12)
            assert point.bound == close(record["Min Epochs"])


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_verdicts_equal_the_official_checker(path, checker):
    """Around the mean and the bound of every point, with the spread of real runs."""
    usage, ruleset, name, ours = named(path)
    if ours is None:
        pytest.skip("no benchmark of that round")
    theirs = checker(usage, ruleset, name)
    runs = rules.resolve(ours, ruleset).runs
    rng = np.random.default_rng(0)
    for point in rcp.references(ours, ruleset):
        for speed in (0.8, 0.95, 1.0, 1.02, 1.3):
            lengths = list(point.mean / speed * (1 + 0.01 * rng.standard_normal(runs)))
            verdict = rcp.judge(ours, point.batch_size, lengths, ruleset, full=True)
            record = theirs._find_rcp(point.batch_size, "full_rcps")
            passed, factor = theirs._eval_submission_record(dict(record), list(lengths), "")
            assert verdict.passed == passed
            assert verdict.kind == "found"
            assert verdict.scaling_factor == pytest.approx(factor if passed else 1.0, rel=1e-9)


def test_the_worked_example_of_the_rules_is_calculated_as_the_checker_does():
    """The rules trim before they take the deviation and get 3.53 %; the checker does not."""
    runs = (16.0, 14, 16, 17, 16, 16, 15, 16, 15, 16)
    point = rcp.ReferencePoint("example", 4096, runs, {})
    found = rcp.references("resnet", points=[point])[0]
    assert found.mean == pytest.approx(15.75)
    assert found.std == pytest.approx(0.781, abs=5e-4)
    assert found.mean / found.bound == pytest.approx(1.0656, abs=5e-5)


def points(*means, spread=1.0):
    """Made-up points at batch 100, 200, … with the given means."""
    return [
        rcp.ReferencePoint(f"at_{i}", 100 * i, tuple(mean + spread * d for d in range(-2, 3)), {})
        for i, mean in enumerate(means, start=1)
    ]


def kept(*means):
    known = rcp.references("resnet", points=points(*means))
    return [point.batch_size for point in rcp.pruned(known, 5)]


def test_pruning():
    assert kept(10, 20, 30) == [100, 200, 300]  # on the line is not above it
    assert kept(10, 21, 30) == [100, 300]
    assert kept(10, 19, 30) == [100, 200, 300]
    assert kept(12, 10, 30) == [200, 300]  # slower than a larger batch
    # 200 goes first; 300, below the line from 100 to 400, stays
    assert kept(10, 25, 26, 60) == [100, 300, 400]
    # the walk does not look back: 200 was kept while 300 was there
    assert kept(10, 24, 39, 40) == [100, 200, 400]
    assert kept(10) == [100]


@pytest.mark.parametrize(
    ("batch", "lengths", "kind", "passed", "sentence"),
    [
        (
            100,
            [40.0] * 5,
            "found",
            True,
            "converged in as many epochs as the reference mean: accepted",
        ),
        (
            100,
            [42.0] * 5,
            "found",
            True,
            "converged in 5.0 % more epochs than the reference mean: accepted",
        ),
        (
            100,
            [39.0] * 5,
            "found",
            True,
            "converged in 2.5 % fewer epochs than the reference mean; the bound at this batch size is "
            "6.2 %: accepted",
        ),
        (
            100,
            [36.0] * 5,
            "found",
            False,
            "converged in 10.0 % fewer epochs than the reference mean; the bound at this batch size is "
            "6.2 %: not accepted",
        ),
        (
            150,
            [43.6] * 5,
            "interpolated",
            True,
            "converged in 3.1 % fewer epochs than the reference mean; the bound at this batch size "
            "(interpolated between 100 and 200) is 3.7 %: accepted",
        ),
        (
            150,
            [43.32] * 5,
            "interpolated",
            False,
            "converged in 3.73 % fewer epochs than the reference mean; the bound at this batch size "
            "(interpolated between 100 and 200) is 3.72 %: not accepted",
        ),
        (
            60,
            [38.0] * 5,
            "smaller",
            True,
            "converged in 5.0 % fewer epochs than the reference mean at the smallest reference batch "
            "size, 100; the bound there is 6.2 %: accepted",
        ),
        (
            60,
            [30.0] * 5,
            "smaller",
            False,
            "converged in 25.0 % fewer epochs than the reference mean at the smallest reference batch "
            "size, 100; the bound there is 6.2 %: not accepted until a reference point at 60 is "
            "submitted",
        ),
        (
            1000,
            [90.0] * 5,
            "missing",
            False,
            "no reference point reaches batch size 1,000 (the largest is 300): not accepted until one "
            "is submitted",
        ),
        (
            100,
            [40.0, 40.0, 40.0, None, None],
            "unconverged",
            False,
            "2 of 5 runs did not converge, 1 may: not accepted",
        ),
    ],
)
def test_verdicts_in_words(batch, lengths, kind, passed, sentence):
    verdict = rcp.judge("resnet", batch, lengths, points=points(40, 50, 61))
    assert (verdict.kind, verdict.passed, str(verdict)) == (kind, passed, sentence)
    faster = verdict.faster_by is not None and verdict.faster_by > 1e-6
    assert (verdict.scaling_factor > 1) == (passed and faster)
    assert verdict.to_dict()["sentence"] == sentence


def test_a_run_that_did_not_converge_is_the_slowest():
    lengths = [41.0, 40.0, 39.0, 38.0, None]
    verdict = rcp.judge("resnet", 100, lengths, points=points(40, 50))
    assert verdict.mean == pytest.approx(40.0)


def test_the_official_number_for_never_makes_it_the_fastest_among_gpt3_tokens():
    """The official checker counts 1e9 for it, and gpt3 takes more tokens than that: so do we."""
    at = rcp.points_of("gpt3", "4.1.0")[0].batch_size
    verdict = rcp.judge("gpt3", at, [1.21e9, 1.25e9, None], "4.1.0", full=True)
    assert verdict.mean == pytest.approx(1.21e9)


def test_llama31_405b_is_granted_more_samples():
    point = next(p for p in rcp.references("llama31_405b", "5.1.0") if p.batch_size == 1152)
    just = point.bound - 46_080 + 1
    assert rcp.judge("llama31_405b", 1152, [just] * 3, "5.1.0").passed
    assert not rcp.judge("llama31_405b", 1152, [just - 2] * 3, "5.1.0").passed


def test_a_point_with_runs_too_far_apart_excludes_nothing():
    point = next(p for p in rcp.references("gpt3", "4.1.0") if p.batch_size == 3072)
    assert (point.bound, point.allowance) == (0.0, 1.0)
    verdict = rcp.judge("gpt3", 3072, [1e6] * 3, "4.1.0")
    assert verdict.passed
    assert "too far apart to exclude anything" in verdict.sentence


def test_equal_runs_make_the_mean_the_bound():
    point = rcp.ReferencePoint("equal", 256, (4.0,) * 10, {})
    assert rcp.judge("retinanet", 256, [4] * 5, points=[point]).passed
    verdict = rcp.judge("retinanet", 256, [4, 4, 4, 3, 3], points=[point])
    assert not verdict.passed
    assert "the bound at this batch size is 0.0 %" in verdict.sentence


def test_unet3d_leaves_out_four_at_either_end_and_tolerates_four():
    batch = rcp.references("unet3d", "4.0.0")[0].batch_size
    usual = [350_000.0] * 32
    best, worst = [1.0] * 4, [None] * 4
    verdict = rcp.judge("unet3d", batch, usual + best + worst, "4.0.0")
    assert verdict.mean == 350_000
    assert verdict.passed
    assert not rcp.judge("unet3d", batch, usual + best[:3] + worst + [None], "4.0.0").passed


@pytest.mark.parametrize(
    ("name", "ruleset", "field", "unit"),
    [
        ("resnet", None, "epoch_num", "epochs"),
        ("bert", None, "epoch_num", "samples"),
        ("unet3d", "3.0", "epoch_num", "epochs"),
        ("unet3d", "3.1", "epoch_num", "samples"),
        ("stable_diffusion", "3.1", "step_num", "steps"),
        ("stable_diffusion", "4.0", "samples_count", "samples"),
        ("gpt3", None, "epoch_num", "tokens"),
        ("flux1", None, "samples_count", "samples"),
        ("dlrm_dcnv2", None, "epoch_num", "epochs"),
        ("openfold", None, "epoch_num", "samples"),
    ],
)
def test_what_lengths_count(name, ruleset, field, unit):
    official = rules.resolve(name, ruleset)
    assert (official.length_field, official.length_unit) == (field, unit)


def test_points_of_ones_own(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"a": {"Benchmark": "x", "BS": 64, "samples to converge": [1, 2, 3]}}')
    assert rcp.read_points(path)[0].lengths == (1, 2, 3)
    for text, says in (
        ("[1]", "not a file of"),
        ('{"a": {"BS": 4}}', "not a file of"),
        ("", "not"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=re.escape(says)):
            rcp.read_points(path)
    with pytest.raises(UserError, match="cannot be read"):
        rcp.read_points(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: rcp.judge("resnet", 3264, [35, 36]), "2 runs of resnet cannot be compared"),
        (lambda: rcp.judge("resnet", 3264, [35] * 5, "0.7"), "no reference convergence points"),
        (
            lambda: rcp.judge("resnet", 1, [35] * 5, points=[]),
            "none are given|are given for resnet",
        ),
        (
            lambda: rcp.references("unet3d", points=points(40)),
            "has 5 runs; more than 8 are needed",
        ),
    ],
)
def test_errors(call, says):
    with pytest.raises(UserError, match=says):
        call()


def test_lengths_far_from_the_reference_are_said_and_not_their_percentage():
    verdict = rcp.judge("bert", 3072, [3.0] * 10, "5.0.0")
    assert re.match(r"converged in 3 samples; the reference mean is [\d,]{9} samples", str(verdict))
    assert "%" not in str(verdict).partition(";")[0]
    assert str(rcp.judge("bert", 3072, [1.0] * 10, "5.0.0")).startswith("converged in 1 sample; ")
