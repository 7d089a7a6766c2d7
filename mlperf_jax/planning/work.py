"""How much a compiled program does in one call: products, bytes of memory, bytes between devices.

Loops count as often as they run, and branches in equal parts but for those that `ops` call rare. A fused
instruction reads and writes its ends only; what lives in the chip's small memory is free; a slice of an
array costs the slice, and an update in place the update. Products inside kernels that the compiler cannot
see into are known for the kernels of attention.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from mlperf_jax.ops import hints
from mlperf_jax.planning.hlo import Array, Computation, Instruction, Module

Computations = Mapping[str, Computation]
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
)
_SILENT = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"),
    *("partition-id", "replica-id", "opt-barrier", "domain", "add-dependency", "broadcast"),
}
_SLICING = {"dynamic-slice", "slice", "gather"}
_IN_PLACE = {"dynamic-update-slice", "scatter"}
_NO_WORK = re.compile(r'custom_call_target="(AllocateBuffer|Assume|Sharding|annotate)')
_TINY = 4096  # bytes; smaller instructions are added up instead of being listed

# Products of one attended pair of a query and a key, over the head dimension H: 2 H FLOPs each
_SPLASH = {"fwd": 2, "dkv": 4, "dq": 3, "fused_dkv": 5}
_WHOLE = {"fwd": 2, "bwd": 5}


def work(module: Module, devices: int, slices: int = 1) -> dict[str, Any]:
    """The counts of one call of the program on one device.

    Args:
        module: the compiled program.
        devices: how many run it together.
        slices: into how many TPU slices, or nodes of GPUs, they are divided.

    Returns:
        "instructions" as [FLOPs, bytes, cycles, times] and "collectives" as [kind, bytes, group size, slices
        spanned, whether it runs beside others, times].
    """
    tally = Tally(module, devices, max(1, devices // slices))
    tally.walk(module.entry, 1.0)
    return {
        "instructions": [[*key, times] for key, times in tally.instructions.items()],
        "collectives": [[*key, times] for key, times in tally.collectives.items()],
    }


class Tally:
    """Counts what the instructions of a module do.

    Attributes:
        instructions: how often by (FLOPs, bytes of large memory, the compiler's cycles).
        collectives: how often by what `_collective` says.
    """

    def __init__(self, module: Module, devices: int, per_slice: int) -> None:
        self.computations = module.computations
        self.devices, self.per_slice = devices, per_slice
        self.instructions: dict[tuple[float, float, int], float] = collections.defaultdict(float)
        self.collectives: dict[tuple[Any, ...], float] = collections.defaultdict(float)

    def walk(self, computation: Computation, times: float) -> None:
        """Adds what a computation does that runs so often."""
        for instruction in computation.instructions.values():
            opcode = instruction.opcode
            if opcode in _SILENT or opcode.endswith(("-done", "-update")):
                continue
            if opcode == "while":
                body = instruction.attribute("body").lstrip("%")
                if not self.rare(body):
                    turns = trip_count(self.computations, computation, instruction)
                    self.into([body], times * turns)
            elif opcode == "conditional":
                names = instruction.branches or instruction.called
                likely = [name for name in names if not self.rare(name)]
                self.into(likely, times / max(1, len(likely)))
            elif opcode in ("call", "async-start"):
                self.into(instruction.called, times)
            elif opcode.removesuffix("-start") in COLLECTIVES:
                key = _collective(computation, instruction, self.per_slice, self.devices)
                self.collectives[key] += times
            elif opcode == "fusion":
                self.fusion(computation, instruction, times)
            else:
                flops = _flops(computation, instruction)
                self.instruction(flops, _traffic(computation, instruction), instruction, times)

    def into(self, names: Iterable[str], times: float) -> None:
        """Walks the computations of these names."""
        for computation in map(self.computations.get, names):
            if computation is not None:
                self.walk(computation, times)

    def rare(self, name: str) -> bool:
        """Whether `ops` say of this branch or loop that it runs when all else fails."""
        found = self.computations.get(name)
        return found is not None and any(
            hints.is_rare(instruction.op_name) for instruction in found.instructions.values()
        )

    def instruction(self, flops: float, size: float, done: Instruction, times: float) -> None:
        """Counts an instruction that does so much."""
        if size >= _TINY or flops >= _TINY:
            self.instructions[flops, size, done.cycles] += times

    def fusion(self, computation: Computation, instruction: Instruction, times: float) -> None:
        """Counts a fused instruction, and the collectives inside."""
        named = (self.computations.get(name) for name in instruction.called)
        inner = [fused for fused in named if fused is not None]
        flops = 0.0
        for fused, part in _parts(self.computations, inner):
            if part.opcode.removesuffix("-start") not in COLLECTIVES:
                flops += _flops(fused, part)
                continue
            key = _collective(fused, part, self.per_slice, self.devices)
            users = fused.users.get(part.name, ())
            if key[0] == "all-reduce" and any(user.opcode == "dynamic-slice" for user in users):
                key = ("reduce-scatter", *key[1:])
            if "chain_id=" in part.attributes:  # it runs beside several fusions; the first counts
                key = (*key[:-1], True)
                others = fused.instructions.values()
                if not any("AsyncCollectiveStart" in other.attributes for other in others):
                    continue
            self.collectives[key] += times
        size = float(instruction.bytes)
        if inner:
            size = _written(self.computations, inner[0], instruction)
            for number, parameter in inner[0].parameters().items():
                whole = _operand_bytes(computation, instruction, number)
                if whole:
                    size += min(whole, _read(self.computations, inner[0], parameter, whole))
        self.instruction(flops, size, instruction, times)


# -- loops -----------------------------------------------------------------------------------------


def trip_count(computations: Computations, computation: Computation, loop: Instruction) -> int:
    """How often a loop runs whose counter goes from 0 to a constant; else what `ops` say, or 1.

    The compiler unrolls loops of products, so the counter's step may be more than 1.
    """
    known = re.search(r'known_trip_count[^\d]*"?n"?[^\d]*(\d+)', loop.attributes)
    if known:
        return int(known[1])
    condition = computations.get(loop.attribute("condition").lstrip("%"))
    body = computations.get(loop.attribute("body").lstrip("%"))
    if condition is None or body is None:
        return 1
    counter, bound = None, None
    for instruction in condition.instructions.values():
        value = _constant(instruction)
        if value is not None:
            bound = max(value, bound or 0)
        index = _tuple_index(instruction)
        if index is None:
            continue
        carried = _constant(_carried(computation, loop, index))
        if carried:
            bound = max(carried, bound or 0)  # the bound travels with the carry
        else:
            counter = index
    if bound is None:
        return hints.expected_turns(loop.op_name) or 1
    return max(1, math.ceil(bound / _step(body, counter)))


def _tuple_index(instruction: Instruction) -> int | None:
    if instruction.opcode != "get-tuple-element":
        return None
    found = re.search(r"index=(\d+)", instruction.attributes)
    return int(found[1]) if found else None


def _carried(computation: Computation, loop: Instruction, index: int) -> Instruction | None:
    """What a loop's carry holds at this place when the loop begins."""
    init = computation.instructions.get(loop.operands[0]) if loop.operands else None
    if init is None or init.opcode != "tuple" or index >= len(init.operands):
        return None
    return computation.instructions.get(init.operands[index])


def _step(body: Computation, counter: int | None) -> int:
    """By how much the counter grows in one turn."""
    if counter is None or body.root.opcode != "tuple" or counter >= len(body.root.operands):
        return 1
    value, step = body.instructions.get(body.root.operands[counter]), 0
    while value is not None and value.opcode == "add":
        parts = [body.instructions.get(name) for name in value.operands]
        constants = [found for part in parts if (found := _constant(part)) is not None]
        if len(constants) != 1:
            return 1
        step += constants[0]
        value = next(part for part in parts if _constant(part) is None)
    return step or 1


def _constant(instruction: Instruction | None) -> int | None:
    if instruction is None or instruction.opcode != "constant":
        return None
    if not instruction.operands:
        return None
    return int(instruction.operands[0]) if instruction.operands[0].isdigit() else None


# -- memory ----------------------------------------------------------------------------------------


def _traffic(computation: Computation, instruction: Instruction) -> float:
    """Bytes of large memory that an instruction of its own reads and writes."""
    opcode = instruction.opcode
    if opcode == "custom-call" and _NO_WORK.search(instruction.attributes):
        return 0.0
    if opcode in ("copy-start", "slice-start"):  # the result names source and destination
        moved = min((a.bytes for a in instruction.shape if a.bytes > 4), default=0)
        spaces = sum(a.large_memory for a in instruction.shape if a.bytes >= moved > 0)
        return moved * max(1, min(2, spaces))
    if opcode in _SLICING:
        return 2.0 * instruction.bytes
    if opcode == "dynamic-update-slice":
        return 2.0 * _operand_bytes(computation, instruction, 1)
    if opcode == "scatter":
        return 3.0 * _operand_bytes(computation, instruction, len(instruction.operands) - 1)
    reads = sum(
        _operand_bytes(computation, instruction, i) for i in range(len(instruction.operands))
    )
    return reads + instruction.bytes


def _operand_bytes(computation: Computation, instruction: Instruction, index: int) -> float:
    if not 0 <= index < len(instruction.operands):
        return 0.0
    operand = computation.instructions.get(instruction.operands[index])
    return operand.bytes if operand is not None else 0.0


def _parts(
    computations: Computations, inside: Iterable[Computation]
) -> Iterator[tuple[Computation, Instruction]]:
    """Every instruction inside a fusion, those of fusions inside it too."""
    for fused in inside:
        for instruction in fused.instructions.values():
            yield fused, instruction
            if instruction.opcode == "fusion":
                named = map(computations.get, instruction.called)
                yield from _parts(computations, [found for found in named if found is not None])


def _read(
    computations: Computations, fused: Computation, value: Instruction, whole: float
) -> float:
    """Bytes of a parameter that a fusion reads: only the slices where it takes nothing else."""
    total = 0.0
    for user in fused.users.get(value.name, []):
        if user.opcode == "bitcast":
            total += _read(computations, fused, user, whole)
        elif user.opcode in _SLICING and user.operands[0] == value.name:
            total += sum(array.bytes for array in user.shape)
        elif user.opcode in _IN_PLACE and user.operands[0] == value.name:
            # a slice is written over; places are read, added to and written
            total += _update_bytes(fused, user) if user.opcode == "scatter" else 0
        elif user.opcode == "fusion":
            for name in user.called:
                nested = computations.get(name)
                if nested is None:
                    return whole
                for number, parameter in nested.parameters().items():
                    if number < len(user.operands) and user.operands[number] == value.name:
                        total += _read(computations, nested, parameter, whole)
        else:
            return whole
    return total


def _written(computations: Computations, fused: Computation, instruction: Instruction) -> float:
    """Bytes that a fusion writes: of an array updated in place the update alone."""
    root = fused.root
    ends = [root]
    if root.opcode == "tuple":
        ends = [fused.instructions[name] for name in root.operands if name in fused.instructions]
    if len(ends) != len(instruction.shape):
        return float(instruction.bytes)
    total = 0.0
    for end, array in zip(ends, instruction.shape):
        if array.large_memory:
            total += _end_bytes(computations, fused, end, array)
    return total


def _update_bytes(fused: Computation, instruction: Instruction) -> float:
    """Bytes of what an in-place update brings: the last operand of a scatter, the second of a slice's."""
    index = len(instruction.operands) - 1 if instruction.opcode == "scatter" else 1
    update = fused.instructions.get(instruction.operands[index])
    return 0.0 if update is None else float(sum(array.bytes for array in update.shape))


def _end_bytes(
    computations: Computations, fused: Computation, end: Instruction, array: Array
) -> float:
    while end.opcode == "bitcast" and end.operands and end.operands[0] in fused.instructions:
        end = fused.instructions[end.operands[0]]
    if end.opcode in _IN_PLACE:
        return _update_bytes(fused, end)
    if end.opcode == "fusion" and end.called and end.called[0] in computations:
        inner = computations[end.called[0]]
        if inner.root.opcode != "tuple":
            return _end_bytes(computations, inner, inner.root, array)
    return float(array.bytes)


# -- products --------------------------------------------------------------------------------------


def _flops(computation: Computation, instruction: Instruction) -> float:
    if instruction.opcode == "dot":
        return _dot_flops(computation, instruction)
    if instruction.opcode == "convolution":
        return _convolution_flops(computation, instruction)
    if instruction.opcode == "custom-call" and "splash" in instruction.name:
        return _splash_flops(computation, instruction)
    if instruction.opcode == "custom-call" and hints.WHOLE_ATTENTION in instruction.name:
        return _whole_flops(computation, instruction)
    return 0.0


def _shape(computation: Computation, instruction: Instruction, index: int) -> tuple[int, ...]:
    operand = computation.instructions.get(instruction.operands[index])
    return operand.shape[0].dims if operand is not None and operand.shape else ()


def _dot_flops(computation: Computation, instruction: Instruction) -> float:
    left = _shape(computation, instruction, 0)
    dims = re.findall(r"\d+", instruction.attribute("lhs_contracting_dims"))
    if not instruction.shape or any(int(d) >= len(left) for d in dims):
        return 0.0
    return 2.0 * instruction.shape[0].elements * math.prod(left[int(d)] for d in dims)


def _convolution_flops(computation: Computation, instruction: Instruction) -> float:
    labels = re.match(r"(\w+)_(\w+)->(\w+)", instruction.attribute("dim_labels"))
    left, right = (_shape(computation, instruction, i) for i in (0, 1))
    if labels is None or not left or not right or not instruction.shape:
        return 0.0
    inputs, kernel, output = labels[1], labels[2], labels[3]
    out = instruction.shape[0].dims
    groups = re.search(r"batch_group_count=(\d+)", instruction.attributes)
    total = 2.0 * right[kernel.index("i")] * out[output.index("f")]
    total *= left[inputs.index("b")] / (int(groups[1]) if groups else 1)
    window = _window(instruction.attribute("window"), sum(c.isdigit() for c in kernel))
    for axis, (size, stride, low, _, dilation, step) in enumerate(window):
        label = str(axis)
        total *= _positions(
            left[inputs.index(label)], out[output.index(label)], size, stride, low, dilation, step
        )
    return total


def _window(text: str, axes: int) -> list[tuple[int, ...]]:
    """(size, stride, low, high, input dilation, kernel dilation) of each spatial axis."""
    if not axes:
        return []
    found = dict(word.split("=", 1) for word in text.strip("{}").split() if "=" in word)

    def numbers(name: str, default: int) -> list[int]:
        words = found[name].split("x") if name in found else [str(default)] * axes
        return [int(word) for word in words]

    pads = [
        tuple(map(int, p.split("_"))) for p in found.get("pad", "x".join(["0_0"] * axes)).split("x")
    ]
    size, stride = numbers("size", 1), numbers("stride", 1)
    dilation, step = numbers("lhs_dilate", 1), numbers("rhs_dilate", 1)
    return [
        (size[i], stride[i], pads[i][0], pads[i][1], dilation[i], step[i])
        for i in range(min(axes, len(size)))
    ]


def _positions(
    inputs: int, outputs: int, size: int, stride: int, low: int, dilation: int, step: int
) -> float:
    """Pairs of an output and a kernel position that meet an element of the input.

    The TPU compiler writes products as convolutions whose padding leaves one such pair per output.
    """
    at = np.arange(outputs)[:, None] * stride + np.arange(size)[None] * step - low
    return float(np.sum((at >= 0) & (at <= (inputs - 1) * dilation) & (at % dilation == 0)))


def _splash_flops(computation: Computation, instruction: Instruction) -> float:
    """Of a splash attention kernel; a block mask means causal attention, half of the pairs."""
    kind = re.search(r"splash_mha_(fused_dkv|fwd|dkv|dq)", instruction.name)
    shapes = [_shape(computation, instruction, i) for i in range(len(instruction.operands))]
    whole = [s for s in shapes if len(s) >= 3 and s[-1] >= 64 and s[-2] >= 128]
    if kind is None or len(whole) < 2:
        return 0.0
    queries, keys = whole[0], whole[1]
    masked = any(len(s) == 3 and s[-1] < 128 for s in shapes)
    pairs = math.prod(queries[:-1]) * keys[-2] * (0.5 if masked else 1.0)
    products = _SPLASH[kind[1]]
    if kind[1] == "dkv" and "dq" not in instruction.name and instruction.shape:
        partial = [a for a in instruction.shape if a.dims[-3:] == queries[-3:]]
        products = _SPLASH["fused_dkv"] if partial else products
    return 2.0 * products * queries[-1] * pairs


def _whole_flops(computation: Computation, instruction: Instruction) -> float:
    """Of a kernel of `ops.whole_attention`: q [B, N, T, H] and k [B, N, S, H] are its first operands."""
    kind = re.search(rf"{hints.WHOLE_ATTENTION}_(fwd|bwd)", instruction.name)
    queries, keys = (_shape(computation, instruction, i) for i in (0, 1))
    if kind is None or len(queries) != 4 or len(keys) != 4:
        return 0.0
    return 2.0 * _WHOLE[kind[1]] * math.prod(queries) * keys[2]


# -- between devices -------------------------------------------------------------------------------


def _collective(
    computation: Computation, instruction: Instruction, per_slice: int, devices: int
) -> tuple[Any, ...]:
    """(kind, bytes, group size, slices spanned, asynchronous): bytes of the whole, unscattered array."""
    kind = instruction.opcode.removesuffix("-start")
    operands = [computation.instructions.get(name) for name in instruction.operands]
    sent = sum(a.bytes for o in operands if o is not None for a in o.shape)
    size, spans = _group(instruction, per_slice, devices)
    if kind == "all-gather":
        sent *= size
    asynchronous = instruction.opcode.endswith("-start")
    return kind, float(sent), size, spans, asynchronous


def _group(instruction: Instruction, per_slice: int, devices: int) -> tuple[int, int]:
    """Devices that take part in one collective, and over how many slices they are spread."""
    text = instruction.attribute("source_target_pairs")
    if text:
        pairs = re.findall(r"\{(\d+),(\d+)\}", text)
        crossing = any(int(a) // per_slice != int(b) // per_slice for a, b in pairs)
        return 2, 2 if crossing else 1
    text = instruction.attribute("replica_groups")
    listed = re.match(r"\{\{([\d,]+)\}", text)
    if listed:
        ids = [int(word) for word in listed[1].split(",")]
        return len(ids), len({i // per_slice for i in ids})
    iota = re.match(r"\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if iota:
        sides = [int(word) for word in iota[3].split(",")]
        ids = np.arange(math.prod(sides)).reshape(sides)
        if iota[4]:
            ids = ids.transpose([int(word) for word in iota[4].split(",")])
        first = ids.reshape(int(iota[1]), int(iota[2]))[0]
        return len(first), len({int(i) // per_slice for i in first})
    named = re.match(r"mesh\[(.*?)\]\s*\{(.*?)\}", text)
    if named:
        sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", named[1])}
        used = re.findall(r"'(\w+)'", named[2])
        names = list(sizes)
        grid = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
        chosen = tuple(slice(None) if name in used else 0 for name in names)
        ids = grid[chosen].ravel()
        return len(ids), len({int(i) // per_slice for i in ids})
    return devices, max(1, devices // per_slice)
