"""The official compliance checker, run on our logs and put into plain words.

The verdict is the checker's own (`mlperf_logging.compliance_checker`); only the wording of what it
found is ours, and `Finding.official` keeps its text.
"""

import collections
import dataclasses
import json
import logging
import os
import pathlib
import re
import threading

from mlperf_jax.errors import UserError, optional, printable
from mlperf_jax.paths import check_path
from mlperf_jax.results import early, log, logset, rules, sane, system
from mlperf_jax.results.finding import Finding
from mlperf_jax.results.result import rows_table

# These values name the rule files that the checker loads, and rule files are code: a log from
# elsewhere must not choose a file by a path.
_NAMES_A_FILE = ("submission_benchmark", "submission_division", "opt_name", "scheduler_type")

_one_at_a_time = threading.Lock()  # the checker keeps its queue of rule files in a module global


@dataclasses.dataclass(frozen=True)
class Report:
    """The verdict over one log or a set of them.

    Attributes:
        success: whether the official checker accepts every log, and nothing in them is what cannot be (`sane`).
        findings: what it found, in the order of the files.
        raw: the checker's text, unchanged.
        ruleset: the rules that were applied, such as "4.0.0".
        benchmark: the logged name.
        files: the logs that were read.
    """

    success: bool
    findings: tuple[Finding, ...]
    raw: str
    ruleset: str
    benchmark: str
    files: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([self._verdict(), *(f"  {finding}" for finding in self.findings)])

    def _verdict(self) -> str:
        logs = self.files[0] if len(self.files) == 1 else f"{len(self.files)} logs"
        rules = f"({self.benchmark}, ruleset {self.ruleset})"
        theirs = any(found.official and not found.warning for found in self.findings)
        if self.success or theirs:
            verdict = (
                f"{'passes' if self.success else 'does not pass'} the official checker {rules}"
            )
        else:
            verdict = f"does not pass, though the official checker says nothing against it {rules}"
        return printable(f"{logs}: {verdict}")

    def _repr_html_(self) -> str:
        rows = [
            (f"{f.file}:{f.line or ''}".rstrip(":"), f.key, f.expected, f.advice)
            for f in self.findings
        ]
        return rows_table(self._verdict(), ("log", "key", "what the rules want", "advice"), rows)


def check(
    path: os.PathLike | str, ruleset: str | None = None, division: str | None = None
) -> Report:
    """Runs the official compliance checker on a log, or on every `result_*.txt` of a folder.

    Args:
        path: a log, or the output folder of a run.
        ruleset: the rules to apply. By default what our runs say, then what the name of a round's repository
            above the folder says, then those of the last round that ran the logged benchmark.
        division: "closed" or "open" when the log must be of that division; whatever it says by default.

    Raises:
        UserError: there is no log, it is unreadable or of an unknown benchmark, the ruleset does not
            exist or has no official checker, or the official package is not installed.
    """
    if division not in (None, "closed", "open"):
        raise UserError(f"division is {division!r}; give 'closed' or 'open'")
    paths = _logs(check_path(path, "the log"))
    contents, refused = _readable(paths)
    refused += _of_others(contents)
    form = early.form(next(iter(contents.values()))[0].text)
    name, official, version = _benchmark(contents, ruleset or early.ROUNDS.get(form))
    suite = official.suite if official else "training"
    if rules.checker(suite, version) is None and (form, version) != (early.V06, "0.6.0"):
        raise UserError(
            f"there is no official checker for logs of this format under ruleset {version}; "
            f"the oldest is {'0.7.0' if form == early.TODAY else '0.6.0'}"
        )
    findings: list[Finding] = [*refused]
    raw: list[str] = []
    for p, lines in contents.items():
        found, text = _check_one(p, lines, suite, version, division)
        findings += found
        raw.append(text)
    said = {(found.file, found.line, found.key) for found in findings if not found.warning}
    judged = sane.findings([logset.read(p) for p in contents], official)
    findings += [f for f in judged if (f.file, f.line, f.key) not in said]
    if official and pathlib.Path(path).is_dir():
        findings += _whole_set(contents, official.runs)
    return Report(
        success=all(finding.warning for finding in findings),
        findings=tuple(findings),
        raw="\n".join(text for text in raw if text),
        ruleset=version,
        benchmark=name,
        files=tuple(str(p) for p in paths),
    )


# ---- what is checked


def _logs(path: pathlib.Path) -> list[pathlib.Path]:
    if not path.exists():
        raise UserError(f"{path} does not exist; give a log or the output folder of a run")
    if not path.is_dir():
        return [path]
    numbered = []
    for p in path.iterdir():
        match = re.fullmatch(r"result_(\d+)\.txt", p.name)
        if match:
            numbered.append((int(match[1]), p))
    if not numbered:
        raise UserError(
            f"the folder {path} has no result_0.txt; give the folder that a run was told as its output"
        )
    return [p for _, p in sorted(numbered)]


def _readable(
    paths: list[pathlib.Path],
) -> tuple[dict[pathlib.Path, list[log.Line]], list[Finding]]:
    """The lines of those logs that can be judged, and what is wrong with each of the others.

    Raises:
        UserError: none can be judged.
    """
    contents: dict[pathlib.Path, list[log.Line]] = {}
    errors: dict[pathlib.Path, UserError] = {}
    for path in paths:
        try:
            contents[path] = harmless(path)
        except UserError as error:
            errors[path] = error
    if not contents:
        raise next(iter(errors.values()))
    return contents, [
        Finding(str(p), "", f"{error}.", official=str(error)) for p, error in errors.items()
    ]


def _of_others(contents: dict[pathlib.Path, list[log.Line]]) -> list[Finding]:
    """Takes out the logs of other benchmarks than most are of, and says so of each."""
    names = {
        path: next((str(line.value) for line in lines if line.key == "submission_benchmark"), "")
        for path, lines in contents.items()
    }
    (name, most), *others = collections.Counter(filter(None, names.values())).most_common() or [
        ("", 0)
    ]
    if not others or others[0][1] == most:
        return []
    odd = [path for path, said in names.items() if said not in ("", name)]
    for path in odd:
        del contents[path]
    says = "is {!r}, and {!r} in {} logs, so this one was not checked."
    return [
        Finding(str(path), "submission_benchmark", says.format(names[path], name, most))
        for path in odd
    ]


def harmless(path: pathlib.Path) -> list[log.Line]:
    """The lines of a log that lets the official checkers load no file of the log's own choice.

    Raises:
        UserError: it names a file to them, has a line without end, or cannot be read and so cannot be judged.
    """
    lines = log.read(path)
    if not lines:
        raise UserError(f"the log {path} is {log.no_log(path)}: give a result_*.txt of a run")
    for line in lines:
        if len(line.text) > log.LONGEST:
            said = log.too_long(len(line.text)).removeprefix("it ")
            raise UserError(f"line {line.lineno} of {path} {said}; restore what the run logged")
        if line.key in _NAMES_A_FILE and not re.fullmatch(r"\w+", str(line.value)):
            raise UserError(
                f"line {line.lineno} of {path} has {line.value!r} as its {line.key}, which is not a name; "
                "restore what the run logged"
            )
    return lines


def _benchmark(
    contents: dict[pathlib.Path, list[log.Line]], ruleset: str | None
) -> tuple[str, rules.Round | None, str]:
    """The logged benchmark, its rules (None without a line that names it), and the ruleset to apply."""
    names: dict[str, pathlib.Path] = {}
    for path, lines in contents.items():
        for line in lines:
            if line.key == "submission_benchmark":
                names.setdefault(str(line.value), path)
    if not names:
        if ruleset is None:
            raise UserError(
                f"{next(iter(contents))} does not say which benchmark it is of (it has no "
                "submission_benchmark line), so the ruleset must be given"
            )
        return "unknown", None, f"{rules.round_name(ruleset)}.0"
    if len(names) > 1:
        where = ", ".join(f"{name} in {path.name}" for name, path in names.items())
        raise UserError(f"the logs are of different benchmarks ({where}); give one set's folder")
    name, path = next(iter(names.items()))
    found = rules.by_log_name(name)
    if not found:
        raise UserError(
            f"{path} is of {name!r}, which no round had: there are no official rules to check it by"
        )
    if ruleset is None:
        ruleset = _stated(list(contents), name)
    # An official name may have changed hands or been given up: the last round that used it.
    official = found[-1]
    if ruleset is not None:
        of_round = rules.by_log_name(name, ruleset)
        official = of_round[0] if of_round else rules.resolve(official.benchmark, ruleset)
    return name, official, official.ruleset


def _stated(paths: list[pathlib.Path], name: str) -> str | None:
    """The round that our run folders or the name of a results repository say, as `score` takes it."""
    folder = paths[0].parent
    own = {run.ruleset for run in system.own_runs(folder, paths).values() if run.ruleset}
    said = min(own) if len(own) == 1 else rules.round_above(folder)
    return said if said and rules.by_log_name(name, said) else None


def _whole_set(contents: dict[pathlib.Path, list[log.Line]], runs: int) -> list[Finding]:
    """What the official package checker would add for a closed set: the number of runs, and seeds."""
    lines = [line for each in contents.values() for line in each]
    if not any(line.key == "submission_division" and line.value == "closed" for line in lines):
        return []
    folder = str(next(iter(contents)).parent)
    found = []
    if len(contents) != runs:
        said = f"a closed result is made of {runs} runs; here are {len(contents)}."
        advice = "Run the missing ones with the same output folder."
        found.append(Finding(folder, "", said, advice, warning=True))
    seeds = collections.Counter(str(line.value) for line in lines if line.key == "seed")
    repeated = ", ".join(seed for seed, n in seeds.items() if n > 1)
    if repeated:
        said = f"every run of a closed set needs a seed of its own; repeated: {repeated}."
        found.append(Finding(folder, "seed", said, "Let each run draw its seed.", warning=True))
    return found


# ---- the official checker


def _check_one(
    path: pathlib.Path, lines: list[log.Line], suite: str, version: str, division: str | None
) -> tuple[list[Finding], str]:
    said = _run_checker(path, suite, version)
    findings = [_finding(path, lines, key, text, warning) for key, text, warning in said]
    stated = next((line for line in lines if line.key == "submission_division"), None)
    if division is not None and stated is not None and stated.value != division:
        expected = f"is {stated.value!r}, but {division!r} was asked for."
        advice = f"Run it with division {division!r}."
        findings.append(Finding(str(path), stated.key, expected, advice, line=stated.lineno))
    return _in_order(findings), "\n".join(text for _, text, _ in said)


def _in_order(findings: list[Finding]) -> list[Finding]:
    """By line, then those about missing lines; the checker says some things twice, in any order."""
    once = {(f.line, f.key, f.expected): f for f in findings}
    return sorted(
        once.values(),
        key=lambda f: (f.line is None, f.line or 0, not f.key, "" if f.key else f.expected),
    )


def _run_checker(path: pathlib.Path, suite: str, version: str) -> list[tuple[str, str, bool]]:
    """(key, text, is it a warning) of what the checker says."""
    what = "the official checker"
    official = optional("mlperf_logging.compliance_checker.mlp_compliance", "results", what)
    parser = optional("mlperf_logging.compliance_checker.mlp_parser", "results", what)
    silent = logging.NullHandler()
    root = logging.getLogger()
    with _one_at_a_time:
        root.addHandler(silent)  # else the checker's logging call would configure ours
        checker = official.make_checker(suite, version, False, False)
        try:
            loglines, broken = parser.parse_file(str(path), ruleset=version)
            for text, error in broken:
                checker.put_message(f"Log lines had parsing errors: {error}\n{text}")
            checker.check_loglines(loglines, f"{suite}_{version}/common.yaml")
        except Exception as error:
            # The checker ends with a traceback on values it did not expect. A rule file that is not
            # there it has reported itself before.
            if not isinstance(error, FileNotFoundError):
                checker.put_message(f"The checker stopped: {type(error).__name__}: {error}")
        finally:
            official.enqueued_configs.clear()
            root.removeHandler(silent)
    errors = [*checker.overwritable.items(), *(("", text) for text in checker.not_overwritable)]
    return [(*said, False) for said in errors] + [
        (*said, True) for said in checker.warnings.items()
    ]


# ---- its words in ours


def _finding(
    path: pathlib.Path, lines: list[log.Line], key: str, text: str, warning: bool
) -> Finding:
    line = _line_of(lines, text)
    if not key:
        named = re.match(r"Failed checks for (\w+) :", text)
        key = named[1] if named else line.key if line else ""
    lineno = line.lineno if line else None
    return Finding(str(path), key, _expected(text, line), _advice(text, key), text, lineno, warning)


def _line_of(lines: list[log.Line], text: str) -> log.Line | None:
    """The log line a message quotes: the checker counts only lines with the token, so not by number."""
    numbered = re.match(r"CHECK for '.*' failed in line (\d+):", text)
    if numbered and int(numbered[1]) < len(lines):
        return lines[int(numbered[1])]
    quoted = set(text.split("\n"))
    return next((line for line in lines if line.text in quoted), None)


def _expected(text: str, line: log.Line | None) -> str:
    match = re.match(r"Required (\S+) occurrence of (.*?) ?but found (\d+)(.*)", text, re.DOTALL)
    if match:
        how_often, _, found, rest = match.groups()
        wanted = {"EXACTLY_ONE": "exactly one line", "AT_LEAST_ONE": "at least one line"}.get(
            how_often, f"at least {''.join(re.findall(r'[0-9]+', how_often))} lines"
        )
        values = rest.partition(": [")[2].rstrip("]")
        have = "none" if found == "0" else found + (f", with the values {values}" if values else "")
        return f"{wanted} is required; the log has {have}."
    match = re.match(r"Required AT_LEAST_ONE occurrence of (.* or .*)", text)
    if match:
        keys = " or ".join(sorted(re.findall(r"'(\w+)'", match[1])))
        return f"at least one line with {keys} is required; the log has none."
    match = re.match(r"Failed checks for \w+ : (.*)", text, re.DOTALL)
    if match:
        return f"no line passes: at least one must satisfy {_in_words(match[1])}."
    match = re.search(r"^failed test: (.*)", text, re.MULTILINE)
    if match:
        tests_value = line is not None and "v['value']" in match[1]
        have = f"has the value {json.dumps(line.value)}; " if line and tests_value else ""
        return f"{have}the rules demand {_in_words(match[1])}."
    match = re.match(r"Failed executing CHECK code:\n(.*)", text)
    if match and line:
        return f"the value {json.dumps(line.value)} cannot be tested; the rules demand {_in_words(match[1])}."
    match = re.match(r"Could not find config file: .*?(\w+)\.yaml", text)
    if match:
        return f"there are no rules named {match[1]}, so what they would ask was not checked."
    if text.startswith("The checker stopped"):
        return "the checker itself ended with an error: a value has a type that it does not know."
    return text.split("\n")[0].strip() + "."


# The checker's tests are Python expressions; these are the shapes they come in.
_ORDER = {
    "s['run_started']": "that it comes after run_start",
    "not s['run_started']": "that it comes before run_start",
    "s['init_started']": "that it comes after init_start",
    "not s['init_stopped']": "that it comes before init_stop",
    "( s['init_stopped'] == True )": "that it comes after init_stop",
}
_SPELLINGS = (
    (r"ll\.timestamp - s\['first_init_start'\] < .*", "an initialisation within the time limit"),
    (r"'(\w+)' in v\['metadata'\]", r"metadata \1"),
    (r"v\['metadata'\]\['(\w+)'\]", r"metadata \1"),
    (r"v\['value'\]\['(\w+)'\]", r"\1"),
    (r"v\['value'\] in \[(.*)\]", r"one of \1"),
    (r"is_integer\(math\.log2\(v\['value'\] / ([\d.e-]+)\)\)", r"\1 times a power of two"),
    (r"is_integer\(v\['value'\] / ([\d.e-]+)\)", r"a whole multiple of \1"),
    (r"v\['value'\] != ''", "a value that is not empty"),
    (r"v\['value'\]", "value"),
    (r"\) \| \(", ") or ("),
    (r"\((metadata \w+)\)", r"\1"),
)


def _in_words(test: str) -> str:
    test = test.strip()
    if test in _ORDER:
        return _ORDER[test]
    for shape, words in _SPELLINGS:
        test = re.sub(shape, words, test)
    return " ".join(test.split())


_ADVICE = {
    "submission_org": "Give the organisation's name when starting the run.",
    "submission_platform": "Give the system's name when starting the run.",
    "submission_division": "It must be closed or open, and stand before init_stop.",
    "submission_status": "It must be cloud, onprem, preview or research.",
    "submission_benchmark": "It must be a benchmark of that round: give the ruleset the run was made for.",
    "cache_clear": "Log it before init_start.",
    "init_start": "Log it once, before the model is built.",
    "init_stop": "Log it once, after compiling and before run_start; initialisation has 30 minutes in "
    "closed, 240 in open, and none while submission_division is not known.",
    "run_start": "Log it once, after init_stop and before the first record is read.",
    "run_stop": "A run that was killed lacks it: resume the run to its end.",
    "eval_accuracy": "Each evaluation logs its value with epoch_num or samples_count; the run must reach the "
    "quality target.",
    "global_batch_size": "Log the batch size of the whole system once, as a number.",
}


def _advice(text: str, key: str) -> str:
    if "parsing errors" in text:
        return "Restore the line, or remove it."
    if "Could not find config file" in text:
        return "Mend the value that names them."
    if "but found" in text and "but found 0" not in text:
        return "Log it once; a log that holds two runs must be split."
    if " or " in text.split("\n")[0] and not key:
        return "Log each block of training and each evaluation with its start and its stop."
    missing = re.findall(r"'(\w+)' in v\['metadata'\]", text)
    if missing:
        return f"Log it with {' or '.join(dict.fromkeys(missing))} as metadata."
    if key in _ADVICE:
        return _ADVICE[key]
    if "but found 0" in text:
        return f"Add {key!r} to what the benchmark logs."
    if key:
        return "Change the value, or run in the open division, where it is free."
    return "See the official text."
