"""When a benchmark is evaluated, as data: the first step and the distance of the next ones.

Legend: a step is one global batch; `batch` in a formula is its size, `every` in `first` the distance.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

from mlperf_jax.results import formulas

# An interval in steps, both ends allowed: rules in epochs leave open how a partial batch counts.
Span = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An evaluation schedule.

    Attributes:
        unit: what `every`, `first` and `at` count: "steps", "samples" or "epochs"; "generations" are
            told but cannot be calculated.
        every: distance between evaluations, a number or a formula of `batch`.
        first: the first one; `every` when None; "any" for a free choice up to `every`.
        at: the evaluations one by one, in place of the two.
        pad: an epoch counts its last, partial batch; either way is allowed when False.
        note: what numbers cannot say.
    """

    unit: str
    every: str | float | None = None
    first: str | float | None = None
    at: Sequence[float] = ()
    pad: bool = False
    note: str = ""

    def __str__(self) -> str:
        if self.at:
            text = f"after {self.unit} {', '.join(f'{a:g}' for a in self.at)}"
        else:
            text = f"every {_shown(self.every)} {self.unit}"
            if self.every == 1:
                text = f"every {self.unit.removesuffix('s')}"
            if self.first == "any":
                text += ", the first within these"
            elif self.first is not None:
                text += f", the first after {_shown(self.first)}"
        return f"{text} ({self.note})" if self.note else text

    def steps(self, batch: int, samples: int | None = None) -> Iterator[int]:
        """The steps after which to evaluate: endless, or none where the rule is not in numbers.

        Example:
            >>> list(itertools.islice(Evaluation("samples", every=1000).steps(300), 4))
            [4, 7, 10, 14]

        Args:
            batch: global batch size.
            samples: of the training set; needed for a schedule in epochs, which takes whole batches
                only unless `pad`.
        """
        if self.unit == "generations":
            return
        if self.at:
            yield from (round(epoch * self._epoch(batch, samples)[0]) for epoch in self.at)
            return
        if self.unit == "samples":
            every, first = self._numbers(batch)
            yield from (math.ceil((first + k * every) / batch) for k in itertools.count())
        first, interval = self.spans(batch, samples)
        yield from itertools.count(interval[0] if self.first == "any" else first[0], interval[0])

    def spans(self, batch: int, samples: int | None = None) -> tuple[Span, Span]:
        """Where the first evaluation may be, and how far it may be from one to the next, in steps."""
        every, first = self._numbers(batch)
        if self.unit == "steps":
            return (int(first), int(first)), (int(every), int(every))
        if self.unit == "samples":
            begin = math.ceil(first / batch)
            return (begin, begin), (max(1, math.floor(every / batch)), math.ceil(every / batch))
        low, high = self._epoch(batch, samples)
        interval = (max(1, math.floor(every * low)), math.ceil(every * high))
        if self.first == "any":
            return (1, interval[1]), interval
        return (max(1, math.floor(first * low)), math.ceil(first * high)), interval

    def fault(self, steps: Sequence[int], batch: int, samples: int | None = None) -> str | None:
        """What is wrong with these first evaluations, in words; None if they keep the schedule.

        Args:
            steps: three or more, unless the schedule has fewer.
            batch: global batch size.
            samples: of the training set.
        """
        if self.unit == "generations":
            return None
        if self.at:
            return self._fault_at(steps, batch, samples)
        first, interval = self.spans(batch, samples)
        rule = f"evaluates {self}, which is every {_span(interval)} steps here"
        if len(steps) < 3:
            return f"only {len(steps)} evaluation(s) stated; the rule {rule}: state three or more"
        if not first[0] <= steps[0] <= first[1]:
            if self.first == "any":
                also = "the first included"
            else:
                also = f"the first after {_span(first)}"
            return f"the first evaluation comes after {steps[0]} steps; the rule {rule}, {also}"
        for before, after in itertools.pairwise(steps):
            if not interval[0] <= after - before <= interval[1]:
                return f"evaluations come after {before} and {after} steps; the rule {rule}"
        return None

    def _fault_at(self, steps: Sequence[int], batch: int, samples: int | None) -> str | None:
        low, high = self._epoch(batch, samples)
        for step, at in zip(steps, self.at, strict=False):
            span = (math.floor(at * low), math.ceil(at * high))
            if not span[0] <= step <= span[1]:
                return (
                    f"an evaluation comes after {step} steps; the rule evaluates {self}, which here is "
                    f"after {_span(span)} steps"
                )
        return None if steps else f"no evaluation is stated; the rule evaluates {self}"

    def _numbers(self, batch: int) -> tuple[float, float]:
        assert self.every is not None
        every = formulas.calculate(self.every, {"batch": batch})
        if self.first is None or self.first == "any":
            return every, every
        return every, formulas.calculate(self.first, {"batch": batch, "every": every})

    def _epoch(self, batch: int, samples: int | None) -> Span:
        """Steps of an epoch without and with its partial batch."""
        if self.unit != "epochs":
            raise ValueError(f"a schedule in {self.unit} has no epochs")
        if samples is None:
            raise ValueError("a schedule in epochs needs the number of training samples")
        high = math.ceil(samples / batch)
        return (high if self.pad else math.floor(samples / batch), high)


def _shown(number: str | float | None) -> str:
    return number if isinstance(number, str) else f"{number:,.12g}"


def _span(span: Span) -> str:
    return f"{span[0]}" if span[0] == span[1] else f"{span[0]} to {span[1]}"
