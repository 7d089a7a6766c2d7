"""Compares our scores and RCP verdicts with the official tools, on a submission tree.

    python scripts/compare_score.py training_results_v5.1 --ruleset 5.1.0

The folder holds `<org>/results/<system>/<benchmark>/result_*.txt` and `<org>/systems/*.json`, as the
repositories of the rounds do; nothing in it is changed. Minutes are those of the official summary
(which multiplies by `scaling.json`), verdicts those of the official checker, both from the installed
mlperf-logging. The official side takes most of the time: keep it with --keep for the next comparison. Exits with 1 when anything differs.
"""

import argparse
import contextlib
import importlib
import io
import json
import logging
import math
import pathlib
import sys
import time

from mlperf_jax.results.score import Score, score, scores

# what the official checker says, by our word for it
_SAYS = {
    "found": "RCP found",
    "interpolated": "RCP Interpolation",
    "smaller": "RCP not found but slower convergence on smaller batch size",
    "missing": "Missing RCP",
    "unconverged": "Insufficient convergence",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("tree", type=pathlib.Path)
    parser.add_argument("--ruleset", required=True, help="such as 5.1.0")
    parser.add_argument("--usage", default="training", choices=("training", "hpc"))
    parser.add_argument(
        "--keep", type=pathlib.Path, help="file for the official side, read if there"
    )
    parser.add_argument(
        "--official-compliance",
        action="store_true",
        help="let our score run the official compliance checker too (slow)",
    )
    args = parser.parse_args()
    start = time.monotonic()
    ours = scores(args.tree, args.ruleset, scaling="file")
    print(f"ours: {len(ours)} sets in {time.monotonic() - start:.1f} s")
    official = _official(args.tree, args.usage, args.ruleset, args.keep, ours)
    differences, without, minutes, verdicts, factors, runs = [], [], 0, 0, 0, 0
    for one in ours:
        name = one.folder.relative_to(args.tree).as_posix()
        theirs = official[name]
        minutes += 1
        runs += len(one.runs)
        if not _same(one.minutes, theirs["minutes"]):
            differences.append(f"{name}: minutes {one.minutes} against {theirs['minutes']}")
        if args.official_compliance:
            checked = score(one.folder, args.ruleset, scaling="file", official=True)
            if not _same(checked.minutes, theirs["minutes"]):
                differences.append(
                    f"{name}: with compliance, minutes {checked.minutes} against {theirs['minutes']}"
                )
        if one.models is not None and one.models != theirs["models"]:
            differences.append(f"{name}: models {one.models} against {theirs['models']}")
        if one.models is not None or one.division != "closed":
            continue  # the official summary does not compare these with the reference
        if theirs["passed"] is None:  # it has no number of runs for dlrm and minigo, say
            without.append(f"{name}: {theirs['message']}; ours: {one.verdict or one.rcp_note}")
            continue
        verdicts += 1
        factors += theirs.get("factor") is not None
        differences += [f"{name}: {what}" for what in _verdicts(one, theirs)]
    print(
        f"compared {minutes} scores ({runs} logs), {verdicts} verdicts, {factors} scaling factors: "
        f"{len(differences)} differences"
    )
    for difference in differences:
        print(" ", difference)
    if without:
        print(f"{len(without)} sets on which the official checker ends with an error, such as")
        print(" ", without[0])
    return 1 if differences else 0


def _verdicts(one: Score, theirs: dict) -> list[str]:
    if one.verdict is None:
        return [f"no verdict ({one.rcp_note}) against {theirs}"]
    found = []
    if one.verdict.passed != theirs["passed"]:
        found.append(f"{one.verdict} against {theirs['passed']}, {theirs['message']}")
    kind = "missing" if one.verdict.kind == "smaller" and not theirs["passed"] else one.verdict.kind
    if not (theirs["message"] or "").startswith(_SAYS[kind]):
        found.append(f"{one.verdict.kind} against {theirs['message']}")
    if theirs["passed"] and not _same(one.verdict.scaling_factor, theirs["factor"]):
        found.append(f"factor {one.verdict.scaling_factor} against {theirs['factor']}")
    return found


def _same(a: float | None, b: float | None) -> bool:
    return a is b if a is None or b is None else math.isclose(a, b, rel_tol=1e-9)


def _official(
    tree: pathlib.Path, usage: str, ruleset: str, keep: pathlib.Path | None, ours
) -> dict:
    """Minutes and verdict of each set by the official tools, by the folder's name below the tree."""
    if keep is not None and keep.exists():
        return json.loads(keep.read_text())
    summarizer = importlib.import_module("mlperf_logging.result_summarizer.result_summarizer")
    checker = importlib.import_module("mlperf_logging.rcp_checker.rcp_checker")
    logging.disable(logging.CRITICAL)
    found = {}
    for number, one in enumerate(ours, start=1):
        folder = str(one.folder)
        result: dict = {
            "minutes": None,
            "passed": None,
            "message": None,
            "factor": None,
            "models": None,
        }
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                if one.models is None:
                    result["minutes"], _, _ = summarizer._compute_strong_score_standalone(
                        one.folder.name, "", False, folder, usage, ruleset
                    )
                else:
                    values, _ = summarizer._compute_weak_score_standalone(
                        one.folder.name, "", False, folder, usage, ruleset
                    )
                    result["minutes"] = values.get(f"{one.folder.name}:time_to_train_all")
                    result["models"] = values.get(f"{one.folder.name}:number_of_models")
            except Exception as error:  # it ends with a traceback on some logs
                result["error"] = repr(error)
            try:
                passed, message, factor = checker.check_directory(
                    folder, usage, ruleset, False, False, rcp_pass="pruned_rcps"
                )
                result |= {"passed": passed, "message": message, "factor": float(factor)}
            except Exception as error:
                result["message"] = repr(error)
        found[one.folder.relative_to(tree).as_posix()] = result
        if number % 20 == 0:
            print(f"official: {number} of {len(ours)}", file=sys.stderr)
    if keep is not None:
        keep.write_text(json.dumps(found, indent=1))
    return found


if __name__ == "__main__":
    sys.exit(main())
