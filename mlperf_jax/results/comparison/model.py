"""What a comparison of optimizers found: plain data, from which tables, pictures and the page are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mlperf_jax.results.rules import Target

Points = tuple[tuple[float, float], ...]  # (samples, value), by samples
Ending = Literal["reached", "limit", "stopped", "crashed"]


@dataclass(frozen=True)
class Outcome:
    """How one run of an entry ended.

    Attributes:
        seed: the run's.
        ending: "reached" the targets; "limit": saw all samples that it might; "stopped": gave up before, as its loss
            was not finite; "crashed": by an error.
        reason: of the last two in a sentence, else "".
        samples, steps, seconds: what it took to the evaluation that met the targets; None where none did.
        seen: samples seen when it ended.
        curves: of each quality, and of the training loss as "loss".
    """

    seed: int
    ending: Ending
    reason: str = ""
    samples: int | None = None
    steps: int | None = None
    seconds: float | None = None
    seen: int = 0
    curves: Mapping[str, Points] = field(default_factory=dict)


@dataclass(frozen=True)
class Tuning:
    """How an entry's settings were found.

    Attributes:
        space: what was searched, in words: "learning_rate log-uniform in 0.05 to 5".
        trials: how many settings were tried.
        samples: seen by all of them together.
        chosen: the settings of the best.
    """

    space: str
    trials: int
    samples: int
    chosen: Mapping[str, float]


@dataclass(frozen=True)
class Entrant:
    """An optimizer, and how its runs ended.

    Attributes:
        label: what it is called by.
        optimizer: as it was given, with the settings that tuning found.
        outcomes: by seed, in the order of the comparison's seeds; those still to be made are missing.
        tuning: None where nothing was tuned.
    """

    label: str
    optimizer: str
    outcomes: tuple[Outcome, ...] = ()
    tuning: Tuning | None = None

    def outcome(self, seed: int) -> Outcome | None:
        """The run with this seed, if it was made."""
        return next((one for one in self.outcomes if one.seed == seed), None)


@dataclass(frozen=True)
class Comparison:
    """Optimizers on one benchmark, each with the same seeds and samples.

    Attributes:
        benchmark: its name.
        tiny: whether it was the small stand-in.
        targets: all must be met.
        budget: samples that each run might see.
        seeds: each entrant has a run of each: same initial weights, same order of samples.
        entrants: the first is what the others are compared with.
        folder: where the runs lie; "" for none.
        device: the kind of chip, and how many.
    """

    benchmark: str
    tiny: bool
    targets: tuple[Target, ...]
    budget: int
    seeds: tuple[int, ...]
    entrants: tuple[Entrant, ...]
    folder: str = ""
    device: str = ""

    @property
    def title(self) -> str:
        """The benchmark with its size, as it may be shown."""
        return self.benchmark + (" (tiny)" if self.tiny else "")

    def pairs(self, first: Entrant, second: Entrant) -> Sequence[tuple[Outcome, Outcome]]:
        """Runs of two entrants with the same seed, as far as both were made."""
        both = ((first.outcome(seed), second.outcome(seed)) for seed in self.seeds)
        return [(one, other) for one, other in both if one and other]
