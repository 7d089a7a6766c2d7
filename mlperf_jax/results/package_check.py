"""The official checkers of a submission folder, and what they say in plain words.

Three programs of the official package are run as they are: `package_checker` (system files, number of
runs, every log, seeds, convergence against the reference), `repo_checker` (names, sizes, links) and
`system_desc_checker`. Each ends with exit code 0 whatever it found, and each leaves a log file where it
is started: so the verdict is read from their text, and they are started in a folder of their own.
"""

import ast
import dataclasses
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from mlperf_jax.errors import UserError
from mlperf_jax.results import rules
from mlperf_jax.results.compliance import Finding, check, harmless

_SECONDS = 900  # for one program; a hundred sets of ten logs take about a minute
_KNOWN = ("scaling.json", "power", "package_checker_params")  # beside the logs, by the rules
_OLDEST = "2.0.0"  # repo_checker knows no older ruleset by name; it makes no difference to it


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the official checkers say about a submission folder.

    Attributes:
        success: whether all of them accept it.
        findings: what they found, in plain words; each keeps the official text.
        notes: what is good to know, such as the position against the reference's convergence.
        raw: their text, unchanged.
    """

    success: bool
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    raw: str


def check_tree(folder: os.PathLike | str, ruleset: str, suite: str = "training") -> Verdict:
    """Runs the official checkers on a submission folder, the one with `systems` and `results`.

    The package checker writes `scaling.json` beside the logs of a closed result that converged faster
    than the reference, and removes one that no longer holds; nothing else is changed.

    Args:
        folder: the organisation's folder.
        ruleset: such as "4.0.0"; all results in the folder are of one round.
        suite: "training" or "hpc".

    Raises:
        UserError: no such folder, a log that must not be given to the checkers, a ruleset without an
            official checker, or the official package is not installed.
    """
    root = pathlib.Path(folder).resolve()
    version = f"{rules.round_name(ruleset, suite)}.0"
    if rules.checker(suite, version) is None:
        raise UserError(
            f"there is no official checker for submissions of ruleset {version}; the oldest is "
            f"{'0.7.0' if suite == 'training' else '1.0.0 of HPC'}"
        )
    for needed in ("systems", "results"):
        if not (root / needed).is_dir():
            raise UserError(
                f"{folder} has no folder {needed!r}; give the organisation's folder of a submission"
            )
    for path in sorted(root.glob("results/**/result_*.txt")):
        harmless(path)
    package = _program("package_checker", str(root), suite, version)
    known = max(version, _OLDEST, key=lambda v: tuple(map(int, v.split("."))))
    repo = _program("repo_checker", str(root), suite, known)
    systems = [
        _program("system_desc_checker", str(path), suite, version)
        for path in sorted(root.glob("systems/*.json"))
    ]
    findings, notes = _of_package(package, root, version)
    findings += _of_repository(repo)
    findings += [f for text in systems for f in _of_systems(text) if f not in findings]
    success = (
        _says(package, "INFO - PACKAGE CHECKER FOUND NO ERRORS")
        and _says(repo, "INFO - ALL CHECKS PASSED")
        and all(_says(text, "INFO -   System description checker passed") for text in systems)
    )
    if not success and all(finding.warning for finding in findings):
        findings.append(
            Finding(str(root), "", "the official checkers do not accept it.", "", package)
        )
    return Verdict(success, tuple(findings), tuple(notes), "\n".join([package, repo, *systems]))


def _program(name: str, *words: str) -> str:
    """What a program of the official package prints, started in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                # -P: the folder it is started in is not searched for modules
                [sys.executable, "-P", "-m", f"mlperf_logging.{name}", *words],
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise UserError(
                f"the official {name} has not ended within {_SECONDS // 60} minutes; "
                "check fewer results at a time"
            ) from error
    return done.stdout.decode("utf-8", "replace")


def _says(text: str, line: str) -> bool:
    """Whether a line of the text begins so; a logged value cannot begin one."""
    return re.search(f"^{re.escape(line)}", text, re.MULTILINE) is not None


# ---- their words in ours


def _entries(text: str) -> Iterator[tuple[str, str]]:
    """(level, message) of each message, with the lines that follow it; a traceback is one, too."""
    parts = re.split(r"^(INFO|WARNING|ERROR) - ", text, flags=re.MULTILINE)
    yield from zip(parts[1::2], parts[2::2])


def _of_package(text: str, root: pathlib.Path, version: str) -> tuple[list[Finding], list[str]]:
    findings: list[Finding] = []
    notes: list[str] = []
    folder = str(root)
    lengths: dict[str, float] = {}
    for level, message in _entries(text):
        message = message.rstrip()
        where = re.match(r" Running compliance checks in dir (.*)", message)
        if where:
            folder, lengths = where[1], {}
        lengths |= _lengths(message)
        if message.startswith(" System description checker"):
            continue
        passed = re.match(r"RCP Test Passed: (.*)", message)
        if passed:
            notes.append(f"{_below(folder, root)}: {_convergence(passed[1], lengths)}")
        if level == "INFO":
            continue
        findings += _of_message(message, folder, version, lengths)
    findings += _of_systems(text)
    findings += _of_traceback(text, folder)
    return findings, notes


def _below(folder: str, root: pathlib.Path) -> str:
    return os.path.relpath(folder, root) if folder.startswith(str(root)) else folder


def _of_message(
    message: str, folder: str, version: str, lengths: dict[str, float]
) -> list[Finding]:
    match = re.match(r"Incorrect number of files in dir.*found (\d+), expected (\d+)", message)
    match = match or re.match(r"Expected at least (\d+) runs, but detected (\d+)", message)
    if match:
        found, wanted = match.groups() if message.startswith("Inc") else match.groups()[::-1]
        said = f"a result is made of {wanted} runs; here are {found}."
        last = int(wanted) - 1
        advice = f"Put exactly {wanted} logs there, named result_0.txt to result_{last}.txt."
        return [Finding(folder, "", said, advice, message)]
    match = re.match(r" (\d+) files? do(?:es)? not comply", message)
    if match:
        tolerated = "accepting" in message
        said = f"{match[1]} of the logs break the rules" + (
            ", which the score's dropped runs allow." if tolerated else "."
        )
        heading = Finding(folder, "", said, "See below.", message, warning=tolerated)
        return [heading, *_of_logs(folder, version, tolerated)]
    match = re.match(
        r" Seed checker failed and found the following errors: (.*)", message, re.DOTALL
    )
    if match:
        return [_of_seed(folder, line) for line in match[1].splitlines() if line.strip()]
    match = re.match(r"RCP Test Failed: (.*)", message)
    if match:
        advice = "See the rules on missing or failed reference points before you submit."
        return [Finding(folder, "", _convergence(match[1], lengths, failed=True), advice, message)]
    match = re.match(r" Skipping benchmark: (\S+)", message)
    if match:
        said = f"{match[1]} was no benchmark of {version}, so it was not checked."
        return [Finding(folder, "", said, "Remove it, or give its round.", message, warning=True)]
    if message.startswith("Unknown files in result directory"):
        names = sorted(p.name for p in pathlib.Path(folder).iterdir())
        others = [n for n in names if n not in _KNOWN and not re.fullmatch(r"result_.*\.txt", n)]
        said = f"there are other files than result_*.txt: {', '.join(others)}."
        return (
            [Finding(folder, "", said, "Move them away.", message, warning=True)] if others else []
        )
    return []


def _of_logs(folder: str, version: str, tolerated: bool) -> list[Finding]:
    """What each log breaks, as `compliance.check` words it; the set itself is judged elsewhere."""
    try:
        found = check(folder, version).findings
    except UserError as error:
        return [Finding(folder, "", str(error), "", str(error), warning=tolerated)]
    return [
        dataclasses.replace(finding, warning=finding.warning or tolerated)
        for finding in found
        if finding.official
    ]


def _of_seed(folder: str, text: str) -> Finding:
    files = re.findall(r"[Rr]esult file (.*?result_\d+\.txt)", text)
    names = sorted(map(os.path.basename, files))  # the checker names the later one first
    seed = re.search(r"logs seed (-?\d+)", text)
    if seed and len(names) == 2:
        said = f"{names[0]} and {names[1]} have the same seed, {seed[1]}."
        advice = "Let each run draw its seed, and run one of them again."
        return Finding(folder, "", said, advice, text)
    if names and "logs no seed" in text:
        said = f"{names[0]} has no seed line."
        return Finding(folder, "", said, "A closed run logs its seed: run it again.", text)
    return Finding(folder, "", f"a seed cannot be read: {text.strip()}", "Restore the log.", text)


def _lengths(message: str) -> dict[str, float]:
    """The numbers of the convergence test that a message holds."""
    number = r"(?:np\.float64\()?(-?[\d.]+(?:e[+-]?\d+)?)"
    patterns = {
        "reference": rf"'RCP Mean': {number}",
        "least": rf"'Min Epochs': {number}",
        "batch": rf"'BS': {number}",
        "mean": rf"Submission mean epochs: {number}",
        "factor": rf"Results scaling set to normalization factor of {number}",
    }
    found = {name: re.search(pattern, message) for name, pattern in patterns.items()}
    return {name: float(match[1]) for name, match in found.items() if match}


def _convergence(reason: str, lengths: dict[str, float], *, failed: bool = False) -> str:
    if "Insufficient convergence" in reason:
        return "more runs than the score drops did not reach the target."
    if "global_batch_size" in reason:
        return "the runs do not log one and the same global_batch_size."
    mean, reference, least = (lengths.get(name) for name in ("mean", "reference", "least"))
    if mean is None or reference is None or least is None:
        batch = re.search(r"BS = (\d+)", reason)
        what = f" at batch size {batch[1]} or above" if batch else ""
        return f"there is no reference point{what}, so the convergence cannot be judged."
    change = mean / reference - 1
    side = f"{abs(change):.1%} {'more' if change > 0 else 'less'} than" if change else "as much as"
    said = (
        f"the runs needed {mean:,.7g} on average, {side} the reference's {reference:,.7g}; "
        f"at least {least:,.7g} is allowed: {'too fast' if failed else 'accepted'}"
    )
    factor = lengths.get("factor")
    scaled = f", times are multiplied by {factor:.4f}" if factor and not failed else ""
    return f"{said}{scaled} ({reason.strip()})."


def _of_systems(text: str) -> list[Finding]:
    found = []
    pattern = r"^ERROR -   System description checker failed for (.*?) : (\[.*\])"
    for match in re.finditer(pattern, text, re.MULTILINE):
        reasons = "; ".join(
            map(str, ast.literal_eval(match[2]))
        )  # printed as a Python list of text
        said = f"the system file of {match[1]!r} is refused: {reasons}."
        found.append(Finding("systems", "", said, "Mend the named fields.", match[0]))
    return found


def _of_traceback(text: str, folder: str) -> list[Finding]:
    match = re.search(r"^Traceback .*?^(\w[\w.]*(?:: [^\n]*)?)$", text, re.MULTILINE | re.DOTALL)
    if not match:
        return []
    advice = "Its own text tells where; what it had not reached is unchecked."
    if match[1].startswith("FileNotFoundError"):
        advice = "Add that file, or remove the results that need it."
    elif match[1].startswith("KeyError"):
        advice = "The installed version may have no reference points for this benchmark."
    return [Finding(folder, "", f"the official checker stopped: {match[1]}.", advice, match[0])]


def _of_repository(text: str) -> list[Finding]:
    kinds = {
        "Files with git-unfriendly name: ": (
            "the name has a space or begins with a dot.",
            "Rename or remove it.",
        ),
        "Files > 50MB: ": ("the file is larger than 50 MB.", "Rename or remove it."),
        "contains broken symbolic links: ": (
            "it is a link to a file that is not there.",
            "Put the file itself there.",
        ),
    }
    found = []
    for _, message in _entries(text):
        for start, (said, advice) in kinds.items():
            names = message.partition(start)[2].strip().splitlines()
            found += [Finding(name.strip(), "", said, advice, message) for name in names]
    return found + _of_traceback(text, "")
