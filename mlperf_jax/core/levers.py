"""Levers: what an open-division run may do beside its optimizer to need fewer samples, or cheaper ones.

Written as text they are joined by plus signs, behind an optimizer too: "sgd:0.5+ema_decay=0.99+batch_ramp=16:2000,32:6000".
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

from mlperf_jax.core.fields import Count, Fraction, Positive, check_fields
from mlperf_jax.errors import UserError, did_you_mean

Ramp = tuple[tuple[Count, Count], ...]
RAMPS = ("batch_ramp", "size_ramp")
_JOINED = re.compile(r"\s*\+\s*(?=[A-Za-z_]*(?:=|$))")


class Segment(NamedTuple):
    """Steps of one batch size and one size of example.

    Attributes:
        step: the number of steps before it.
        samples: seen before it.
        batch: samples of a batch.
        size: of an example; None: the benchmark's own.
    """

    step: int
    samples: int
    batch: int
    size: int | None


@dataclass(frozen=True, kw_only=True)
class Levers:
    """What is done beside the optimizer; nothing by default, and what is None stays as the recipe has it.

    Attributes:
        ema_decay: of an exponential average of the weights after each step, which is what is evaluated.
        label_smoothing: the share of each label that is spread evenly over all classes.
        sam: radius rho of a sharpness-aware step (Foret et al. 2021): the gradient is taken where the loss is highest
            nearby, rho along the gradient away; a step costs two gradients.
        batch_ramp: (batch size, samples) pairs: batches of so many until so many samples were seen; `batch_size`
            afterwards. Batches run on from epoch to epoch, so that every sample is seen once in each.
        size_ramp: (size, samples) pairs: smaller examples until so many samples were seen: images of another side,
            sequences cut shorter. Evaluation is at full size.
        transform: as `--transform` takes it.

    Raises:
        UserError: a ramp whose samples do not grow.

    >>> str(Levers(sam=0.05, batch_ramp=((16, 2000), (32, 6000))))
    'sam=0.05+batch_ramp=16:2000,32:6000'
    """

    in_words: ClassVar[str] = (
        "NAME=VALUE joined by + (such as ema_decay=0.99+sam=0.05), a dict, or Levers(…)"
    )

    ema_decay: Fraction | None = None
    label_smoothing: Fraction | None = None
    sam: Positive | None = None
    batch_ramp: Ramp = ()
    size_ramp: Ramp = ()
    transform: Any = None

    def __post_init__(self) -> None:
        check_fields(self)
        for name in RAMPS:
            ends = [until for _, until in getattr(self, name)]
            if ends != sorted({*ends}):
                raise UserError(
                    f"{name}: the samples until which a value holds must grow, as in {name}=16:2000,32:6000"
                )

    @classmethod
    def of(cls, given: Any) -> Self:
        """The levers that a text or a mapping means; None means none.

        Raises:
            UserError: it is neither, names one that is not there, or gives a value that it cannot have.

        >>> Levers.of("ema_decay=0.99").ema_decay
        0.99
        """
        if isinstance(given, cls):
            return given
        if not isinstance(given, str | Mapping | None):
            raise UserError(f"levers must be {cls.in_words}, not {given!r}")
        pairs = _pairs(given) if isinstance(given, str) else list((given or {}).items())
        names = [field.name for field in dataclasses.fields(cls)]
        for name, _ in pairs:
            if name not in names:
                raise UserError(f"no lever {name!r}{did_you_mean(str(name), names)}")
        return cls(**dict(pairs))

    def __str__(self) -> str:
        return "+".join(f"{name}={_text(value)}" for name, value in self.given.items())

    def __bool__(self) -> bool:
        return bool(self.given)

    @property
    def given(self) -> dict[str, Any]:
        """Those that are pulled, by name."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value not in (None, ())}

    @property
    def ramped(self) -> bool:
        """Whether batches or examples change their size as training goes on."""
        return bool(self.batch_ramp or self.size_ramp)

    def joined(self, others: Levers) -> Self:
        """These, and the others in their place where both say something."""
        return dataclasses.replace(self, **others.given)

    def without(self, *names: str) -> Self:
        """All but those of these names."""
        return type(self)(**{k: v for k, v in self.given.items() if k not in names})

    def segments(self, batch_size: int) -> tuple[Segment, ...]:
        """The steps by what they train on; the last goes on for ever.

        A segment ends with the first step after which its samples were seen and the next one's batches begin at a
        multiple of their size, so that each of those is a batch of the stream that holds nothing else.

        >>> [tuple(one) for one in Levers(batch_ramp=((16, 40),)).segments(64)]
        [(0, 0, 16, None), (4, 64, 64, None)]
        """
        return _segments(self.batch_ramp, self.size_ramp, batch_size)

    def samples(self, step: int, batch_size: int) -> int:
        """Samples seen after so many steps."""
        if not self.batch_ramp:
            return step * batch_size
        here = next(s for s in reversed(self.segments(batch_size)) if s.step <= max(step, 0))
        return here.samples + (step - here.step) * here.batch


NONE = Levers()


def without(text: str) -> str:
    """An optimizer's text without what stands behind a plus.

    >>> without("sgd:0.5+sam=0.05"), without("adamw:1e+3")
    ('sgd:0.5', 'adamw:1e+3')
    """
    return _JOINED.split(text, maxsplit=1)[0]


def split(text: str) -> tuple[str, Levers]:
    """An optimizer's text, and the levers behind it.

    >>> split("sgd:0.5,momentum=0.9+sam=0.05")[0]
    'sgd:0.5,momentum=0.9'
    """
    first, *more = _JOINED.split(text, maxsplit=1)
    if more == [""]:
        raise UserError(f"{text!r} ends in a plus: write +NAME=VALUE behind it, such as +sam=0.05")
    return first, Levers.of(more[0]) if more else NONE


def _pairs(text: str) -> list[tuple[str, Any]]:
    found: dict[str, Any] = {}
    for part in _JOINED.split(text) if text else ():
        name, equals, value = part.partition("=")
        if not equals or not value:
            raise UserError(f"{part!r} is no lever: write NAME=VALUE, such as ema_decay=0.99")
        if name in found:
            raise UserError(f"{name} is given twice: leave one out")
        found[name] = _read(name, value)
    return list(found.items())


def _read(name: str, value: str) -> Any:
    if name == "transform":
        return value
    try:
        if name not in RAMPS:
            return float(value)
        pairs = (pair.split(":") for pair in value.split(","))
        return tuple((int(size), int(until)) for size, until in pairs)
    except ValueError:
        such = f"{name}=16:2000,32:6000" if name in RAMPS else f"{name}=0.1"
        raise UserError(f"{name} cannot be {value!r}: write it as in {such}") from None


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(f"{size}:{until}" for size, until in value)
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


@functools.lru_cache
def _segments(batches: Ramp, sizes: Ramp, batch_size: int) -> tuple[Segment, ...]:
    def at(ramp: Ramp, samples: int, last: Any) -> Any:
        return next((value for value, until in ramp if samples < until), last)

    found: list[Segment] = []
    step = samples = 0
    for until in [*sorted({until for _, until in (*batches, *sizes)}), math.inf]:
        if samples >= until:  # within the batch that ended the one before
            continue
        batch, size = at(batches, samples, batch_size), at(sizes, samples, None)
        found.append(Segment(step, samples, batch, size))
        if until is not math.inf:
            steps, before = math.ceil((until - samples) / batch), samples // batch
            while True:  # until the batches that follow begin at a multiple of their size
                following = at(batches, samples + steps * batch, batch_size)
                more = -(before + steps) % (following // math.gcd(following, batch))
                steps += more
                if not more:
                    break
            step, samples = step + steps, samples + steps * batch
    return tuple(found)
