"""The map of keys, against the official checker's own rule files."""

import ast
import dataclasses
import itertools
import math
import re
import sys

import pytest
import rehearsal

from mlperf_jax.errors import UserError
from mlperf_jax.results import constraints, formulas, keys, rules

yaml = pytest.importorskip("yaml")
pytest.importorskip("mlperf_logging")
CHECKER = rules.official_package() / "compliance_checker"

CASES = [(name, ruleset, {}) for name, ruleset in rehearsal.ROUNDS]
CASES += [("resnet", r, {"opt_name": "sgd"}) for n, r in rehearsal.ROUNDS if n == "resnet"]
CASES += [
    ("deepcam", r, {"opt_name": optimizer, "scheduler_type": schedule})
    for n, r in rehearsal.ROUNDS
    for optimizer in ("Adam", "LAMB")
    for schedule in ("multistep", "cosine_annealing")
    if n == "deepcam"
]
every_case = pytest.mark.parametrize(("name", "ruleset", "change"), CASES)


def records(file):
    """The rules of a file by key."""
    path = CHECKER / file
    loaded = yaml.load(path.read_text(), Loader=yaml.BaseLoader) or []
    return {record["KEY"]["NAME"]: record["KEY"] for record in loaded if "KEY" in record}


def official(name, ruleset, values):
    """The checker's rules of a closed log by key, later files overriding earlier ones."""
    row = rules.resolve(name, ruleset)
    folder = f"{row.suite}_{row.ruleset}"
    benchmark = f"closed_{row.log_name}"
    files = ["common", "closed_common", benchmark]
    if name == "resnet":
        files.append(f"{benchmark}_{values['opt_name']}")
    if name == "deepcam":
        files += [f"{benchmark}_lamb"] if values["opt_name"] == "LAMB" else []
        files.append(f"{benchmark}_{values['scheduler_type']}")
    return {key: rule for file in files for key, rule in records(f"{folder}/{file}.yaml").items()}


@every_case
def test_required_keys_equal_the_checkers(name, ruleset, change):
    values = rehearsal.values(name) | change
    wanted = {
        key
        for key, rule in official(name, ruleset, values).items()
        if rule.get("REQ") in ("EXACTLY_ONE", "AT_LEAST_ONE")
    }
    if name == "stable_diffusion":  # the checker makes it of the others itself
        wanted -= {"aggregated_eval_accuracy"}
    assert set(keys.required(rules.resolve(name, ruleset), values)) == wanted


VALUES = [
    *(-1, 0, 0.0, 0.1, 0.3, 0.5, 0.9, 0.95, 0.999, 1, 1.0, 2, 3, 4, 5, 7, 16, 20, 32, 42, 50, 168),
    *(264, 266, 300, 1000, 1024, 4000, 6000, 8192, 15359, 15360, 24000, 262144, math.inf),
    *(1e-8, 1e-5, 2e-5, 3e-5, 8e-5, 0.02, 0.03, 0.04, True, False, None, "adam", "adamw", "x", ""),
    *([], [1, 2], [60, 75], [41, 51], [12000, 16000]),
]


@every_case
def test_whatever_we_allow_the_checker_allows(name, ruleset, change):
    """Ours may be stricter than the checker, never laxer: a run that starts will not fail on it."""
    row = rules.resolve(name, ruleset)
    logged = keys.spelled(row, rehearsal.values(name) | change)
    given = row.allowed(logged)
    rule_of = official(name, ruleset, logged)
    for key, rule in rule_of.items():
        if key not in logged or "CHECK" not in rule:
            continue
        for value in VALUES:
            if not constraints.broken(
                value, given[key], {k: v for k, v in logged.items() if k != key}
            ):
                assert passes(key, value, rule_of, logged), (key, value, rule["CHECK"])


def passes(key, value, rule_of, logged):
    """Whether the checker's rule of a key passes a value, the other lines being as logged."""
    begin = {"train_samples": 2290835423}  # what one rule file sets at its beginning
    state = {"s": begin, "math": math, "is_integer": lambda x: abs(round(x) - x) < 1e-5}
    state["enqueue_config"] = lambda file: None
    before = {k: v for k, v in logged.items() if k in rule_of and k != key}
    for other, its in before.items():
        exec(rule_of[other].get("POST", "").strip(), state, {"v": {"value": its, "metadata": {}}})
    tests = rule_of[key]["CHECK"]
    tests = [
        test for test in ([tests] if isinstance(tests, str) else tests) if "metadata" not in test
    ]
    return all(eval(test.strip(), state, {"v": {"value": value}}) for test in tests)


def test_the_recipes_are_what_the_checker_passes_here():
    """So that the test above cannot pass by refusing everything."""
    for name, ruleset in rehearsal.ROUNDS:
        official = rules.resolve(name, ruleset)
        logged = keys.spelled(official, rehearsal.values(name))
        for key, given in official.allowed(logged).items():
            if key in logged:
                rest = {k: v for k, v in logged.items() if k != key}
                assert constraints.broken(logged[key], given, rest) == [], (name, ruleset, key)


# ---- the spelling


def logged(name, ruleset, **changes):
    lines = keys.translate(
        rules.resolve(name, ruleset),
        rehearsal.values(name) | changes,
        disclosure=rehearsal.DISCLOSURE,
    )
    return [line for line in lines if line[0] != "weights_initialization"]


def test_bert_had_another_name_for_epsilon():
    assert ("opt_epsilon", 1e-6, {}) in logged("bert", "2.0")
    assert ("opt_lamb_epsilon", 1e-6, {}) in logged("bert", "2.1")
    assert "opt_lamb_epsilon" not in dict(line[:2] for line in logged("bert", "0.7.0"))


def test_accumulation_is_logged_from_v1_0_on():
    assert "gradient_accumulation_steps" not in dict(line[:2] for line in logged("resnet", "0.7"))
    assert "gradient_accumulation_steps" in dict(line[:2] for line in logged("resnet", "1.0"))


def test_copies_are_made_where_the_benchmark_has_none():
    assert dict(line[:2] for line in logged("minigo", "2.1"))["train_batch_size"] == 4096
    assert (
        dict(line[:2] for line in logged("minigo", "2.1", train_batch_size=5))["train_batch_size"]
        == 5
    )
    found = dict(line[:2] for line in logged("deepcam", "3.0", gradient_accumulation_steps=4))
    assert found["gradient_accumulation_frequency"] == 4


def test_flux_evaluated_after_a_fixed_number_of_samples():
    change = {"global_batch_size": 1000, "evaluation_frequency": 263000}
    assert ("evaluation_frequency", 262144, {}) in logged("flux1", "6.0", **change)
    assert ("evaluation_frequency", 263000, {}) in logged("flux1", "6.1", **change)


def test_a_key_may_be_metadata_of_another():
    lines = logged("transformer", "0.7")
    assert ("max_sequence_length", 80, {"method": "discard"}) in lines
    assert "max_sequence_length_method" not in dict(line[:2] for line in lines)


@pytest.mark.parametrize(("name", "ruleset"), rehearsal.ROUNDS)
def test_lines_that_others_are_checked_against_come_first(name, ruleset):
    order = [line[0] for line in logged(name, ruleset)]
    assert len(order) == len(set(order))
    for key, given in rules.resolve(name, ruleset).allowed(rehearsal.values(name)).items():
        for constraint in given:
            bounds = [
                b for k, b in constraint.items() if k in ("formula", "near", "holds", "where")
            ]
            for needed in set().union(*(formulas.names_in(bound) for bound in bounds)) - {"value"}:
                if key in order and constraint.get("written") is None:
                    assert order.index(needed) < order.index(key), (key, needed)


@pytest.mark.parametrize(
    ("name", "ruleset", "count", "one"),
    [
        ("resnet", "2.0", 161, "stage1_unit1_conv1sc_weight"),
        ("bert", "1.1", 398, "cls/seq_relationship/output_bias"),
        ("ssd", "1.1", 119, "ssd0_convpredictor5_conv0_bias"),
        ("retinanet", "2.1", 89, "module.backbone.fpn.inner_blocks.0.bias"),
        ("dlrm", "2.1", 9, "top_mlp_dense5"),
        ("rnnt", "1.0", 7, "joint_net"),
        ("minigo", "1.1", 48, "global_step"),
        ("unet3d", "1.0", 0, ""),
        ("minigo", "2.0", 0, ""),
        ("rnnt", "3.0", 0, ""),
    ],
)
def test_names_of_tensors(name, ruleset, count, one):
    official = rules.resolve(name, ruleset)
    tensors = keys.initialized_tensors(official)
    assert len(tensors) == len(set(tensors))
    assert not one or one in tensors
    lines = keys.translate(official, rehearsal.values(name))
    named = [line[2]["tensor"] for line in lines if line[0] == "weights_initialization"]
    assert named == list(tensors)
    assert len(tensors) == count


@pytest.mark.parametrize(("name", "ruleset"), rehearsal.ROUNDS)
def test_names_of_tensors_are_those_the_checker_wants(name, ruleset):
    official = rules.resolve(name, ruleset)
    file = CHECKER / f"{official.suite}_{official.ruleset}" / f"closed_{official.log_name}.yaml"
    ends = [part["END"] for part in yaml.load(file.read_text(), yaml.BaseLoader) if "END" in part]
    wanted = (
        ast.literal_eval(re.search(r"== sorted\((.*)\)", ends[0]["CHECK"], re.S)[1]) if ends else []
    )
    assert sorted(keys.initialized_tensors(official)) == sorted(wanted)


def test_an_open_log_names_no_tensors():
    lines = keys.translate(
        rules.resolve("resnet", "2.0"), rehearsal.values("resnet"), division="open"
    )
    assert "weights_initialization" not in {line[0] for line in lines}


def test_tensors_need_the_official_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlperf_logging", None)
    with pytest.raises(UserError, match="pip install"):
        keys.translate(rules.resolve("resnet", "2.0"), rehearsal.values("resnet"))
    assert keys.translate(rules.resolve("resnet", "4.0"), rehearsal.values("resnet"))


# ---- disclosure


def test_the_nine_disclosure_keys():
    found = dict(line[:2] for line in logged("llama31_8b", "6.1"))
    assert {key: found[key] for key in list(found)[-9:]} == {
        "lowest_numerical_precision_in_linear": "bfloat16",
        "lowest_numerical_precision_in_attn": "bfloat16",
        "lowest_numerical_precision_in_comm": "fp32",
        "tensor_parallelism": 2,
        "pipeline_parallelism": 1,
        "context_parallelism": 1,
        "expert_parallelism": 1,
        "micro_batch_size": 1,
        "config_filename": "rehearsal.toml",
    }
    assert "micro_batch_size" in dict(line[:2] for line in logged("llama31_8b", "6.0"))
    assert "micro_batch_size" not in dict(line[:2] for line in logged("llama31_8b", "5.1"))


def test_disclosure_may_be_left_out_where_it_is_optional():
    values = rehearsal.values("llama31_8b")
    assert keys.translate(rules.resolve("llama31_8b", "6.0"), values)
    with pytest.raises(
        UserError, match=r"discloses lowest_numerical_precision_in_linear, .*config_f"
    ):
        keys.translate(rules.resolve("llama31_8b", "6.1"), values)
    with pytest.raises(UserError, match="discloses number_of_nodes"):
        keys.translate(rules.resolve("cosmoflow", "3.0"), rehearsal.values("cosmoflow"))


@pytest.mark.parametrize(
    ("change", "ruleset", "says"),
    [
        ({"linear": "mxfp6"}, "6.0", "in_linear is 'mxfp6'"),
        ({"attention": "bf16"}, "6.1", "in_attn is 'bf16'; a log of v6.1 allows only 'fp64' or"),
        ({"tensor": 0}, "6.1", "tensor_parallelism is 0"),
        ({"expert": 1.5}, "6.1", "whole numbers"),
        ({"micro_batch_size": "2"}, "6.1", "micro_batch_size is '2'"),
        (
            {"config_filename": " "},
            "6.1",
            "config_filename is ' '; a log of v6.1 allows only a text",
        ),
    ],
)
def test_disclosures_that_cannot_be_logged(change, ruleset, says):
    disclosure = dataclasses.replace(rehearsal.DISCLOSURE, **change)
    with pytest.raises(UserError, match=says):
        keys.translate(
            rules.resolve("llama31_8b", ruleset),
            rehearsal.values("llama31_8b"),
            disclosure=disclosure,
        )


# ---- qualities and positions


def test_keys_of_the_quality():
    assert keys.quality_keys(rules.resolve("resnet"), "open") == ("eval_accuracy",)
    assert keys.quality_keys(rules.resolve("oc20", "1.0.0"), "closed") == ("eval_error",)
    assert keys.quality_keys(rules.resolve("flux1"), "closed") == ("eval_accuracy",)
    assert keys.quality_keys(rules.resolve("flux1"), "open") == (
        "eval_accuracy",
        "averaged_validation_loss",
    )


@pytest.mark.parametrize(
    ("name", "ruleset", "epoch_num"),
    [
        ("resnet", None, 0.5),
        ("unet3d", "3.0", 0.5),
        ("unet3d", "3.1", 1000),
        ("bert", "1.0", 1000),
        ("openfold", "3.0", 1000),
        ("gpt3", "4.1", 2048000),
        ("dlrm", "0.7", 1.5),
        ("dlrm_dcnv2", None, 0.5),
        ("llama31_8b", None, 0.5),
    ],
)
def test_what_epoch_num_counts(name, ruleset, epoch_num):
    found = keys.position(
        rules.resolve(name, ruleset),
        epochs=0.5,
        samples=1000,
        steps=10,
        logged=rehearsal.values(name),
    )
    assert found == {"epoch_num": epoch_num, "samples_count": 1000}


def test_steps_are_counted_for_stable_diffusion_at_first():
    where = {"epochs": 0.5, "samples": 1000, "steps": 10, "logged": {}}
    assert keys.position(rules.resolve("stable_diffusion", "3.1"), **where)["step_num"] == 10
    assert "step_num" not in keys.position(rules.resolve("stable_diffusion", "4.0"), **where)


# ---- the data


def test_every_change_of_the_map_is_of_a_benchmark_and_its_rounds():
    for name, changes in rules.data("keys.toml").items():
        for change in changes if name != "first" else []:
            row = rules.entry(name)
            assert set(rules.span(change.get("rounds", row.rounds[0]), row.suite)) <= set(
                row.rounds
            )


KINDS = {"equals", "one_of", "unset", "above", "at_least", "at_most", "integer", "multiple_of"}
KINDS |= {"power_of_two_times", "formula", "near", "holds", "length", "item_multiples", "type"}


def groups():
    for suite, file in (("training", "closed.toml"), ("hpc", "closed_hpc.toml")):
        common = rules.data("common.toml")[suite]
        yield None, suite, common["keys"] | common["settings"]
        for name, rule in rules.data(file).items():
            assert set(rules.span(rule["rounds"], suite)) <= set(rules.entry(name).rounds)
            assert set(rule) <= {"rounds", "keys", "when", "settings"}
            yield rule, suite, rule.get("keys", {}) | rule.get("settings", {})
            for cases in rule.get("when", {}).values():
                for case in cases.values():
                    yield rule, suite, case


def test_every_constraint_of_the_data_is_known():
    """A typo in the data is found here, not in a user's run."""
    for rule, suite, group in groups():
        for key, given in group.items():
            for constraint in given if isinstance(given, list) else [given]:
                assert set(constraint) <= KINDS | set(constraints.MODIFIERS), key
                covered = rules.span(rule["rounds"], suite) if rule else rules.rounds_of(suite)
                assert set(rules.span(constraint.get("rounds", covered[0]), suite)) <= set(covered)
                for bound in constraint.values():
                    if isinstance(bound, str) and {"formula", "near", "holds", "where"} & set(
                        constraint
                    ):
                        formulas.names_in(bound) if bound[0] not in "0123456789" else None
                constraints.broken(1.5, [constraint], dict.fromkeys(itertools.chain(group), 2.0))


def test_every_benchmark_has_closed_rules_from_its_first_round_of_this_form():
    for name, ruleset in rehearsal.ROUNDS:
        assert rules.resolve(name, ruleset).own is not None, (name, ruleset)
    assert rules.resolve("resnet", "0.6").own is None
    assert rules.resolve("deepcam", "0.7").own is None
    assert rules.resolve("ncf").own is None
