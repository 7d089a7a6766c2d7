"""What a failed compilation says: too big for the memory, or the compiler's own failure.

The second is no verdict on memory, and is never reported as one.
"""

from __future__ import annotations

import re

_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_UNITS |= {f"{unit}iB": size for unit, size in _UNITS.items() if unit not in ("", "B")}
_SIZE = r"([\d.]+)\s*([KMGT]?(?:iB)?|B)"

# XLA's words for it on TPUs, in the order they are tried
_USED = (
    re.compile(rf"Used {_SIZE} of {_SIZE} hbm", re.IGNORECASE),
    re.compile(rf"\({_SIZE}\) exceeds available HBM \({_SIZE}\)", re.IGNORECASE),
)
_LARGEST = re.compile(
    rf"^\s*\d+\. Size: {_SIZE}\s*$(.*?)(?=^\s*\d+\. Size:|\Z)", re.MULTILINE | re.DOTALL
)
_SHAPE, _OPERATOR = re.compile(r"Shape: (\S+)"), re.compile(r'op_name="([^"]*)"')


def out_of_memory(message: str) -> tuple[int | None, int | None] | None:
    """Bytes wanted and available, where the message says that memory is what lacks; else None.

    >>> out_of_memory("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Used 30.00G of 15.75G hbm.")
    (32212254720, 16911433728)
    >>> out_of_memory("INTERNAL: chunk overlaps with another chunk") is None
    True
    """
    for pattern in _USED:
        match = pattern.search(message)
        if match:
            return bytes_of(match[1], match[2]), bytes_of(match[3], match[4])
    if re.search(r"CompileTimeHbmOom|RESOURCE_EXHAUSTED.*(hbm|memory)", message, re.IGNORECASE):
        # vector memory is the kernel's affair: no program fits a smaller batch into it by itself
        return None if re.search(r"\b[sv]mem\b", message, re.IGNORECASE) else (None, None)
    return None


def bytes_of(number: str, unit: str) -> int:
    """Bytes from the compiler's spelling.

    >>> bytes_of("1.50", "G")
    1610612736
    """
    return int(float(number) * _UNITS[unit])


def largest_allocations(message: str) -> tuple[tuple[int, str], ...]:
    """The buffers that an out-of-memory message lists, largest first, as (bytes, what)."""
    found = []
    for match in _LARGEST.finditer(message):
        shape, operator = _SHAPE.search(match[3]), _OPERATOR.search(match[3])
        parts = [part[1] for part in (shape, operator) if part]
        found.append((bytes_of(match[1], match[2]), " ".join(parts) or "unnamed"))
    return tuple(sorted(found, reverse=True)[:8])


def first_lines(message: str, count: int = 3) -> str:
    """The first lines that say something."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return "\n".join(line[:300] for line in lines[:count]) or "no message"
