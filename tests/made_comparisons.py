"""Made-up comparisons of optimizers, as plain values. Nothing here is a measurement."""

import math
import random
from collections.abc import Mapping, Sequence

from mlperf_jax.results.comparison.model import Comparison, Entrant, Outcome, Tuning
from mlperf_jax.results.rules import Target

BUDGET = 64_000
EVERY = 640  # samples between evaluations
BATCH = 64

Ways = Sequence[int | str | None]  # samples to the target, None for not reached, or another ending


def outcome(
    seed: int, took: int | str | None, *, budget: int = BUDGET, rate: float = 1000.0
) -> Outcome:
    """A run that reached after so many samples, or did not; with curves of a loss and of an accuracy."""
    reached = isinstance(took, int)
    seen = took if isinstance(took, int) else budget if took is None else budget // 4
    rng = random.Random(seed)
    pace = took if isinstance(took, int) else 2 * budget
    places = range(EVERY, seen + 1, EVERY)
    left = [math.exp(-3 * samples / pace) for samples in places]
    curves = {
        "loss": tuple((x, 0.2 + 2 * part + 0.05 * rng.random()) for x, part in zip(places, left)),
        "accuracy": tuple((x, 0.98 * (1 - part) + 0.01 * rng.random()) for x, part in zip(places, left)),
    }  # fmt: skip
    if reached:
        steps, seconds = seen // BATCH, seen / rate
        return Outcome(seed, "reached", "", seen, steps, seconds, seen, curves)
    ending = "limit" if took is None else took
    reason = "" if ending == "limit" else "the loss was not finite"
    return Outcome(seed, ending, reason, seen=seen, curves=curves)  # pyright: ignore[reportArgumentType]


def comparison(
    ways: Mapping[str, Ways],
    *,
    benchmark: str = "resnet",
    tiny: bool = True,
    budget: int = BUDGET,
    tunings: Mapping[str, Tuning] | None = None,
) -> Comparison:
    """Entrants by label, each with what its runs took, by seed."""
    seeds = tuple(range(max(map(len, ways.values()))))
    entrants = tuple(
        Entrant(
            label,
            f"optax.{label}(0.1)",
            tuple(outcome(seed, took, budget=budget) for seed, took in enumerate(each)),
            (tunings or {}).get(label),
        )
        for label, each in ways.items()
    )
    return Comparison(
        benchmark, tiny, (Target("accuracy", at_least=0.93),), budget, seeds, entrants, device="cpu"
    )


def demo() -> list[Comparison]:
    """Three benchmarks with four entries each: better, worse, alike, and one that fails now and then."""
    rng = random.Random(4)
    made = []
    for benchmark, base in (("resnet", 24_000), ("bert", 32_000), ("dlrm", 16_000)):
        ways: dict[str, list[int | str | None]] = {}
        own = [base * (1 + 0.15 * rng.random()) for _ in range(8)]
        for label, factor in (
            ("lars", 1.0),
            ("muon", 0.75),
            ("adamw_50%", 1.01),
            ("sgd & warmup", 1.4),
        ):
            took = [value * factor * (1 + 0.06 * (rng.random() - 0.5)) for value in own]
            ways[label] = [max(EVERY, round(each / EVERY) * EVERY) for each in took]
        ways["sgd & warmup"][3] = None
        ways["sgd & warmup"][6] = "stopped"
        tuning = Tuning(
            "learning_rate log-uniform in 0.005 to 0.5", 12, 12 * 20_480, {"learning_rate": 0.02}
        )
        made.append(comparison(ways, benchmark=benchmark, tunings={"muon": tuning}))
    return made
