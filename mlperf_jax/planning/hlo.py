"""Reads a compiled program's text: its instructions, and the sizes of what they make.

Only what planning asks for; XLA has no stable interface for it. What is not understood counts as
nothing, so the figures are lower bounds.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_BITS = {"pred": 8, "token": 0, "c64": 64, "c128": 128, "opaque": 0}
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_MEMORY_SPACE = re.compile(r"S\((\d+)\)")
_TILED = re.compile(r"([\d,]+):T\(([\d,]+)\)")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_NAME = re.compile(r"%?([\w.-]+)$")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_FREE = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "conditional"}


@dataclass(frozen=True)
class Array:
    """One array of a shape.

    Attributes:
        dtype, dims: what it holds.
        large_memory: whether it lives in the chip's large memory.
        padded: elements that its tiles take up there: 64 channels of a TPU's 128 lanes are as many as 128.
    """

    dtype: str
    dims: tuple[int, ...]
    large_memory: bool
    padded: int

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """In memory, the padding of its tiles included."""
        return -(-self.padded * bits(self.dtype) // 8)


@dataclass
class Instruction:
    """One line: `name = shape opcode(operands), attributes`."""

    name: str
    shape: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool

    @property
    def bytes(self) -> int:
        """Of its result, in the chip's large memory."""
        return sum(array.bytes for array in self.shape if array.large_memory)

    @property
    def called(self) -> list[str]:
        """Names of the computations it runs, branches left out."""
        return _CALLED.findall(self.attributes)

    @property
    def branches(self) -> list[str]:
        found = _first(_BRANCHES, self.attributes)
        return [part.strip().lstrip("%") for part in found.split(",")] if found else []

    def attribute(self, name: str) -> str:
        """The text behind `name=`, up to the next comma outside brackets."""
        _, found, rest = self.attributes.partition(f"{name}=")
        return next(_split(rest)) if found else ""

    @property
    def cycles(self) -> int:
        """What the compiler's own cost model expects of it, 0 where it says nothing."""
        return int(_first(_CYCLES, self.attributes) or 0)

    @property
    def op_name(self) -> str:
        """What of the traced program it comes from."""
        return _first(_OP_NAME, self.attributes)


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return found[1] if found else ""


@dataclass
class Computation:
    """Instructions by name, in the order of the text."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)

    @property
    def root(self) -> Instruction:
        return next(i for i in reversed(self.instructions.values()) if i.root)

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Who reads a value."""
        found: dict[str, list[Instruction]] = {}
        for instruction in self.instructions.values():
            for name in instruction.operands:
                found.setdefault(name, []).append(instruction)
        return found

    def parameters(self) -> dict[int, Instruction]:
        """By number."""
        return {
            int(i.operands[0]): i for i in self.instructions.values() if i.opcode == "parameter"
        }


@dataclass
class Module:
    """A program: computations by name, and the one that runs."""

    computations: Mapping[str, Computation]
    entry: Computation


@functools.cache
def bits(dtype: str) -> int:
    """Bits of an element.

    >>> bits("bf16"), bits("s4"), bits("f8e4m3fn"), bits("pred")
    (16, 4, 8, 8)
    """
    if dtype in _BITS:
        return _BITS[dtype]
    found = re.match(r"[a-z]+(\d+)", dtype)
    return int(found[1]) if found else 0


def parse(text: str) -> Module:
    """The module of `compiled.as_text()`."""
    computations: dict[str, Computation] = {}
    entry = current = None
    for line in text.splitlines():
        if line.startswith((" ", "\t")) and current is not None:
            instruction = _instruction(line.strip())
            if instruction:
                current.instructions[instruction.name] = instruction
        elif line.endswith("{") and not line.startswith("HloModule"):
            word = line.split(" ", 2)[1 if line.startswith("ENTRY") else 0]
            current = Computation(word.lstrip("%"))
            computations[current.name] = current
            entry = current if line.startswith("ENTRY") else entry
    if entry is None:
        raise ValueError("the text holds no ENTRY computation")
    return Module(computations, entry)


def arrays(text: str) -> tuple[Array, ...]:
    """The arrays of a shape's text.

    >>> [(a.dims, a.bytes, a.large_memory) for a in arrays("(bf16[2,3]{1,0:T(8,128)}, s32[]{:S(1)})")]
    [((2, 3), 2048, True), ((), 4, False)]
    """
    found = []
    for dtype, dims, layout in _ARRAY.findall(text):
        space = _MEMORY_SPACE.search(layout)
        sizes = tuple(int(size) for size in dims.split(",") if size)
        large = space is None or space[1] in ("0", "5")
        found.append(Array(dtype, sizes, large, _padded(sizes, layout)))
    return tuple(found)


def _padded(sizes: tuple[int, ...], layout: str) -> int:
    """Elements of an array whose minor dimensions are filled up to whole tiles.

    >>> _padded((7, 100, 64), "2,1,0:T(8,128)(2,1)") == 7 * 104 * 128
    True
    """
    tiled, filled = _TILED.match(layout), list(sizes)
    if tiled:
        minor_first = [int(axis) for axis in tiled[1].split(",")]
        tile = [int(size) for size in tiled[2].split(",")]
        for axis, size in zip(minor_first, reversed(tile)):
            filled[axis] = -(-filled[axis] // size) * size
    return math.prod(filled)


def _instruction(line: str) -> Instruction | None:
    root = line.startswith("ROOT ")
    name, equals, rest = line.removeprefix("ROOT ").partition(" = ")
    if not equals:
        return None
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, bracket, _ = rest.partition("(")
    if not bracket or not re.fullmatch(r"[\w-]+", opcode):
        return None
    end = _closing(rest, len(opcode))
    inside = rest[len(opcode) + 1 : end]
    # an operand is "%name", or "shape %name" in other versions
    operands = [_NAME.search(part.strip()) for part in _split(inside)]
    names = tuple(found[1] for found in operands if found)
    return Instruction(name.lstrip("%"), arrays(shape), opcode, names, rest[end + 2 :], root)


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    depth = 0
    for match in re.finditer(r"[()]", text[start:]):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return start + match.start()
    return len(text) - 1


def _split(text: str) -> Iterator[str]:
    """Parts between the commas that are outside brackets."""
    depth = begin = 0
    for match in re.finditer(r"[(){}\[\],]", text):
        letter = match[0]
        if letter == "," and depth == 0:
            yield text[begin : match.start()]
            begin = match.end()
        else:
            depth += (letter in "({[") - (letter in ")}]")
    yield text[begin:]


def largest_buffers(module: Module, count: int = 5) -> tuple[tuple[int, str], ...]:
    """The largest results in the chip's large memory, as (bytes, shape and origin).

    Each shape once: a loop fills in place what zeros began.
    """
    inner = {name for c in module.computations.values() for name in _fused(c)}
    found: dict[str, tuple[int, str]] = {}
    for computation in module.computations.values():
        if computation.name in inner:
            continue
        for instruction in computation.instructions.values():
            if instruction.opcode in _FREE or not instruction.shape:
                continue
            array = max(instruction.shape, key=lambda a: a.bytes if a.large_memory else 0)
            if array.large_memory:
                sizes = ",".join(map(str, array.dims))
                shape, origin = f"{array.dtype}[{sizes}]", instruction.op_name
                if shape not in found or "broadcast" in found[shape][1]:
                    found[shape] = array.bytes, f"{shape} {origin}".strip()
    return tuple(sorted(found.values(), reverse=True)[:count])


def largest_tensors(text: str, count: int = 5) -> list[tuple[int, str]]:
    """The largest arrays of a program that is not compiled yet, as (bytes of all devices, shape).

    >>> largest_tensors("%1 = stablehlo.add %0, %0 : tensor<64x32xbf16> loc(#1) tensor<4xf32>", 1)
    [(4096, 'bf16[64,32]')]
    """
    found = set()
    for dims, dtype in set(re.findall(r"tensor<((?:\d+x)+)([a-z]\w*)>", text)):
        sizes = [int(size) for size in dims.split("x")[:-1]]
        shape = f"{dtype}[{','.join(map(str, sizes))}]"
        found.add((-(-math.prod(sizes) * bits(dtype) // 8), shape))
    return sorted(found, reverse=True)[:count]


def _fused(computation: Computation) -> set[str]:
    """Computations that exist inside one instruction only."""
    found: set[str] = set()
    for instruction in computation.instructions.values():
        if instruction.opcode not in ("while", "conditional", "call", "async-start"):
            found |= set(instruction.called)
    return found
