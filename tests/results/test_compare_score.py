"""The comparison with the official tools, on small trees: what it counts, and that it sees a difference."""

import json
import pathlib
import sys

import pytest
import selection
from score_sets import MINUTE

sys.path.insert(0, str(selection.ROOT / "scripts"))

import compare_score

pytest.importorskip("mlperf_logging.result_summarizer.result_summarizer")


@pytest.fixture
def tree(resnet_log, tmp_path):
    """A round's tree with one closed set of resnet, of 10 to 14 minutes."""
    root = tmp_path / "training_results_v4.0"
    folder = root / "lab" / "results" / "box" / "resnet"
    folder.mkdir(parents=True)
    (root / "lab" / "systems").mkdir()
    (root / "lab" / "systems" / "box.json").write_text('{"division": "closed"}')

    def timed(minutes):
        def spoil(method, key, value, metadata):
            ends = key in ("run_stop", "eval_accuracy")
            at = 10_000_000 + (minutes * MINUTE if ends else 0)
            return method, key, value, metadata | {"time_ms": at}

        return spoil

    for i in range(5):
        log = resnet_log(division="closed", spoil=timed(10 + i), seed=i)
        log.rename(folder / f"result_{i}.txt")
    return root


def counted(found):
    return {word: n for word, n in found.outcomes.items() if n}


def test_equal_sides(tree, tmp_path):
    found = compare_score.compare(tree, tmp_path, False)
    assert counted(found) == {"equal": 1}
    assert (found.runs, found.logs, found.verdicts) == (5, 5, [1, 1])
    assert (found.valid[1], found.wrong) == (1, 0)
    kept = json.loads((tmp_path / "training_results_v4.0.json").read_text())
    assert kept["lab/results/box/resnet"]["minutes"] == pytest.approx(12)


def test_a_log_that_only_the_official_checker_refuses(tree):
    log = tree / "lab/results/box/resnet/result_0.txt"
    log.write_text(log.read_text().replace('"eval_samples"', '"some_samples"'))
    found = compare_score.compare(tree, None, False)
    assert counted(found) == {"different": 1}
    assert (found.runs, found.logs, found.wrong) == (4, 5, 1)
    assert any("result_0.txt" in said for said in found.differences)
    with_checker = compare_score.compare(tree, None, True)
    assert (counted(with_checker), with_checker.runs) == ({"equal": 1}, 5)


def test_a_set_without_a_score_is_compared_too(tree):
    folder = tree / "lab/results/box/resnet"
    for i in (0, 1):
        (folder / f"result_{i}.txt").write_text("")
    (folder.parent / "bert").mkdir()
    found = compare_score.compare(tree, None, False)
    assert counted(found) == {"neither": 2}
    assert (found.runs, found.logs) == (5, 5)


def test_filed_factors_are_the_official_minutes(tree):
    folder = tree / "lab/results/box/resnet"
    (folder / "scaling.json").write_text('{"scaling_factor": 1.5}')
    assert counted(compare_score.compare(tree, None, False)) == {"equal": 1}


@pytest.mark.parametrize(
    ("ours", "theirs", "word"),
    [
        (None, None, "neither"),
        (1.0, None, "theirs refused"),
        (None, 1.0, "ours refused"),
        (1.0, 1.0 + 1e-12, "equal"),
        (1.0, 1.1, "different"),
    ],
)
def test_outcomes(ours, theirs, word):
    assert compare_score._outcome(ours, theirs, 1e-9) == word


def test_a_set_that_ours_passes_over_is_a_difference():
    theirs = {"runs": {"result_0.txt": 3.0}, "minutes": 3.0, "error": ""}
    found = compare_score.Comparison("round")
    found.add("a/set", None, theirs, 1e-9)
    assert (counted(found), found.wrong, found.runs) == ({"ours refused": 1}, 1, 0)


def test_a_tree_is_named_as_its_round(tmp_path):
    with pytest.raises(SystemExit, match="is named as its round"):
        compare_score.compare(pathlib.Path(tmp_path), None, False)
