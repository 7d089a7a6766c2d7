"""Compares our scores, runs, verdicts and validity with the official tools, on the trees of rounds.

    python scripts/compare_score.py training_results_v3.1 hpc_results_v3.0 --keep official --markdown

Each tree is what of a round's repository is present: `<org>/results/<system>/<benchmark>/result_*.txt` and
`<org>/systems/*.json`; nothing in it is changed, and its name says the round. Every set of either side is
compared, and every run, whether there is a score or not. The official side (`official_scores.py`) takes most
of the time: keep it for the next comparison. v0.6 is logged in seconds, which the official summary takes for
milliseconds: its minutes are multiplied by 1,000 before they are compared. Exits with 1 when a score or a
verdict differs.
"""

import argparse
import collections
import dataclasses
import json
import math
import pathlib
import re
import sys

from official_scores import every

from mlperf_jax.results.score import scores
from mlperf_jax.results.scored import Score

# what the official checker says, by our word for it
_SAYS = {
    "found": "RCP found",
    "interpolated": "RCP Interpolation",
    "smaller": "RCP not found but slower convergence on smaller batch size",
    "missing": "Missing RCP",
    "unconverged": "Insufficient convergence",
}
# a set's outcome, in the order of the table
_OUTCOMES = ("equal", "neither", "theirs refused", "ours refused", "different")


@dataclasses.dataclass
class Comparison:
    """What was found of one tree.

    Attributes:
        name: of the tree.
        outcomes: how many sets ended how; `_OUTCOMES` has the words.
        logs: how many the official summary reads.
        runs: how many of them both sides count with equal minutes, or neither does.
        verdicts: sets whose verdicts of convergence are equal, and all that have one on both sides.
        valid: sets on whose validity both agree, and all on which the official tools have a word.
        differences: a sentence each.
    """

    name: str
    outcomes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    logs: int = 0
    runs: int = 0
    verdicts: list[int] = dataclasses.field(default_factory=lambda: [0, 0])
    valid: list[int] = dataclasses.field(default_factory=lambda: [0, 0])
    differences: list[str] = dataclasses.field(default_factory=list)
    wrong: int = 0

    def add(self, name: str, ours: Score | None, theirs: dict | None, exact: float) -> None:
        """Compares one set; None is a side that does not know of it."""
        known = theirs is not None
        theirs = theirs or {"runs": {}, "minutes": None, "error": "is no set of the summary's"}
        mine = None if ours is None else ours.minutes
        outcome = _outcome(mine, theirs["minutes"], exact)
        self.outcomes[outcome] += 1
        if outcome not in ("equal", "neither"):
            self.wrong += outcome != "theirs refused"
            why = theirs["error"] or next((r for r in theirs["runs"].values() if _no(r)), "")
            self.say(name, f"{outcome}: {mine} against {theirs['minutes']} {why}")
        if known:
            self._runs(name, ours, theirs, exact)
        if ours is None:
            return
        if ours.models is not None and ours.models != theirs.get("models"):
            self.wrong += 1
            self.say(name, f"models {ours.models} against {theirs.get('models')}")
        enough = len(theirs["runs"]) > 2 * ours.drop  # else they compare the mean of nothing
        if theirs.get("passed") is not None and enough:
            found = _verdict(ours, theirs)
            self.verdicts[0] += not found
            self.verdicts[1] += 1
            self.wrong += bool(found)
            for difference in found:
                self.say(name, difference)
        if theirs.get("valid") is not None:
            self.valid[0] += ours.valid == theirs["valid"]
            self.valid[1] += 1
            if ours.valid != theirs["valid"]:
                wrong = next((f.expected for f in ours.findings if not f.warning), ours.verdict)
                self.say(name, f"valid {ours.valid} against {theirs['valid']} ({wrong})")

    def say(self, name: str, difference: str) -> None:
        """Notes a difference."""
        self.differences.append(f"{name}: {difference}")

    def _runs(self, name: str, ours: Score | None, theirs: dict, exact: float) -> None:
        mine = {run.log.path.name: run for run in ours.runs} if ours else {}
        for file in sorted(mine.keys() | theirs["runs"].keys()):
            self.logs += 1
            run, said = mine.get(file), theirs["runs"].get(file, "not read")
            counted = run.minutes if run is not None and run.counted else None
            same = _outcome(counted, None if _no(said) else said, exact) in ("equal", "neither")
            self.runs += same
            if not same:
                self.say(f"{name}/{file}", f"{counted} ({run and run.flaw}) against {said}")

    def row(self) -> list[str]:
        """Its line of the table."""
        sets = sum(self.outcomes.values())
        cells = [self.name, sets, *(self.outcomes[word] for word in _OUTCOMES)]
        cells += [f"{self.runs:,} of {self.logs:,}"]
        cells += ["{:,} of {:,}".format(*pair) for pair in (self.verdicts, self.valid)]
        return [cell if isinstance(cell, str) else f"{cell:,}" for cell in cells]


def _no(run: object) -> bool:
    return isinstance(run, str)


def _outcome(ours: float | None, theirs: float | None, exact: float) -> str:
    if ours is None or theirs is None:
        return "neither" if ours is theirs else "ours refused" if ours is None else "theirs refused"
    return "equal" if math.isclose(ours, theirs, rel_tol=exact) else "different"


def _verdict(ours: Score, theirs: dict) -> list[str]:
    if ours.verdict is None:
        # what they refuse to compare we do not compare either
        same = not theirs["passed"] and not theirs["message"].startswith(tuple(_SAYS.values()))
        return [] if same else [f"no verdict ({ours.rcp_note}) against {theirs['message']}"]
    found = []
    if ours.verdict.passed != theirs["passed"]:
        found.append(f"{ours.verdict} against {theirs['passed']}, {theirs['message']}")
    kind = ours.verdict.kind
    kind = "missing" if kind == "smaller" and not theirs["passed"] else kind
    if not theirs["message"].startswith(_SAYS[kind]):
        found.append(f"{ours.verdict.kind} against {theirs['message']}")
    own = ours.verdict.scaling_factor
    if theirs["passed"] and not math.isclose(own, theirs["factor"], rel_tol=1e-9):
        found.append(f"factor {own} against {theirs['factor']}")
    return found


def compare(tree: pathlib.Path, keep: pathlib.Path | None, official: bool) -> Comparison:
    """Compares a tree.

    Args:
        tree: named as its repository.
        keep: a folder for the official side.
        official: let our score ask the official compliance checker too.
    """
    match = re.search(r"(training|hpc)_results_v([\d.]+\d)", tree.name)
    if match is None:
        raise SystemExit(f"{tree}: a tree is named as its round, such as training_results_v3.1")
    suite, ruleset = match[1], f"{match[2]}.0"
    kept = None if keep is None else keep / f"{tree.name}.json"
    theirs = every(tree, suite, ruleset, kept)
    if ruleset == "0.6.0":
        theirs = {name: _in_milliseconds(said) for name, said in theirs.items()}
    ours = {
        one.folder.relative_to(tree).as_posix(): one
        for one in scores(tree, ruleset, official=official)
    }
    found = Comparison(tree.name)
    for name in sorted(ours.keys() | theirs.keys()):
        # times in seconds have fewer digits than those in milliseconds
        found.add(name, ours.get(name), theirs.get(name), 1e-7 if ruleset == "0.6.0" else 1e-9)
    return found


def _in_milliseconds(said: dict) -> dict:
    runs = {name: run if _no(run) else run * 1000 for name, run in said["runs"].items()}
    minutes = said["minutes"]
    return {**said, "runs": runs, "minutes": None if minutes is None else minutes * 1000}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("trees", nargs="+", type=pathlib.Path)
    parser.add_argument("--keep", type=pathlib.Path, help="folder for the official side, made once")
    parser.add_argument("--official", action="store_true", help="score with the official checker")
    parser.add_argument("--markdown", action="store_true", help="print the table for the docs")
    args = parser.parse_args()
    if args.keep is not None:
        args.keep.mkdir(parents=True, exist_ok=True)
    found = []
    for tree in args.trees:
        found.append(compare(tree, args.keep, args.official))
        print(json.dumps(found[-1].row()), file=sys.stderr)
        if not args.markdown:
            print("\n  ".join([found[-1].name, *found[-1].differences]))
    total = Comparison("all")
    for one in found:
        total.outcomes += one.outcomes
        total.logs, total.runs = total.logs + one.logs, total.runs + one.runs
        for mine, theirs in ((total.verdicts, one.verdicts), (total.valid, one.valid)):
            mine[:] = [a + b for a, b in zip(mine, theirs)]
    head = ["tree", "sets", *_OUTCOMES, "equal runs", "equal verdicts", "equal validity"]
    rows = [head, ["---"] * len(head), *(one.row() for one in (*found, total))]
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))
    return 1 if any(one.wrong for one in found) else 0


if __name__ == "__main__":
    sys.exit(main())
