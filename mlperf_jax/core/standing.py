"""Where a run stands: one value that the loop moves on, checkpoints keep, and the result tells of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Ended:
    """How a run ended, and of an aborted one why."""

    status: Literal["success", "aborted"]
    reason: str = ""

    @classmethod
    def at_limit(cls) -> Ended:
        """The last allowed sample was seen: a run that may see more goes on from here."""
        return cls("aborted", "the last allowed sample was seen")


@dataclass
class Standing:
    """Where a run stands after a step.

    Attributes:
        step: batches done, as the host counts them.
        quality: of the last evaluation whose value is known.
        evaluated: the step whose quality that is.
        seconds_training: wall time of blocks of steps, without evaluation.
        block: where the steps up to the next evaluation began, while they are under way.
        generation_ends: the last step of each generation made so far.
        evaluation_due: whether a resumed run begins with the evaluation of this very step.
        ended: how, once that is known.
        before_end: what the log's length and `block` were before its last lines, once it has ended.
        saved: the step of the last checkpoint that this process has taken or begun from; not kept.
    """

    step: int = 0
    quality: dict[str, float] = field(default_factory=dict)
    evaluated: int | None = None
    seconds_training: float = 0.0
    block: dict[str, float] | None = None
    generation_ends: list[int] = field(default_factory=list)
    evaluation_due: bool = False
    ended: Ended | None = None
    before_end: dict[str, Any] | None = None
    saved: int | None = None

    def kept(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, as JSON holds it."""
        kept = dataclasses.asdict(self)
        del kept["saved"], kept["evaluation_due" if self.ended else "ended"]
        return kept

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> Standing:
        """Where the run stood whose checkpoint has these meta data."""
        kept = {f.name: meta[f.name] for f in dataclasses.fields(cls) if f.name in meta}
        ended = meta.get("ended")
        return cls(**{**kept, "ended": ended and Ended(**ended), "saved": meta["step"]})

    @staticmethod
    def extended(meta: Mapping[str, Any]) -> dict[str, Any]:
        """The meta data of a checkpoint whose run ended at its limit, as they were before it ended."""
        return {**meta, **meta["before_end"], "ended": None, "before_end": None}
