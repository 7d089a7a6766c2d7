"""What the closed division allows: a run is refused by name before it starts.

The benchmark's `Round` (rules.py) says what, in the constraint kinds of `constraints.py`; this file only
applies it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlperf_jax.results import constraints, keys
from mlperf_jax.results.evaluations import Evaluation
from mlperf_jax.results.rules import Round, Target


def closed_violations(
    official: Round,
    log_values: Mapping[str, Any],
    *,
    optimizer_replaced: bool,
    model_replaced: bool = False,
    settings: Mapping[str, Any],
    targets: Sequence[Target],
    eval_steps: Sequence[int],
) -> list[str]:
    """Why a run would not be a closed one: a sentence each; empty when nothing speaks against it.

    Args:
        official: the benchmark's rules.
        log_values: what will be logged, key -> value, the batch size and sample counts included,
            spelled as the newest ruleset does.
        optimizer_replaced: whether the user gave an optimizer of their own.
        model_replaced: the same of the model.
        settings: the benchmark's fields; those the rules bind must be among them.
        targets: the run's.
        eval_steps: the first evaluations, in steps (batches trained so far); three or more.
    """
    allows = f"the closed division of {official.benchmark} v{official.round}"
    if official.own is None:
        return [f"{allows} is not known to this version; run with division 'open'."]
    found = []
    for replaced, what in ((optimizer_replaced, "optimizer"), (model_replaced, "model")):
        if replaced:
            found.append(f"the {what} was replaced; {allows} has only the reference's.")
    values = keys.spelled(official, log_values)
    own = official.allowed(values, common=False)
    for key, given in official.allowed(values).items():
        needed = key in own and not any("optional" in c or "written" in c for c in given)
        if needed or key in values:
            found += _check(key, given, values, values, allows, "logged")
    for key, given in official.settings.items():
        found += _check(key, given, settings, values, allows, "stated")
    found += _check_targets(official.targets, targets, allows)
    return found + _check_schedule(official.evaluation, eval_steps, values, allows)


def _check(
    key: str,
    given: Iterable[constraints.Constraint],
    values: Mapping[str, Any],
    logged: Mapping[str, Any],
    allows: str,
    verb: str,
) -> list[str]:
    if key not in values:
        return [f"{key} is not {verb}; {allows} requires it."]
    names = {k: v for k, v in logged.items() if k != key}
    return [
        f"{key} is {values[key]!r}; {allows}{f', for {where},' if where else ''} allows only {words}."
        for where, words in constraints.broken(values[key], given, names)
    ]


def _check_targets(official: Iterable[Target], given: Sequence[Target], allows: str) -> list[str]:
    """A given target may be stricter than the official one, never laxer."""
    found = []
    for wanted in official:
        named = [target for target in given if target.name == wanted.name]
        if not any(_as_strict(target, wanted) for target in named):
            have = " and ".join(t.words for t in named) or f"no target for {wanted.name}"
            found.append(f"the run's target is {have}; {allows} demands {wanted}.")
    return found


def _as_strict(target: Target, wanted: Target) -> bool:
    floor = max((b for b in (target.at_least, target.above) if b is not None), default=-math.inf)
    if wanted.at_least is not None and floor < wanted.at_least:
        return False
    if wanted.above is not None:
        reached = target.above is not None and target.above >= wanted.above
        if not reached and floor <= wanted.above:
            return False
    ceiling = math.inf if target.at_most is None else target.at_most
    return wanted.at_most is None or ceiling <= wanted.at_most


def _check_schedule(
    evaluation: Evaluation | None, steps: Sequence[int], values: Mapping[str, Any], allows: str
) -> list[str]:
    batch: Any = values.get("global_batch_size")
    samples: Any = values.get("train_samples")
    if evaluation is None or not _positive(batch) or not _positive(samples):
        return []  # not known, or said already
    fault = evaluation.fault(steps, batch, samples)
    return [f"{fault}, in {allows}."] if fault else []


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
