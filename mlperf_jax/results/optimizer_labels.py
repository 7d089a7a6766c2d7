"""What sets of runs are called by where they differ in their optimizer: its name, and what tells equal names apart."""

from __future__ import annotations

import collections
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

RECIPES = "the recipe's"

_MOST = 3  # settings in a label: more are no name


@dataclass(frozen=True)
class Used:
    """The optimizer of a set.

    Attributes:
        group: sets are told apart within it: their benchmark, with its size.
        name: as the log has it; "" where it is not known.
        program: hex digits of what it computes; "" of the recipe's own, and where the log does not say.
        settings: what it was set to, by name.
        levers: what was done beside it, as the log has it; "" for nothing.
    """

    group: Hashable
    name: str
    program: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    levers: str = ""


def labels(sets: Sequence[Used]) -> list[str]:
    """A label of each set; "" where all sets of its group have one optimizer and the same levers.

    >>> labels([Used("bert", "lamb"), Used("bert", "adamw", "1f", {"rate": 1}), Used("bert", "adamw", "2e", {"rate": 2})])
    ["lamb (the recipe's)", 'adamw, rate 1', 'adamw, rate 2']
    >>> labels([Used("bert", "lamb"), Used("resnet", "muon", "3a")])
    ['', '']
    >>> labels([Used("bert", "lamb"), Used("bert", "lamb", levers="sam=0.05")])
    ['lamb', 'lamb+sam=0.05']
    """
    groups = collections.defaultdict(list)
    for one in sets:
        groups[one.group].append(one)
    return [_label(one, groups[one.group]) for one in sets]


def _label(one: Used, group: Sequence[Used]) -> str:
    """The optimizer where those of the group differ, and the levers where those do."""
    told = _optimizer(one, group)
    if len({other.levers for other in group}) < 2:
        return told
    return (told or one.name or RECIPES) + (f"+{one.levers}" if one.levers else "")


def _optimizer(one: Used, group: Sequence[Used]) -> str:
    replaced = any(other.program for other in group)
    # what a log leaves out is no difference, unless another's optimizer was replaced
    known = [other for other in group if replaced or other.name]
    if len({(other.name, other.program) for other in known}) < 2:
        return ""
    if not one.program and replaced:
        return f"{one.name} ({RECIPES})" if one.name else RECIPES
    alike = [other for other in group if other.name == one.name]
    if len({other.program for other in alike}) < 2:
        return one.name
    found = {other.program: _told(other, alike) for other in alike}
    # settings tell them apart, or else what is computed does
    if len(set(found.values())) == len(found) and found[one.program]:
        return f"{one.name}, {found[one.program]}"
    return f"{one.name} {one.program[:8]}".strip()


def _told(one: Used, alike: Sequence[Used]) -> str:
    """The settings in which those of one name differ, as this one has them."""
    names = dict.fromkeys(name for other in alike for name in other.settings)
    differing = [
        name for name in names if len({str(other.settings.get(name)) for other in alike}) > 1
    ]
    shown = [f"{name} {one.settings.get(name, 'none')}" for name in differing]
    return ", ".join(shown) if len(shown) <= _MOST else ""
