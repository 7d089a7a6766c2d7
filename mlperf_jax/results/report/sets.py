"""Folders into sets: the score of each, and beside it the curves and settings of its runs."""

import collections
import dataclasses
import json
import pathlib
import re
import statistics
from collections.abc import Sequence
from typing import Any

from mlperf_jax.errors import UserError
from mlperf_jax.results import durable, rcp, rules, score_view, system
from mlperf_jax.results.compliance import Finding
from mlperf_jax.results.report import logs
from mlperf_jax.results.report.folders import Place
from mlperf_jax.results.report.model import Curve, Position, RunData, SetData, Size, Verdict
from mlperf_jax.results.score import Scaling, score
from mlperf_jax.results.scored import Run, Score

# Evaluation samples of the real benchmarks; a log with less than half of them is of a small stand-in.
# Not here: those whose official logs count batches (retinanet, maskrcnn).
_EVAL_SAMPLES = {
    "resnet": 50_000, "ssd": 5_000, "bert": 10_000,
    "rnnt": 2_703, "unet3d": 42, "dlrm_dcnv2": 89_137_319, "stable_diffusion": 30_000,
    "flux1": 29_696, "llama31_405b": 5_760, "llama31_8b": 1_024, "gpt_oss_20b": 1_024,
    "deepseekv3_671b": 1_024, "qwen35_397b_grpo": 251,
}  # fmt: skip
# Training samples of an epoch, for logs that count in epochs; what logs say of it is not reliable.
_EPOCH = {
    "resnet": 1_281_167, "retinanet": 1_170_301, "maskrcnn": 117_266, "ssd": 117_266,
    "dlrm_dcnv2": 4_195_197_692, "rnnt": 278_528, "deepcam": 121_266,
}  # fmt: skip
_LOSS = "training loss"
_MAX_LOSSES = 200  # points of a training loss curve that are kept


def read_set(place: Place, ruleset: str | None, scaling: Scaling = "auto") -> SetData:
    """The set of a folder, scored, with everything that is wrong with it."""
    findings: list[Finding] = []
    try:
        scored = score(place.path, ruleset, scaling=scaling, settings=True)
    except UserError as error:
        for name in place.runs:
            _read_run(place, name, None, None, findings)
        findings.append(Finding(place.label, "", f"has no score: {error}"))
        return SetData(place.label, str(place.path), "unknown", findings=tuple(findings))
    official = rules.resolve(scored.benchmark, scored.ruleset) if scored.ruleset else None
    found = {run.log.path.stem.removeprefix("result_"): run for run in scored.runs}
    every = {
        name: _read_run(place, name, found.get(name), official, findings) for name in place.runs
    }
    findings = [*_findings(scored, place), *findings]
    # those of the set's benchmark, in the order of the score's; then those nothing is known of
    runs = [every.pop(name) for name, run in found.items() if run.same]
    runs += [run for run in every.values() if run.status == "unreadable"]
    results = [run.result for run in runs if run.result]
    settings = logs.first(run.settings for run in runs)
    size = _size(scored, settings)
    runs = [_without_stray_loss(_in_samples(run, scored, official, size)) for run in runs]
    verdict = judge(scored, runs)
    described = system.file_of(place.path)
    chips, accelerator = _chips(scored)
    stated = ruleset or _of(results, "ruleset") or rules.round_above(place.path)
    return SetData(
        folder=place.label,
        path=str(place.path),
        benchmark=scored.benchmark or "unknown",
        suite=scored.suite,
        round=scored.ruleset.removesuffix(".0"),
        assumed=not stated,
        division=scored.division,
        org=_text(scored.system.org or (described.parents[1].name if described else "")),
        system=_text(scored.system.name) or accelerator or "unknown",
        accelerator=accelerator,
        chips=chips,
        size=size,
        batch=scored.batch_size,
        runs=tuple(dataclasses.replace(run, used=i in verdict.used) for i, run in enumerate(runs)),
        targets=_targets(runs, size, official),
        hardware=_hardware(described),
        unit=collections.Counter(run.unit for run in runs).most_common(1)[0][0]
        if runs
        else "samples",
        verdict=verdict,
        findings=tuple(findings),
    )


# ---- runs


def _read_run(
    place: Place,
    name: str,
    scored: Run | None,
    official: rules.Round | None,
    findings: list[Finding],
) -> RunData:
    folder = place.path / f"run_{name}"
    where = f"{place.label}/result_{name}.txt"
    if scored is not None:
        run, found = logs.run_data(scored, official, f"run {name}", where)
        findings += found
    else:
        findings.append(Finding(where, "", "is missing, though the run has a folder."))
        run = RunData(f"run {name}", where, "unreadable")
    if not folder.is_dir():
        return run
    documents = {}
    for file in ("result.json", "config.json"):
        if (folder / file).exists():
            here = f"{place.label}/{folder.name}/{file}"
            documents[file], found = logs.read_object(folder / file, here)
            findings += found
    result = documents.get("result.json", {})
    config = documents.get("config.json", {}).get("config", {})
    loss = _losses(folder / "scalars.jsonl")
    return dataclasses.replace(
        run,
        result=result,
        config=config if isinstance(config, dict) else {},
        curves=run.curves + loss,
        seed=run.seed if run.seed is not None else result.get("seed"),
    )


def _losses(path: pathlib.Path) -> tuple[Curve, ...]:
    """The training loss over samples, thinned; lines that cannot be read are passed over."""
    if durable.not_a_file(path):
        return ()
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    points = []
    for line in lines[:: max(1, len(lines) // _MAX_LOSSES)]:
        try:
            document = json.loads(line)
            x, y = logs.number(document["samples"]), logs.number(document["loss"])
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
        if x is not None and y is not None:
            points.append((x, y))
    if not points:
        return ()
    return (Curve(_LOSS, (), *map(tuple, zip(*points))),)


def _in_samples(run: RunData, scored: Score, official: rules.Round | None, size: Size) -> RunData:
    """The run with its lengths counted in samples, where it is known how many an epoch has."""
    if run.unit != "epochs" or official is None:
        return run
    unit = scored.unit  # some benchmarks log samples or tokens as epochs
    if unit != "epochs":
        return dataclasses.replace(run, unit=unit)
    epoch = _EPOCH.get(official.benchmark)
    if epoch is None or size != "official":
        return run
    return dataclasses.replace(
        run,
        unit="samples",
        length=None if run.length is None else run.length * epoch,
        curves=tuple(
            curve
            if curve.name == _LOSS
            else dataclasses.replace(curve, lengths=tuple(x * epoch for x in curve.lengths))
            for curve in run.curves
        ),
    )


def _without_stray_loss(run: RunData) -> RunData:
    """The run without its loss, which is over samples, when all else is over something else."""
    if run.unit == "samples":
        return run
    kept = tuple(curve for curve in run.curves if curve.name != _LOSS)
    return dataclasses.replace(run, curves=kept)


def _findings(scored: Score, place: Place) -> list[Finding]:
    """The score's findings, their files named as the user named the folder."""
    return [
        dataclasses.replace(found, file=found.file.replace(str(place.path), place.label, 1))
        for found in scored.findings
        # the page marks every such round as assumed
        if not found.expected.startswith("does not say of which round")
    ]


# ---- what the runs are of


def _chips(scored: Score) -> tuple[int | None, str]:
    """Accelerators and their kind; of a log alone from a platform such as "8xNVIDIA H200"."""
    said = scored.system
    match = re.fullmatch(r"(\d+)\s*x\s*(.+)", said.name)
    if said.chips is None and not said.chip and match:
        return int(match[1]), match[2].strip()
    return said.chips, _text(said.chip)


def _hardware(described: pathlib.Path | None) -> dict[str, Any]:
    """What the submission's system file says; its absence is the score's finding."""
    if described is None or not described.exists():
        return {}
    document, _ = logs.read_object(described, "")
    return {str(key): logs.shorten(value) for key, value in document.items()}


def _size(scored: Score, settings: dict[str, Any]) -> Size:
    if scored.tiny:
        return "tiny"
    seen = logs.number(settings.get("eval_samples"))
    if seen is not None and seen * 2 < _EVAL_SAMPLES.get(scored.benchmark, 0):
        return "reduced"
    return "official"


def _targets(
    runs: list[RunData], size: Size, official: rules.Round | None
) -> tuple[rules.Target, ...]:
    """The run's own targets where its configuration states them, else the round's."""
    own = logs.first(run.config for run in runs).get("targets")
    stated = [_target(t) for t in own if isinstance(t, dict)] if isinstance(own, list) else []
    if not stated and official is not None and size == "official":
        return official.targets
    return tuple(stated)


def _target(target: dict[str, Any]) -> rules.Target:
    at_least, at_most, above = (
        logs.number(target.get(key)) for key in ("at_least", "at_most", "above")
    )
    return rules.Target(_text(target.get("name")), at_least, at_most, above)


def _of(documents: list[dict], key: str) -> Any:
    return next((d[key] for d in documents if d.get(key) not in (None, "")), None)


def _text(value: Any) -> str:
    return "" if value is None else str(logs.shorten(value))


# ---- the verdict


def judge(scored: Score, runs: Sequence[RunData]) -> Verdict:
    """Minutes, standing and reference position of a scored set.

    Args:
        scored: of the set.
        runs: of the set, without those of other benchmarks, in the order of `scored.runs`.
    """
    same = [run for run in scored.runs if run.same]
    failed = [i for i, run in enumerate(same) if not run.counted]
    status, reason = _status(scored, runs, len(same), failed)
    shown = status in ("scored", "too fast", "flawed") or scored.submitted
    scaled = f"scaled by {score_view.factor_words(scored)}" if scored.factor != 1 else ""
    scaling = (scaled, score_view.otherwise(scored)) if shown and scored.minutes else ()
    # without the fastest, and without the slowest or failed
    order = sorted(range(len(same)), key=lambda i: (i in failed, same[i].minutes or 0))
    rates = [
        run.length / run.seconds
        for run in runs
        if run.unit == "samples" and run.length and run.seconds and run.status == "success"
    ]
    return Verdict(
        status=status,
        reason="; ".join(filter(None, (reason.removesuffix("."), *scaling))),
        minutes=scored.minutes if shown else None,
        needed=scored.required or None,
        used=tuple(order[scored.drop : len(order) - scored.drop]) if shown else (),
        rate=statistics.fmean(rates) if rates else None,
        position=_position(scored, same) if shown else None,
    )


def _status(
    scored: Score, runs: Sequence[RunData], count: int, failed: list[int]
) -> tuple[str, str]:
    if not scored.required:
        status = "scored" if scored.valid else "flawed"
        return status, "no round had this benchmark: there are no official rules, and no verdict."
    if count < scored.required:
        broken = any(run.log.broken or not run.log.benchmark for run in scored.runs)
        reason = f"{count} of {scored.required} runs are here"
        reason += "." if scored.submitted else "; there is no score yet."
        return "broken" if broken else "incomplete", reason
    if len(failed) > scored.drop:
        broken = any(runs[i].status in ("unreadable", "unfinished") for i in failed)
        reason = (
            f"{len(failed)} of {count} runs did not converge or cannot be read; {scored.drop} may."
        )
        return "broken" if broken else "not converged", reason
    if scored.minutes is None and scored.mean_minutes is not None:
        return "flawed", scored.rcp_note  # of a round that nobody scores
    if scored.minutes is None:
        return "broken", "no run has both a start and an end."
    if scored.verdict is not None and not scored.verdict.passed:
        kind = "too fast" if scored.verdict.kind != "missing" else "flawed"
        return kind, scored.verdict.sentence
    wrong = [finding for finding in scored.findings if not finding.warning]
    if wrong:
        more = f" (and {len(wrong) - 1} more findings)" if len(wrong) > 1 else ""
        return "flawed", f"{wrong[0].key} {wrong[0].expected}{more}".strip()
    return "scored", ""


def _position(scored: Score, same: Sequence[Run]) -> Position | None:
    verdict = scored.verdict
    if verdict is None:
        return Position(scored.rcp_note) if scored.rcp_note else None
    known = verdict.reference
    return Position(
        sentence=verdict.sentence,
        accepted=verdict.passed,
        mean=verdict.mean,
        reference=known.mean if known else None,
        bound=known.bound if known else None,
        lengths=_reference_runs(scored, verdict),
        own=tuple(run.length for run in same),
        unit=scored.unit,
    )


def _reference_runs(scored: Score, verdict: rcp.Verdict) -> tuple[float, ...]:
    """The lengths of the reference's own runs at the batch size that was compared with."""
    if verdict.reference is None or verdict.reference.between is not None:
        return ()
    try:
        points = rcp.points_of(scored.benchmark, scored.ruleset)
    except UserError:
        return ()
    same = [point for point in points if point.batch_size == verdict.reference.batch_size]
    return same[0].lengths if same else ()
