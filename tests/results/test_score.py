"""Scores of sets of logs: the mean, the scaling, trees, and what is shown."""

import json
import re

import pytest
from score_sets import MINUTE, lines, resnet_set, said, write

from mlperf_jax.errors import UserError
from mlperf_jax.results.result import LEGEND, UNVERIFIED
from mlperf_jax.results.score import score, scores


@pytest.fixture
def folder(tmp_path):
    """Writes logs into a folder below the test's, and returns it."""
    return lambda *logs, where="set": write(tmp_path / where, *logs)


# ---- the mean


def test_olympic_mean(folder):
    found = score(folder(*resnet_set(10, 50, 12, 1, 14)), "4.0.0")
    assert found.minutes == pytest.approx(12)
    assert (found.benchmark, found.required, found.drop, found.valid) == ("resnet", 5, 1, True)
    assert [run.minutes for run in found.runs] == [10, 50, 12, 1, 14]
    assert (found.length, found.unit, found.batch_size) == (36, "epochs", 3264)
    assert found.runs[0].samples == 36 * 1281167
    assert found.samples_per_second == pytest.approx(
        36 * 1281167 / 60 * (1 / 10 + 1 / 50 + 1 / 12 + 1 + 1 / 14) / 5
    )
    assert found.mean_minutes == pytest.approx(87 / 5)


def test_a_run_that_did_not_converge_is_the_slowest(folder):
    logs = resnet_set(10, 11, 12, 13)
    found = score(folder(*logs, lines(1, seed=9, status="aborted")), "4.0.0")
    assert found.minutes == pytest.approx(12)
    assert found.valid
    assert "result_4.txt counts as not converged: its status is 'aborted'" in said(found)


def test_two_that_did_not_converge_make_no_score(folder):
    bad = lines(1, seed=9, status="aborted")
    found = score(folder(*resnet_set(10, 11, 12), bad, bad), "4.0.0")
    assert (found.minutes, found.valid) == (None, False)
    assert "2 of 5 runs did not converge; 1 may" in said(found)
    assert found.verdict.kind == "unconverged"


def test_unet3d_leaves_out_four_at_either_end(folder):
    logs = [
        lines(m, benchmark="unet3d", batch=56, seed=m, length=4e5, values=(0.1, 0.91))
        for m in range(1, 37)
    ]
    logs += [
        lines(1, benchmark="unet3d", batch=56, seed=99 + i, status="aborted") for i in range(4)
    ]
    found = score(folder(*logs), "4.0.0")
    assert found.minutes == pytest.approx(sum(range(5, 37)) / 32)
    assert (found.required, found.drop, found.unit, found.valid) == (40, 4, "samples", True)


@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_too_few_or_too_many_runs(folder, count):
    found = score(folder(*resnet_set(*range(10, 10 + count))), "4.0.0")
    assert not found.valid
    assert f"holds {count} " in said(found)
    assert (found.minutes is None) == (count <= 2)
    assert found.mean_minutes == pytest.approx(10 + (count - 1) / 2)
    assert (found.verdict is None) == (count <= 2)
    assert str(found)


def test_closed_results_are_scaled_to_the_reference(folder):
    logs = resnet_set(10, 10, 10, 10, 10, length=35)
    path = folder(*logs)
    found = score(path, "4.0.0")
    assert found.verdict.passed
    assert found.factor == pytest.approx(found.verdict.reference.mean / 35)
    assert found.minutes == pytest.approx(10 * found.factor)
    assert found.factor_source == "reference"
    assert score(path, "4.0.0", scaling="none").minutes == 10
    assert score(path, "4.0.0", scaling="file").minutes == 10
    (path / "scaling.json").write_text('{"scaling_factor": 1.5}')
    assert score(path, "4.0.0", scaling="file").minutes == pytest.approx(15)
    again = score(path, "4.0.0", scaling="rcp")
    assert again.minutes == found.minutes
    assert "scaling.json says 1.5" in said(again)


def test_too_fast_is_not_valid_and_not_scaled(folder):
    found = score(folder(*resnet_set(10, 10, 10, 10, 10, length=28)), "4.0.0")
    assert (found.minutes, found.valid, found.factor) == (10, False, 1)
    assert "not accepted" in str(found)


@pytest.mark.parametrize("text", ["{", "[]", '{"scaling_factor": "x"}', '{"scaling_factor": -1}'])
def test_a_damaged_scaling_file(folder, text):
    path = folder(*resnet_set(10, 10, 10, 10, 10))
    (path / "scaling.json").write_text(text)
    found = score(path, "4.0.0", scaling="file")
    assert found.minutes == 10
    assert not found.valid
    assert "scaling.json cannot be used" in said(found)


def test_open_results_are_not_compared_with_the_reference(folder):
    logs = resnet_set(10, 11, 12, 13, 14, division="open", length=2, values=(0.1, 0.2))
    found = score(folder(*logs), "4.0.0")
    assert (found.minutes, found.verdict, found.factor, found.valid) == (12, None, 1, True)
    assert "only closed results" in str(found)


def test_a_round_without_reference_points(folder):
    found = score(folder(*resnet_set(10, 11, 12, 13, 14)), "0.7")
    assert found.minutes == 12
    assert "no reference convergence points" in found.rcp_note
    assert found.valid


# ---- ours, and trees


def make_own(path, index, **result):
    run = path / f"run_{index}"
    run.mkdir()
    (run / "result.json").write_text(json.dumps(result))
    (run / "config.json").write_text(json.dumps({"config": {"size": "full"}}))


def test_a_tiny_set_is_labelled_and_never_judged(folder):
    path = folder(*resnet_set(1, 2, 3, 4, 5))
    for i in range(5):
        make_own(path, i, tiny=True, ruleset="4.0.0", device="cpu", device_count=1)
    found = score(path)
    assert (found.tiny, found.minutes, found.verdict, found.factor) == (True, 3, None, 1)
    assert (found.system.chip, found.system.chips) == ("cpu", 1)
    assert "(tiny, not comparable)" in str(found)
    assert "a tiny set is not compared with the reference" in str(found)
    assert found.valid


def test_a_tiny_run_that_has_not_ended_is_tiny_too(folder):
    path = folder(lines(1))
    (path / "run_0").mkdir()
    (path / "run_0" / "config.json").write_text('{"config": {"size": "tiny"}}')
    (path / "run_0" / "result.json").write_text("{")
    assert score(path).tiny


def test_runs_of_ours_under_different_rulesets(folder):
    path = folder(*resnet_set(1, 2, 3, 4, 5))
    for i in range(5):
        make_own(path, i, tiny=False, ruleset="4.0.0" if i else "3.1.0")
    found = score(path)
    assert "runs of different rulesets, 3.1.0 and 4.0.0" in said(found)
    assert not found.valid


@pytest.fixture
def tree(folder, tmp_path):
    for system, name in (("sys-a", "resnet"), ("sys-b", "resnet"), ("sys-b", "unet3d")):
        where = f"tree/lab/results/{system}/{name}"
        logs = resnet_set(10, 11, 12, 13, 14) if name == "resnet" else ["x"]
        folder(*logs, where=where)
    systems = tmp_path / "tree" / "lab" / "systems"
    systems.mkdir()
    (systems / "sys-a.json").write_text(
        json.dumps(
            {
                "submitter": "A Lab",
                "division": "Closed",
                "status": "Preview",
                "number_of_nodes": "2",
                "accelerators_per_node": "4",
                "accelerator_model_name": "chip <X>",
            }
        )
    )
    (systems / "sys-b.json").write_text("{")
    folder(["x"], where="tree/lab/results/sys-a/resnet/power/result_0.txt")
    folder(["x"], where="tree/lab/benchmarks/resnet/logs")
    return tmp_path / "tree"


def test_a_tree_is_scored_set_by_set(tree):
    found = scores(tree, "4.0.0")
    assert [one.folder.relative_to(tree).as_posix() for one in found] == [
        "lab/results/sys-a/resnet",
        "lab/results/sys-b/resnet",
        "lab/results/sys-b/unet3d",
    ]
    assert [one.minutes for one in found] == [12, 12, None]
    assert [one.valid for one in found] == [True, True, False]
    assert not found.valid
    first, second = found[0].system, found[1].system
    assert (first.org, first.division, first.chips, first.chip) == (
        "A Lab",
        "closed",
        8,
        "chip <X>",
    )
    assert (second.name, second.org, second.chips) == ("sys-b", "a lab", None)
    assert "has no system file that can be read, systems/sys-b.json" in said(found[1])
    text = str(found)
    assert "2 of 3 sets are valid as they are" in text
    assert text.count("unverified") >= 3
    assert "chip &lt;X&gt;" in found._repr_html_()
    assert json.dumps(found.to_dict())


def later(log, ms):
    return [
        re.sub(r'"time_ms": ([\d.]+)', lambda m: f'"time_ms": {float(m[1]) + ms}', text)
        for text in log
    ]


def test_weak_scaling_of_hpc(folder):
    logs = []
    for i in range(6):
        log = lines(10, benchmark="deepcam", seed=i, batch=128, values=(0.1, 0.83))
        logs.append(later(log, i * MINUTE))
    path = folder(*logs, where="lab/results/sys/weak/deepcam")
    found = score(path, "3.0.0")
    assert (found.suite, found.models, found.minutes) == ("hpc", 6, 15)
    assert "6 models in 15.000 minutes (unverified)" in str(found)
    strong = folder(*logs[:5], where="lab/results/sys/strong/deepcam")
    assert score(strong, "3.0.0").models is None


# ---- what is shown, and errors


def test_whatever_is_shown_has_the_notices(folder, tmp_path):
    path = folder(*resnet_set(10, 11, 12, 13, 14))
    found = score(path, "4.0.0")
    for shown in (str(found), found._repr_html_(), json.dumps(found.to_dict())):
        assert UNVERIFIED in shown
        assert LEGEND in shown
        assert "closed" in shown
    assert "unverified" in repr(found)
    assert "rules of training 4.0.0" in str(found)
    assert found.to_dict()["verified"] is False
    assert "more epochs than the reference mean: accepted" in str(found)


def test_a_single_set_is_shown_in_full(folder):
    path = folder(*resnet_set(10, 11, 12, 13, 14))
    assert str(scores(path, "4.0.0")) == str(score(path, "4.0.0"))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda p: scores(p / "nowhere"), "does not exist"),
        (lambda p: scores(p / "set" / "result_0.txt"), "is a file"),
        (lambda p: scores(p / "none"), "there is no result_*.txt in"),
        (lambda p: score(p / "none"), "there is no result_*.txt in"),
        (lambda p: score(p / "set", "9.9.9"), "there is no ruleset '9.9.9'"),
        (lambda p: score(p / "set", scaling="all"), "scaling is 'all'"),
    ],
)
def test_errors(folder, tmp_path, call, says):
    folder(lines())
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=re.escape(says)):
        call(tmp_path)
