"""What a compiled program's text cannot say of itself, as names and name scopes that planning reads.

They change nothing that is computed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax

WHOLE_ATTENTION = (
    "whole_attention"  # a kernel of ops/whole_attention.py, with "_fwd" or "_bwd" behind it
)
_RARELY = "rarely"
_TURNS = re.compile(r"/turns_(\d+)/")


def rarely(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, as a branch or a loop's body that runs only when all else fails."""
    return jax.named_scope(_RARELY)(function)


def turns(count: int) -> AbstractContextManager[Any]:
    """Around a loop whose length only a run knows: about so many turns."""
    return jax.named_scope(f"turns_{count}")


def is_rare(op_name: str) -> bool:
    """Whether an instruction of this origin runs only when all else fails.

    >>> is_rare("jit(step)/cond/branch_0_fun/rarely/add")
    True
    """
    return f"/{_RARELY}/" in op_name


def expected_turns(op_name: str) -> int | None:
    """How often a loop of this origin turns, if that was said of it and of no loop inside it.

    >>> expected_turns("jit(step)/turns_207/while"), expected_turns("jit(step)/turns_207/while/body/while")
    (207, None)
    >>> expected_turns("jit(step)/turns_5/while/body/turns_7/while")
    7
    """
    found = list(_TURNS.finditer(op_name))
    return int(found[-1][1]) if found and "while/" not in op_name[found[-1].end() :] else None
