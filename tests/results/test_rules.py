"""The table of rounds and targets, against the official package's own lists."""

import itertools
import re
import sys

import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.results import keys, rcp, rules
from mlperf_jax.results.closed import closed_violations
from mlperf_jax.results.log import Log, read
from mlperf_jax.results.opening import header

meta = pytest.importorskip("mlperf_logging.benchmark_meta")
CHECKER = rules.official_package() / "compliance_checker"
ROWS = list(rules.entries().values())


def names(suite):
    return [row for row in ROWS if row.suite == suite]


@pytest.mark.parametrize(
    ("suite", "name"),
    [(s, r) for s in ("training", "hpc") for r in rules.rounds_of(s) if r != "0.5"],
)
def test_rounds_and_log_names_equal_the_official_lists(suite, name):
    ours = {rules.resolve(row.name, name).log_name for row in names(suite) if name in row.rounds}
    official = set(meta.get_allowed_benchmarks(suite, name))
    if (suite, name) == ("training", "0.6"):
        official -= {"ncf"}  # withdrawn from that round; the package keeps the name
    assert ours == official


def test_runs_equal_the_official_counts():
    counts = {**meta.get_result_file_counts("training"), **meta.get_result_file_counts("hpc")}
    last = [rules.resolve(row.name) for row in ROWS]
    different = {each.benchmark for each in last if each.runs != counts[each.log_name]}
    assert different == {"ncf"}  # of v0.5, before the package


ALL = [rules.resolve(row.name, name) for row in ROWS for name in row.rounds]


def rule_file(official):
    return CHECKER / f"{official.suite}_{official.ruleset}" / f"closed_{official.log_name}.yaml"


CASES = [official for official in ALL if rule_file(official).exists()]


@pytest.mark.parametrize("official", CASES, ids=[f"{c.benchmark}-{c.round}" for c in CASES])
def test_targets_are_the_numbers_the_checker_demands(official):
    """The checker's own test must pass at the target and fail a hair below it."""
    text = rule_file(official).read_text()
    test = re.findall(r'ATLEAST_ONE_CHECK: *"(.*)"', text)[-1]
    scope = {"s": {"target_accuracy": _target_accuracy(text), "global_batch_size": 512}}
    targets = official.targets

    def passes(values):
        value = values if len(targets) > 1 else next(iter(values.values()))
        return eval(test, scope, {"v": {"value": value}})

    exact = {t.name: _edge(t, 0) for t in targets}
    assert passes(exact)
    for target in targets:
        assert not passes(exact | {target.name: _edge(target, -1)})


def _target_accuracy(text):
    found = re.search(r"'target_accuracy': *([\d.]+)", text)
    return float(found[1]) if found else None


def _edge(target, side):
    """The value at a target's bound (side 0), or just outside of it (side -1)."""
    hair = 1e-6
    if target.at_least is not None:
        return target.at_least + side * hair
    if target.at_most is not None:
        return target.at_most - side * hair
    return target.above + (hair if side == 0 else 0)


def test_every_benchmark_of_the_first_round_is_there():
    first = {row.name for row in names("training") if "0.5" in row.rounds}
    assert first == {"resnet", "ssd", "maskrcnn", "gnmt", "transformer", "ncf", "minigo"}


def test_every_round_has_a_target_and_a_number_of_runs():
    for official in ALL:
        assert official.targets, official
        assert official.runs > 2 * official.drop


def test_targets_by_round():
    assert str(rules.resolve("resnet", "0.5").targets[0]) == "accuracy at least 0.749"
    assert rules.resolve("resnet", "0.6").targets == rules.resolve("resnet", "4.0.0").targets
    assert [t.name for t in rules.resolve("maskrcnn").targets] == ["BBOX", "SEGM"]
    assert str(rules.resolve("gpt3").targets[0]) == "log_perplexity at most 2.69 and above 2.6"
    assert "8192" in str(rules.resolve("bert", "0.7").targets[0])
    assert rules.resolve("minigo", "0.6").runs == 20
    assert rules.resolve("minigo").runs == 10
    assert rules.resolve("unet3d").drop == 4


@pytest.mark.parametrize("given", ["4.0.0", "4.0", "v4.0"])
def test_a_round_may_be_spelled_in_three_ways_and_is_resolved_once(given):
    assert rules.resolve("resnet", given).round == "4.0"
    assert rules.resolve("resnet", given) is rules.resolve("resnet")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("9.0.0", "there is no ruleset '9.0.0'"),
        ("4.0.1", "there is no ruleset"),
        ("4", "there is no ruleset"),
        ("", "there is no ruleset"),
        ("../4.0", "there is no ruleset"),
        ("4.1.0", "not in 4.1"),
    ],
)
def test_rounds_that_are_not(given, says):
    with pytest.raises(UserError, match=re.escape(says)):
        rules.resolve("resnet", given)


def test_an_unknown_name_gets_a_hint():
    with pytest.raises(UserError, match="did you mean 'retinanet'"):
        rules.resolve("retinanett")
    with pytest.raises(UserError, match="'zzz'; known: bert, "):
        rules.resolve("zzz")


def test_an_official_name_that_meant_two_benchmarks():
    def meant(*given):
        return [(each.benchmark, each.round) for each in rules.by_log_name(*given)]

    assert meant("ssd")[4:6] == [("ssd", "1.1"), ("retinanet", "2.0")]
    assert meant("ssd")[-1] == ("retinanet", "4.1")
    assert meant("ssd", "1.1.0") == [("ssd", "1.1")]
    assert meant("ssd", "2.0.0") == [("retinanet", "2.0")]
    assert meant("gnn") == [("rgat", "4.0"), ("rgat", "4.1")]
    assert rules.by_log_name("nothing") == []


def test_targets_in_words_and_met():
    target = rules.Target("FID", at_most=90, above=0)
    assert target.words == str(target) == "FID at most 90 and above 0"
    assert [target.met({"FID": value}) for value in (0, 0.1, 90, 90.1, float("nan"))] == [
        False, True, True, False, False,
    ]  # fmt: skip
    (noted,) = rules.resolve("minigo", "0.6").targets
    assert (noted.words, str(noted)) == ("win_rate", "win_rate (beats the given checkpoint, 9x9)")


def test_a_benchmark_that_no_round_had_is_asked_for_nothing(tmp_path):
    wine = rules.Round(benchmark="wine", suite="training", round="6.1", log_name="wine")
    assert wine.ruleset == "6.1.0"
    assert (keys.required(wine), keys.quality_keys(wine, "open")) == ((), ("eval_accuracy",))
    assert keys.translate(wine, {"a": 1, "global_batch_size": 8}) == [
        ("a", 1, {}),
        ("global_batch_size", 8, {}),
    ]
    where = keys.position(wine, epochs=0.5, samples=40, steps=5, logged={})
    assert where == {"epoch_num": 0.5, "samples_count": 40}
    none = {"optimizer_replaced": False, "settings": {}, "targets": (), "eval_steps": ()}
    (sentence,) = closed_violations(wine, {}, **none)
    assert "wine v6.1 is not known to this version; run with division 'open'" in sentence
    with Log(tmp_path / "result_0.txt") as log:
        header(log, wine, division="open", org="a lab", platform="1 x cpu", status="research")
    assert read(tmp_path / "result_0.txt")[0].value == "wine"


def test_reference_points_of_resnet():
    points = rcp.points_of("resnet", "4.0.0")
    assert [p.batch_size for p in points] == sorted(p.batch_size for p in points)
    point = next(p for p in points if p.batch_size == 3264)
    assert point.hyperparameters["opt_base_learning_rate"] == 10.5
    assert len(point.lengths) == 15
    assert sum(point.lengths) / 15 == pytest.approx(35.2)


@pytest.mark.parametrize(
    "name", ["retinanet", "flux1", "llama2_70b_lora", "dlrm_dcnv2", "rgat", "cosmoflow", "openfold"]
)
def test_reference_points_have_lengths_under_either_field_name(name):
    points = rcp.points_of(name)
    assert points
    assert all(len(p.lengths) >= 5 for p in points)


def test_reference_points_of_a_renamed_benchmark():
    assert next(p.batch_size for p in rcp.points_of("rgat", "4.0")) == 4096


def test_reference_points_that_do_not_exist():
    with pytest.raises(UserError, match="no reference convergence points for resnet in training 0"):
        rcp.points_of("resnet", "0.7")


def test_the_official_package_may_be_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlperf_logging", None)
    with pytest.raises(UserError, match=re.escape('pip install "mlperf-jax[results]"')):
        rcp.points_of("resnet")


# ---- rounds and schedules


def test_benchmarks_of_a_round():
    assert [row.name for row in rules.in_round("5.1")] == [
        "retinanet",
        "flux1",
        "llama2_70b_lora",
        "llama31_405b",
        "llama31_8b",
        "dlrm_dcnv2",
        "rgat",
    ]
    assert rules.in_round("v5.1.0") == rules.in_round("5.1")
    assert len(rules.in_round("0.5")) == 7
    assert {row.suite for row in rules.in_round("3.0")} == {"training", "hpc"}
    assert len(rules.in_round("3.0", "hpc")) == 4
    with pytest.raises(UserError, match=r"there is no ruleset '9\.9'"):
        rules.in_round("9.9")
    with pytest.raises(UserError, match=r"there is no ruleset '5\.1'"):
        rules.in_round("5.1", "hpc")
    with pytest.raises(UserError, match="give one of training, hpc"):
        rules.in_round("3.0", "HPC")


def test_every_round_of_todays_form_has_a_schedule():
    for official in ALL:
        if official.round >= ("0.7" if official.suite == "training" else "1.0"):
            assert official.evaluation is not None, official
    assert rules.resolve("ssd", "0.6").evaluation is None


def first(name, batch, ruleset=None, samples=None):
    """The first two evaluations in samples."""
    steps = rules.resolve(name, ruleset).evaluation.steps(batch, samples)
    return [step * batch for step in itertools.islice(steps, 2)]


@pytest.mark.parametrize(
    ("name", "ruleset", "batch", "wanted"),
    [
        # (first, second) by the rules' own formulas, in samples
        ("flux1", None, 512, (262144, 524288)),
        ("flux1", None, 1000, (263000, 526000)),
        ("llama31_8b", None, 96, (12288, 24576)),
        ("gpt_oss_20b", None, 100, (12300, 24600)),
        ("llama31_405b", "5.0", 1152, (46080, 92160)),
        ("llama31_405b", "6.0", 1152, (15 * 18432, 16 * 18432)),
        ("llama31_405b", "5.1", 4608, (24 * 18432, 25 * 18432)),
        ("llama2_70b_lora", None, 8, (4 * 384, 5 * 384)),
        ("llama2_70b_lora", None, 128, (19 * 384, 20 * 384)),
        ("deepseekv3_671b", "6.0", 16384, (16384, 2 * 16384)),
        ("deepseekv3_671b", "6.1", 16384, (43 * 16384, 44 * 16384)),
        ("qwen35_397b_grpo", None, 256, (18 * 256, 19 * 256)),
        ("qwen35_397b_grpo", None, 1024, (7 * 1024, 8 * 1024)),
        ("dlrmv4", None, 16384, (31 * 140 * 16384, 32 * 140 * 16384)),
        ("dlrmv4", None, 32768, (41 * 70 * 32768, 42 * 70 * 32768)),
        ("dlrm_dcnv2", None, 55296, (3793 * 55296, 2 * 3793 * 55296)),
        ("gpt3", None, 1536, (24576, 2 * 24576)),
        ("stable_diffusion", None, 512, (512000, 1024000)),
        ("bert", "5.0", 8192, (28 * 8192, 55 * 8192)),  # every 225,000, rounded up
        ("bert", "0.7", 8192, (367 * 8192, 428 * 8192)),
        ("openfold", None, 256, (40 * 256, 80 * 256)),
    ],
)
def test_first_evaluations(name, ruleset, batch, wanted):
    assert first(name, batch, ruleset) == list(wanted)


def test_first_evaluations_by_epochs():
    assert first("unet3d", 28, samples=168) == [1000 * 168, 1020 * 168]
    assert first("unet3d", 64, samples=168) == [875 * 192, 893 * 192]
    assert first("ssd", 1024, "1.1", 117266) == [570 * 1024, 1140 * 1024]
    assert first("ssd", 1024, "1.0", 117266) == [4560 * 1024, 5700 * 1024]


POINTS = [
    (name, point)
    for name in (
        *("stable_diffusion", "flux1", "gpt3", "llama2_70b_lora", "llama31_405b", "llama31_8b"),
        *("gpt_oss_20b", "deepseekv3_671b", "qwen35_397b_grpo", "dlrmv4", "openfold"),
    )
    for point in rcp.points_of(name)
    # the reference evaluated this point every 12,384 samples, a step more than the rules say
    if (name, point.batch_size) != ("llama31_8b", 96)
]


@pytest.mark.parametrize(("name", "point"), POINTS, ids=[f"{n}-{p.batch_size}" for n, p in POINTS])
def test_reference_runs_ended_on_the_schedule(name, point):
    tokens = 2048 if name == "gpt3" else 1
    ends = {length / point.batch_size / tokens for length in point.lengths}
    steps = rules.resolve(name).evaluation.steps(point.batch_size)
    assert ends <= set(itertools.takewhile(lambda step: step <= max(ends), steps))
