"""What the closed division refuses, each thing by name."""

import itertools
import json
import pathlib

import pytest
import rehearsal

from mlperf_jax.results import rules
from mlperf_jax.results.closed import closed_violations

VALUES = json.loads((pathlib.Path(__file__).parent / "resnet_values.json").read_text())
LARS, SGD, SIZES = VALUES["lars"], VALUES["sgd"], VALUES["sizes"]
TARGETS = (rules.Target("accuracy", at_least=0.759),)
EPOCH = 1281167 // 3264
SETTINGS = {
    "label_smoothing": 0.1,
    "base_lr": 10.5,
    "stages": (3, 4, 6, 3),
    "width": 64,
    "classes": 1000,
    "image_size": 224,
    "min_crop_area": 0.05,
    "flip": True,
    "clip_norm": None,
    "ema_decay": None,
}
RCP = {
    "optimizer_replaced": False,
    "settings": SETTINGS,
    "targets": TARGETS,
    "eval_steps": [e * EPOCH for e in (3, 7, 11, 15)],
}


def violations(values=LARS, ruleset="4.0.0", **changes):
    changed = {k: v for k, v in changes.items() if k not in RCP and k != "model_replaced"}
    rest = {k: v for k, v in changes.items() if k not in changed}
    official = rules.resolve("resnet", ruleset)
    return closed_violations(official, SIZES | values | changed, **(RCP | rest))


def only(found):
    assert len(found) == 1, found
    return found[0]


def test_the_reference_recipes_are_closed():
    assert violations(LARS) == []
    assert violations(SGD) == []
    assert violations(LARS, "3.1") == []
    assert violations(LARS, None) == []


@pytest.mark.parametrize(
    ("key", "bad", "allowed"),
    [
        ("opt_name", "muon", "'sgd' or 'lars'"),
        ("lars_opt_end_learning_rate", 1e-3, "0.0001"),
        ("lars_opt_learning_rate_decay_poly_power", 1, "2"),
        ("lars_epsilon", 1e-9, "0"),
        ("lars_opt_momentum", 0.95, "0.9"),
        ("lars_opt_weight_decay", 3e-5, "0.0001 times a power of two"),
        ("lars_opt_weight_decay", 0.0, "0.0001 times a power of two"),
        ("lars_opt_weight_decay", float("nan"), "0.0001 times a power of two"),
        ("train_samples", 1437, "1281167"),
        ("eval_samples", 360, "50000"),
        ("global_batch_size", 0, "values above 0"),
        ("global_batch_size", "3264", "values above 0"),
    ],
)
def test_each_lars_rule(key, bad, allowed):
    found = [sentence for sentence in violations(**{key: bad}) if sentence.startswith(key)]
    assert found
    assert f"{key} is {bad!r}; the closed division of resnet v4.0" in found[0]
    assert f"allows only {allowed}." in found[0]


@pytest.mark.parametrize(
    ("key", "bad", "allowed"),
    [
        ("sgd_opt_base_learning_rate", 1.7005, "whole multiples of 0.001"),
        ("sgd_opt_end_learning_rate", 0, "0.0001"),
        ("sgd_opt_learning_rate_decay_poly_power", 1, "2"),
        ("sgd_opt_learning_rate_decay_steps", -1, "values of at least 0"),
        ("sgd_opt_learning_rate_decay_steps", 0.5, "whole numbers"),
        ("sgd_opt_weight_decay", 1.1e-4, "0.0001 times a power of two"),
        ("sgd_opt_momentum", 0.95, "0.9"),
    ],
)
def test_each_sgd_rule(key, bad, allowed):
    sentence = only(violations(SGD, **{key: bad}))
    assert key in sentence
    assert allowed in sentence


@pytest.mark.parametrize("wd", [1e-4 * 2.0**n for n in range(-6, 4)] + [2.5e-5, 5e-5])
def test_weight_decay_by_powers_of_two(wd):
    assert violations(lars_opt_weight_decay=wd) == []


@pytest.mark.parametrize("lr", [0.001 * k for k in (1, 7, 1700, 10500, 99999)])
def test_sgd_learning_rates_by_thousandths(lr):
    assert violations(SGD, sgd_opt_base_learning_rate=lr) == []


def test_momentum_is_free_from_32k_on():
    steps = [e * (1281167 // 32768) for e in (3, 7, 11)]
    big = {"global_batch_size": 32768, "eval_steps": steps}
    assert violations(lars_opt_momentum=0.94, **big) == []
    assert "for global_batch_size < 32000" in only(violations(lars_opt_momentum=0.94))


@pytest.mark.parametrize("values", [LARS, SGD], ids=["lars", "sgd"])
def test_every_required_key_is_missed(values):
    for key in values:
        rest = {k: v for k, v in values.items() if k != key}
        if key == "model_bn_span" and values is LARS:
            continue  # required beside sgd only
        assert any(s.startswith(f"{key} is not logged") for s in violations(rest)), key


def test_settings_no_log_shows():
    assert violations(settings=SETTINGS | {"label_smoothing": 0.0}) == []
    for name, value, said in (
        ("label_smoothing", 0.2, "allows only 0.0 or 0.1"),
        ("image_size", 192, "allows only 224"),
        ("stages", (3, 4, 23, 3), "allows only [3, 4, 6, 3]"),
        ("clip_norm", 1.0, "allows only None"),
    ):
        assert said in only(violations(settings=SETTINGS | {name: value}))
    unsaid = {name: value for name, value in SETTINGS.items() if name != "label_smoothing"}
    assert only(violations(settings=unsaid)).startswith("label_smoothing is not stated")


def test_replaced_parts():
    assert only(violations(optimizer_replaced=True)).startswith("the optimizer was replaced")
    assert only(violations(model_replaced=True)).startswith("the model was replaced")


def test_targets():
    assert violations(targets=[rules.Target("accuracy", at_least=0.77)]) == []
    assert violations(targets=[rules.Target("accuracy", above=0.759)]) == []
    laxer = only(violations(targets=[rules.Target("accuracy", at_least=0.749)]))
    assert "is accuracy at least 0.749" in laxer
    assert "demands accuracy at least 0.759" in laxer
    assert "no target for accuracy" in only(violations(targets=[]))
    assert "at most" in only(violations(targets=[rules.Target("accuracy", at_most=0.759)]))


@pytest.mark.parametrize("offset", [1, 2, 3, 4])
@pytest.mark.parametrize("epoch", [EPOCH, EPOCH + 1])
def test_evaluation_every_four_epochs_with_any_offset(offset, epoch):
    assert violations(eval_steps=[(offset + 4 * i) * epoch for i in range(5)]) == []


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ([5 * EPOCH, 9 * EPOCH, 13 * EPOCH], "the first evaluation comes after"),
        ([0, 4 * EPOCH, 8 * EPOCH], "the first evaluation comes after 0 steps"),
        ([EPOCH, 2 * EPOCH, 3 * EPOCH], "evaluations come after"),
        ([4 * EPOCH, 8 * EPOCH, 13 * EPOCH], "evaluations come after"),
        ([4 * EPOCH], "only 1 evaluation"),
        ([], "only 0 evaluation"),
    ],
)
def test_other_evaluation_schedules(steps, says):
    sentence = only(violations(eval_steps=steps))
    assert says in sentence
    assert "every 4 epochs, the first within these, which is every 1568 to 1572 steps" in sentence


def test_a_tiny_run_is_not_a_closed_one():
    found = violations(
        global_batch_size=64,
        train_samples=1437,
        eval_samples=360,
        eval_steps=[22 * 4 * i for i in (1, 2, 3)],
    )
    assert {sentence.split(" is ")[0] for sentence in found} == {"train_samples", "eval_samples"}


def test_rules_that_are_not_in_the_table_refuse():
    assert "is not known to this version" in only(violations(ruleset="0.6"))
    found = closed_violations(rules.resolve("cosmoflow", "0.7"), {}, **(RCP | {"targets": ()}))
    assert "run with division 'open'" in only(found)


# ---- the other benchmarks, from the values of the rehearsal


def closed(name, ruleset=None, *, settings=None, eval_steps=None, **changes):
    """Violations of a benchmark's rehearsal recipe with some values changed."""
    official = rules.resolve(name, ruleset)
    values = rehearsal.values(name) | changes
    batch, samples = values["global_batch_size"], values["train_samples"]
    schedule = official.evaluation
    steps = list(itertools.islice(schedule.steps(batch, samples), 4)) if eval_steps is None else []
    return closed_violations(
        official,
        values,
        optimizer_replaced=False,
        settings=rehearsal.settings(name) | (settings or {}),
        targets=official.targets,
        eval_steps=eval_steps or steps,
    )


@pytest.mark.parametrize(("name", "ruleset"), rehearsal.ROUNDS)
def test_the_recipes_of_the_rehearsal_are_closed(name, ruleset):
    assert closed(name, ruleset) == []


@pytest.mark.parametrize(
    ("name", "ruleset", "change", "says"),
    [
        (
            "llama31_405b",
            None,
            {"opt_base_learning_rate": 1e-4},
            "value * 1152 == global_batch_size",
        ),
        ("llama31_405b", "5.0", {"global_batch_size": 18432}, "at most 9216"),
        ("llama31_405b", None, {"opt_learning_rate_warmup_steps": 1}, "allows only 8000"),
        ("llama31_8b", None, {"opt_end_learning_rate": 4e-5 * 1.1}, "4e-05 to within 1e-09"),
        ("llama31_8b", None, {"opt_learning_rate_decay_steps": 1200000}, "allows only 1199984"),
        ("gpt_oss_20b", "6.1", {"opt_end_learning_rate": 3.9e-5}, "to within 1e-09"),
        ("deepseekv3_671b", None, {"global_batch_size": 8192}, "at least 15360"),
        ("deepseekv3_671b", None, {"opt_base_learning_rate": 2.5e-5}, "to within 1e-09"),
        ("qwen35_397b_grpo", None, {"num_prompts_per_step": 17}, "num_prompts_per_step * value"),
        ("dlrmv4", None, {"opt_base_learning_rate": 2e-6}, "1.5e-6 * global_batch_size"),
        ("dlrmv4", None, {"opt_sparse_base_learning_rate": 2e-6}, "allows only 1e-06"),
        ("gpt3", None, {"opt_base_learning_rate": 3e-5}, "for global_batch_size < 3072"),
        ("maskrcnn", None, {"opt_base_learning_rate": 0.05}, "whole multiples of 0.02"),
        ("maskrcnn", None, {"opt_learning_rate_decay_steps": [12000, 15000]}, "whole multiple of"),
        ("ssd", None, {"opt_learning_rate_decay_boundary_epochs": [41, 51]}, "whole multiple of"),
        ("gnmt", None, {"opt_learning_rate_alt_decay_func": 1}, "true or false"),
        ("rnnt", None, {"opt_gradient_clip_norm": 2}, "1 or inf"),
        ("flux1", None, {"evaluation_frequency": 262143}, "allows only 262144"),
        ("minigo", None, {"global_batch_size": 0}, "train_batch_size"),
        ("bert", "1.0", {"gradient_accumulation_steps": 0}, "values above 0"),
        ("openfold", None, {"opt_amsgrad": 0}, "allows only False"),
        ("cosmoflow", None, {"dropout": 1.0}, "value < 1"),
    ],
)
def test_rules_of_other_benchmarks(name, ruleset, change, says):
    found = closed(name, ruleset, **change)
    assert any(says in sentence for sentence in found), found


def test_small_batches_of_maskrcnn_may_divide_the_rate():
    small = {"global_batch_size": 8, "opt_learning_rate_decay_steps": [144000, 192000]}
    assert closed("maskrcnn", "3.1", opt_base_learning_rate=0.01, **small) == []
    assert closed("maskrcnn", "1.1", opt_base_learning_rate=0.01, **small)
    rounded = {"global_batch_size": 272, "opt_learning_rate_decay_steps": [5294, 7058]}
    assert closed("maskrcnn", "3.1", opt_base_learning_rate=0.24, **rounded) == []


def test_settings_of_every_benchmark():
    assert "ema_decay is 0.99" in only(closed("unet3d", settings={"ema_decay": 0.99}))
    assert "clip_norm is 1.0" in only(closed("unet3d", settings={"clip_norm": 1.0}))
    assert closed("rnnt", settings={"ema_decay": 0.99}) == []


@pytest.mark.parametrize(
    ("name", "ruleset", "steps", "says"),
    [
        ("llama31_8b", None, [1, 2, 3], "the first after 768"),
        ("llama31_405b", "5.0", [16, 32, 48], "the first after 40"),
        ("deepseekv3_671b", "6.1", [1, 2, 3], "the first after 43"),
        ("bert", None, [1000, 2000, 3000], "the first after"),
        ("unet3d", None, [6000, 6020, 6040], "the first evaluation comes after 6000"),
        ("ssd", "1.0", [114 * 5, 114 * 10], "an evaluation comes after"),
    ],
)
def test_schedules_of_other_benchmarks(name, ruleset, steps, says):
    assert says in only(closed(name, ruleset, eval_steps=steps))
