"""Scores and verdicts against the official summary and checker."""

import pytest
from score_sets import MINUTE, log_of, said, write

from mlperf_jax.results import rcp, rules
from mlperf_jax.results.score import score


@pytest.fixture
def folder(tmp_path):
    """Writes logs into a folder below the test's, and returns it."""
    return lambda *logs, where="set": write(tmp_path / where, *logs)


SITUATIONS = [
    ("resnet", "4.0.0"),
    ("retinanet", "4.1.0"),
    ("retinanet", "5.0.0"),
    ("maskrcnn", "3.1.0"),
    ("unet3d", "4.0.0"),
    ("bert", "5.0.0"),
    ("rnnt", "3.1.0"),
    ("stable_diffusion", "3.1.0"),
    ("stable_diffusion", "5.0.0"),
    ("gpt3", "4.1.0"),
    ("llama2_70b_lora", "6.1.0"),
    ("llama31_405b", "6.0.0"),
    ("dlrm_dcnv2", "6.0.0"),
    ("rgat", "4.0.0"),
    ("flux1", "6.1.0"),
    ("qwen35_397b_grpo", "6.1.0"),
    ("deepcam", "3.0.0"),
    ("openfold", "3.0.0"),
]
MESSAGES = {
    "found": "RCP found",
    "interpolated": "RCP Interpolation",
    "smaller": "RCP not found but slower convergence on smaller batch size",
    "missing": "Missing RCP",
    "unconverged": "Insufficient convergence",
}


@pytest.mark.parametrize(("name", "ruleset"), SITUATIONS, ids=[f"{n}-{r}" for n, r in SITUATIONS])
def test_verdicts_on_folders_equal_the_official_checker(folder, name, ruleset):
    checker = pytest.importorskip("mlperf_logging.rcp_checker.rcp_checker")
    official = rules.resolve(name, ruleset)
    points = rcp.points_of(name, ruleset)
    sizes = [point.batch_size for point in points]
    between = (sizes[-2] + sizes[-1]) // 2
    seen = set()
    for number, (batch, speed, failed) in enumerate(
        [
            (sizes[0], 1.001, 0),
            (sizes[-1], 1.004, official.drop),
            (sizes[-1], 1.3, 0),
            (between, 1.003, 0),
            (between, 0.9, official.drop + 1),
            (sizes[-1] * 2, 1.0, 0),
            (max(1, sizes[0] // 2), 0.99, 0),
            (max(1, sizes[0] // 2), 1.5, 0),
        ]
    ):
        nearest = min(points, key=lambda point: abs(point.batch_size - batch))
        length = sum(nearest.lengths) / len(nearest.lengths) / speed
        logs = [
            log_of(
                name,
                ruleset,
                batch,
                round(length * (1 + 0.002 * (i % 3)), 3),
                i,
                "success" if i >= failed else "aborted",
            )
            for i in range(official.runs)
        ]
        path = folder(*logs, where=f"case_{number}")
        passed, message, factor = checker.check_directory(
            str(path), official.suite, ruleset, False, False, rcp_pass="pruned_rcps"
        )
        found = score(path, ruleset)
        assert found.verdict is not None
        seen.add(found.verdict.kind)
        assert found.verdict.passed == passed, (batch, speed, str(found.verdict), message)
        kind = found.verdict.kind
        if not (kind == "smaller" and not passed):
            assert message.startswith(MESSAGES[kind])
        if passed:
            assert found.factor == pytest.approx(factor, rel=1e-9)
    assert {"missing", "unconverged"} < seen


def timed(resnet_log, tmp_path, number, minutes, status="success"):
    """A complete log, with the times of a run that took so many minutes."""

    def spoil(method, key, value, metadata):
        time_ms = 10_000_000 + (minutes * MINUTE if key in ("run_stop", "eval_accuracy") else 0)
        metadata = metadata | {"time_ms": int(time_ms)}
        if key == "run_stop":
            metadata["status"] = status
        if key == "eval_accuracy" and status != "success":
            value = 0.1  # the official summary goes by this, whatever the status says
        return method, key, value, metadata

    return resnet_log(f"result_{number}.txt", division="closed", spoil=spoil, seed=number)


@pytest.mark.parametrize(
    ("minutes", "aborted"),
    [
        ((10, 11.5, 12, 13, 99), 0),
        ((10, 11.5, 12, 13, 99), 1),
        ((3, 4, 5, 6, 7), 2),
        ((3, 4, 7, 8), 0),
    ],
)
def test_minutes_equal_the_official_summary(resnet_log, tmp_path, minutes, aborted):
    summarizer = pytest.importorskip("mlperf_logging.result_summarizer.result_summarizer")
    for i, m in enumerate(minutes):
        timed(resnet_log, tmp_path, i, m, "aborted" if i < aborted else "success")
    (tmp_path / "scaling.json").write_text('{"scaling_factor": 1.25}')
    theirs, _, _ = summarizer._compute_strong_score_standalone(
        "resnet", "", False, str(tmp_path), "training", "4.0.0"
    )
    ours = score(tmp_path, "4.0.0", scaling="file")
    assert ours.minutes == (None if theirs is None else pytest.approx(theirs, rel=1e-12))
    assert (theirs is None) == (aborted == 2)


def test_the_official_compliance_checker_can_be_asked_too(resnet_log, tmp_path):
    pytest.importorskip("mlperf_logging.compliance_checker.mlp_compliance")
    for i in range(5):
        timed(resnet_log, tmp_path, i, 10 + i)
    text = (tmp_path / "result_2.txt").read_text()
    (tmp_path / "result_2.txt").write_text(text.replace('"eval_samples"', '"some_samples"'))
    assert score(tmp_path, "4.0.0").minutes == pytest.approx(12)
    found = score(tmp_path, "4.0.0", official=True)
    assert found.minutes == pytest.approx((11 + 13 + 14) / 3)
    assert "eval_samples" in said(found)
