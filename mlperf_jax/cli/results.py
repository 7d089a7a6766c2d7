"""The commands about what runs leave behind: check, score, package, report, tensorboard."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from mlperf_jax.cli import options, output
from mlperf_jax.cli.options import Option
from mlperf_jax.core.fields import Path, Several
from mlperf_jax.errors import UserError


def check(about: str, words: Sequence[str]) -> int:
    """Prints the official checker's findings; exit code 1 when a log does not pass."""
    from mlperf_jax.core.options import Division

    own = [
        Option(
            "ruleset", help="the rules, such as 4.0.0; by default what the runs or the folder say"
        ),
        Option("division", Division, help="the one that the log must be of"),
    ]
    path = Option("path", Path, help="a log or the output folder of a run")
    about = f"{about}, and repeat its findings in plain words"
    given = options.parse("check", about, words, [path], own)
    from mlperf_jax import results

    found = results.check(**given)
    print(found)
    return 0 if found.success else 1


def score(about: str, words: Sequence[str]) -> int:
    """Prints the scores of sets; exit code 1 when one is not valid."""
    own = [
        Option("ruleset", help="the round whose rules apply; by default what the runs say"),
        _scaling(),
        Option("official", bool, help="also run the official checker on every log (slower)"),
        Option("bert_train_samples", bool, help="bert's samples are in its train_samples lines"),
        output.json_option("the scores"),
    ]
    path = Option("dir", Path, help="a set's folder, or any folder of sets")
    given = options.parse("score", about, words, [path], own)
    target = output.json_target(given)
    from mlperf_jax.results import score

    found = score.scores(given.pop("dir"), **given)
    output.say(found, target)
    return 0 if all(score.valid for score in found.scores) else 1


def package(about: str, words: Sequence[str]) -> int:
    """Builds the submission; exit code 1 when the official checkers refuse it."""
    from mlperf_jax.core.options import Division
    from mlperf_jax.results.opening import Status

    own = [
        Option("org", help="the organisation (names a folder)", metavar="ORG", required=True),
        Option("system", help="the system (names its files)", metavar="SYSTEM", required=True),
        Option("output", Path, help="the folder that is to hold the organisation's", metavar="DIR"),
        Option("submitter", help="who submits, in words; the organisation by default"),
        Option("status", Status, help="what the runs say by default"),
        Option("division", Division, help="to be sure"),
        Option("ruleset", help="the round; the one the runs were made for by default"),
        Option("implementation", help="names the folder of the code pointer"),
        Option(
            "machine", Path, help="JSON with fields of the system file; see docs", metavar="FILE"
        ),
        Option("code", Path, help="a folder of source code to copy along", metavar="DIR"),
        Option("url", help="public https address of the code"),
        Option("commit", help="git commit of the code"),
        Option("allow_tiny", bool, help="make a rehearsal of tiny runs, marked as such"),
    ]
    path = Option("dir", Path, help="the output folder of the runs")
    about = f"{about} and ask the official checkers about it"
    given = options.parse("package", about, words, [path], own)
    from mlperf_jax.results import durable, package

    if "machine" in given:
        file = given["machine"]
        given["machine"] = durable.read_json(pathlib.Path(file))
        if not isinstance(given["machine"], dict):
            raise UserError(f"{file} holds no JSON object")

    made = package.package(given.pop("dir"), **{"output": "submission", **given})
    print(made)
    return 0 if made.success else 1


def report(about: str, words: Sequence[str]) -> int:
    """Writes the page and prints its path."""
    own = [
        Option("out", Path, "report.html", "the page to write", metavar="FILE"),
        Option("ruleset", help="the round of logs that do not say it"),
        _scaling(),
    ]
    folders = Option(
        "dirs", Several[Path], help="a folder of runs or submissions", metavar="DIR..."
    )
    given = options.parse("report", about, words, [folders], own)
    from mlperf_jax.results import report

    dirs, out = given.pop("dirs"), given.pop("out", "report.html")
    print(report.report(dirs, out, **given))
    return 0


def tensorboard(about: str, words: Sequence[str]) -> int:
    """Writes event files and prints their paths."""
    folders = Option(
        "dirs", Several[Path], help="the folder of a run or of a set", metavar="DIR..."
    )
    given = options.parse("tensorboard", about, words, [folders], [])
    from mlperf_jax.results import events

    for path in events.convert(*given["dirs"]):
        print(path)
    return 0


def _scaling() -> Option:
    from mlperf_jax.results.score import Scaling

    says = (
        "file: by scaling.json; rcp: by the reference; auto: file for a submission, else rcp; none"
    )
    return Option("scaling", Scaling, "auto", says)
