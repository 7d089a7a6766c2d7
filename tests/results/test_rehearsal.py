"""Rehearsal logs of every benchmark and round, on the official checkers; and what spoils them."""

import functools
import json
import os
import re

import pytest
import rehearsal

from mlperf_jax.results import keys, rules
from mlperf_jax.results.compliance import check
from mlperf_jax.results.log import TOKEN, read

yaml = pytest.importorskip("yaml")
pytest.importorskip("mlperf_logging")
CHECKER = rules.official_package() / "compliance_checker"

every_round = pytest.mark.parametrize(("name", "ruleset"), rehearsal.ROUNDS)
newest = pytest.mark.parametrize(
    ("name", "ruleset"),
    [(row.name, row.rounds[-1]) for row in rules.entries().values() if row.name != "ncf"],
)


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """Returns a function that gives a rehearsal log's path; each is written once."""
    folder = tmp_path_factory.mktemp("rehearsal")

    @functools.cache
    def of(name, ruleset):
        return rehearsal.write(folder / f"{name}_{ruleset}.txt", name, ruleset)

    return of


PARSED = {}


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """Each of the checker's rule files is parsed once, and no log is synced to the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    slow = yaml.load

    def load(stream, Loader):
        text = stream.read()
        if text not in PARSED:
            PARSED[text] = slow(text, Loader=Loader)
        return PARSED[text]

    monkeypatch.setattr(yaml, "load", load)


def spoilt(path, target, change):
    """Writes a log line by line: `change` gets each line's members and returns them, or None."""
    kept = []
    for line in read(path):
        members = change(json.loads(line.text[len(TOKEN) :]))
        if members is not None:
            kept.append(f"{TOKEN} {json.dumps(members)}\n")
    target.write_text("".join(kept))
    return target


@every_round
def test_the_official_checker_accepts(logs, name, ruleset):
    report = check(logs(name, ruleset), ruleset, "closed")
    assert report.success, str(report)
    assert report.findings == ()


@every_round
def test_the_official_convergence_reader_reads_it(logs, name, ruleset):
    reader = pytest.importorskip("mlperf_logging.rcp_checker.rcp_checker")
    path = logs(name, ruleset)
    failed, length, batch, logged = reader.read_submission_file(str(path), f"{ruleset}.0", False)
    assert (failed, logged) == (0, rules.resolve(name, ruleset).log_name)
    assert batch == rehearsal.values(name)["global_batch_size"]
    last = [line for line in read(path) if line.key in ("eval_accuracy", "eval_error")][-1]
    counted = {
        last.metadata["epoch_num"],
        last.metadata["samples_count"],
        last.metadata.get("step_num"),
    }
    assert any(value is not None and length == round(value, 3) for value in counted)


@every_round
def test_a_missed_target_is_the_only_fault(logs, tmp_path, name, ruleset):
    missed = rehearsal.RECIPES[name]["qualities"][0]
    (wanted,) = keys.quality_keys(rules.resolve(name, ruleset), "closed")

    def miss(members):
        if members["key"] != wanted:
            return members
        metric = members["metadata"].get("metric")
        return members | {"value": missed[metric] if metric else missed}

    report = check(spoilt(logs(name, ruleset), tmp_path / "result_0.txt", miss), ruleset)
    wanted = "aggregated_eval_accuracy" if name == "stable_diffusion" else wanted
    assert not report.success
    assert {finding.key for finding in report.findings} == {wanted}
    assert "no line passes" in report.findings[0].expected


# the header decides which rules are loaded, and the order of these is tested with the checker itself
HEADER = {"submission_benchmark", "submission_division", "init_start", "init_stop", "run_start"}


@every_round
def test_lines_that_are_missing_are_all_missed(logs, tmp_path, name, ruleset):
    """All required lines but the header's left out at once; each is named, and nothing else."""
    values = rehearsal.values(name)
    needed = keys.required(rules.resolve(name, ruleset), values)
    # values that others depend on are left out alone, below
    depended = {"opt_name", "scheduler_type", *rules.data("keys.toml")["first"]}
    leave_out = {key for key in needed if key not in HEADER | depended}
    path = spoilt(
        logs(name, ruleset),
        tmp_path / "result_0.txt",
        lambda members: None if members["key"] in leave_out else members,
    )
    found = {finding.key for finding in check(path, ruleset).findings if finding.key}
    if "eval_accuracy" in leave_out and name == "stable_diffusion":
        found = found - {"aggregated_eval_accuracy"} | {"eval_accuracy"}
    assert found == leave_out


@newest
def test_each_line_that_is_missing_is_missed_alone(logs, tmp_path, name, ruleset):
    path = logs(name, ruleset)
    for key in keys.required(rules.resolve(name, ruleset), rehearsal.values(name)):

        def drop(members, key=key):
            return None if members["key"] == key else members

        report = check(spoilt(path, tmp_path / "result_0.txt", drop), ruleset)
        assert not report.success, key
        assert any(key in finding.official for finding in report.findings), (key, str(report))


def constrained(name, ruleset):
    """Keys of the benchmark's rule file whose value is checked, with the checks."""
    official = rules.resolve(name, ruleset)
    folder = CHECKER / f"{official.suite}_{official.ruleset}"
    found = {}
    for record in yaml.load(
        (folder / f"closed_{official.log_name}.yaml").open(), Loader=yaml.BaseLoader
    ):
        tests = record.get("KEY", {}).get("CHECK", [])
        tests = [tests] if isinstance(tests, str) else tests
        if any("v['value']" in test for test in tests):
            found[record["KEY"]["NAME"]] = tests
    return found


BAD = (-1, 0.5, 123456.789, "nonsense", [1, 2, 3])
NAMES = (
    "opt_name",
    "scheduler_type",
)  # these choose a rule file: other than a word they are not read


@every_round
def test_each_value_that_is_constrained_is_refused(logs, tmp_path, name, ruleset):
    """A wrong value of each key is refused under that key."""
    path = logs(name, ruleset)
    values = keys.spelled(rules.resolve(name, ruleset), rehearsal.values(name))
    for key in constrained(name, ruleset):
        if "eval_" in key and key not in values:
            continue

        def wrong(members, value, key=key):
            return members | {"value": value} if members["key"] == key else members

        def refused(value, key=key):
            log = spoilt(path, tmp_path / "result_0.txt", lambda m: wrong(m, value))
            return any(finding.key == key for finding in check(log, ruleset).findings)

        bad = BAD if key not in NAMES else ("nonsense",)
        assert any(refused(value) for value in bad), key


def test_first_evaluations_are_checked(tmp_path):
    """Where the checker wants the first evaluation at a certain sample, any other is refused."""
    for name in ("deepseekv3_671b", "qwen35_397b_grpo", "dlrmv4"):
        path = rehearsal.write(tmp_path / f"{name}.txt", name, "6.1")
        firsts = [
            line.metadata["samples_count"] for line in read(path) if line.key == "eval_accuracy"
        ]

        def later(members, first=firsts[0]):
            at = members["metadata"].get("samples_count")
            wrong = {**members["metadata"], "samples_count": first - 1}
            return members | {"metadata": wrong} if at == first else members

        report = check(spoilt(path, tmp_path / "spoilt.txt", later), "6.1")
        assert {finding.key for finding in report.findings} == {"eval_accuracy"}, name


@pytest.mark.parametrize("ruleset", ["5.1", "6.0", "6.1"])
def test_an_open_log_of_flux_bears_its_quality_twice(tmp_path, ruleset):
    path = rehearsal.write(tmp_path / "result_0.txt", "flux1", ruleset, division="open")
    assert check(path, ruleset, "open").success
    values = [line.value for line in read(path) if line.key == "averaged_validation_loss"]
    assert values == rehearsal.RECIPES["flux1"]["qualities"]


def test_no_line_but_its_own_bears_a_reserved_word(logs):
    for name, ruleset in rehearsal.ROUNDS:
        for line in read(logs(name, ruleset)):
            for word in re.findall(
                "global_batch_size|eval_accuracy|eval_error|submission_benchmark", line.text
            ):
                assert word == line.key
