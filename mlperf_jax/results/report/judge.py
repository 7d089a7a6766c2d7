"""The verdict on a set as the page shows it: the seam to `results.score` and `results.rcp`."""

from collections.abc import Sequence

from mlperf_jax.errors import UserError
from mlperf_jax.results import rcp
from mlperf_jax.results.rcp import Verdict as Comparison
from mlperf_jax.results.report.model import Position, RunData, Verdict
from mlperf_jax.results.scored_set import Score


def judge(score: Score, runs: Sequence[RunData]) -> Verdict:
    """Minutes, standing and reference position of a scored set.

    Args:
        score: of the set.
        runs: of the set, without those of other benchmarks, in the order of `score.runs`.
    """
    same = [run for run in score.runs if run.same]
    failed = [i for i, run in enumerate(same) if not run.counted]
    status, reason = _status(score, runs, failed)
    shown = status in ("scored", "too fast", "flawed")
    return Verdict(
        status=status,
        reason=reason,
        minutes=score.minutes if shown else None,
        needed=score.required or None,
        used=_used(score, failed) if shown else (),
        rate=_rate(runs),
        position=_position(score) if shown else None,
    )


def _status(score: Score, runs: Sequence[RunData], failed: list[int]) -> tuple[str, str]:
    count = len([run for run in score.runs if run.same])
    if not score.required:
        status = "scored" if score.valid else "flawed"
        return status, "no round had this benchmark: there are no official rules, and no verdict."
    if count < score.required:
        broken = any(run.log.broken or not run.log.benchmark for run in score.runs)
        reason = f"{count} of {score.required} runs are here; there is no score yet."
        return "broken" if broken else "incomplete", reason
    if len(failed) > score.drop:
        broken = any(runs[i].status in ("unreadable", "unfinished") for i in failed)
        reason = (
            f"{len(failed)} of {count} runs did not converge or cannot be read; {score.drop} may."
        )
        return "broken" if broken else "not converged", reason
    if score.minutes is None:
        return "broken", "no run has both a start and an end."
    if score.verdict is not None and not score.verdict.passed:
        kind = "too fast" if score.verdict.kind != "missing" else "flawed"
        return kind, score.verdict.sentence
    wrong = [finding for finding in score.findings if not finding.warning]
    if wrong:
        more = f" (and {len(wrong) - 1} more findings)" if len(wrong) > 1 else ""
        return "flawed", f"{wrong[0].key} {wrong[0].expected}{more}".strip()
    factor = f"scaled by {score.factor:.4f}, as if it had converged like the reference"
    return "scored", factor if score.factor != 1 else ""


def _used(score: Score, failed: list[int]) -> tuple[int, ...]:
    """The runs whose mean the score is: without the fastest, and without the slowest or failed."""
    same = [run for run in score.runs if run.same]
    order = sorted(range(len(same)), key=lambda i: (i in failed, same[i].minutes or 0))
    return tuple(order[score.drop : len(order) - score.drop])


def _rate(runs: Sequence[RunData]) -> float | None:
    """Training samples per second of the clock, evaluation included: the mean over converged runs."""
    rates = [
        run.length / run.seconds
        for run in runs
        if run.unit == "samples" and run.length and run.seconds and run.status == "success"
    ]
    return sum(rates) / len(rates) if rates else None


def _position(score: Score) -> Position | None:
    verdict = score.verdict
    if verdict is None:
        return Position(score.rcp_note) if score.rcp_note else None
    known = verdict.reference
    return Position(
        sentence=verdict.sentence,
        accepted=verdict.passed,
        mean=verdict.mean,
        reference=known.mean if known else None,
        bound=known.bound if known else None,
        lengths=_reference_runs(score, verdict),
        own=tuple(run.length for run in score.runs if run.same),
        unit=score.unit,
    )


def _reference_runs(score: Score, verdict: Comparison) -> tuple[float, ...]:
    """The lengths of the reference's own runs at the batch size that was compared with."""
    if verdict.reference is None or verdict.reference.between is not None:
        return ()
    try:
        points = rcp.points_of(score.benchmark, score.ruleset)
    except UserError:
        return ()
    same = [point for point in points if point.batch_size == verdict.reference.batch_size]
    return same[0].lengths if same else ()
