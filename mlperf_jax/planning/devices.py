"""Devices that are not here, by the names people rent them under: "v5p:4x4x8", "2xv6e:16x16", "h100:8x4".

A TPU is named by its slice's shape in chips, several slices by a number in front; GPUs by how many
share a node's links, and how many nodes there are. Sources: the configuration pages of Cloud TPU, and
what the TPU compiler accepts.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from typing import Any

from mlperf_jax.core import peaks
from mlperf_jax.core.placement import Place
from mlperf_jax.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Chip:
    """A kind of accelerator.

    Attributes:
        kind: the `device_kind` that `core.peaks` has its figures under.
        maker: "tpu" or "gpu".
        cores: JAX devices of one chip.
        dims: dimensions of a TPU's network; 0 for GPUs.
        most: largest slice in chips; for GPUs the most that share links.
        side: largest side of a slice.
        host: chips of one host.
    """

    kind: str
    maker: str = "tpu"
    cores: int = 1
    dims: int = 3
    most: int = 0
    side: int = 0
    host: int = 4

    @property
    def peak(self) -> peaks.Peak:
        return peaks.PEAKS[self.kind]


CHIPS = {
    "v3": Chip("TPU v3", cores=2, dims=2, most=1024, side=32),
    "v4": Chip("TPU v4", most=4096, side=16),
    "v5e": Chip("TPU v5 lite", dims=2, most=256, side=16),
    "v5p": Chip("TPU v5", most=6144, side=24),
    "v6e": Chip("TPU v6 lite", dims=2, most=256, side=16),
    "tpu7x": Chip("TPU7x", cores=2, most=9216, side=24),
    "a100": Chip("NVIDIA A100-SXM4-80GB", "gpu", dims=0, most=8, host=8),
    "h100": Chip("NVIDIA H100 80GB HBM3", "gpu", dims=0, most=8, host=8),
    "h200": Chip("NVIDIA H200", "gpu", dims=0, most=8, host=8),
    "b200": Chip("NVIDIA B200", "gpu", dims=0, most=8, host=8),
    "gb200": Chip("NVIDIA GB200", "gpu", dims=0, most=72, host=4),
}
_ALIASES = {"v5": "v5p", "v5litepod": "v5e", "v7x": "tpu7x", "ironwood": "tpu7x", "trillium": "v6e"}
_MOST_GPU_NODES = 256  # a fake device each: the partitioned program is made for all of them


@dataclass(frozen=True)
class Devices:
    """A number of equal devices and how they hang together.

    Attributes:
        name: as `parse` takes it.
        chip: what they are.
        shape: a TPU slice's sides; (GPUs of a node,) for GPUs.
        slices: number of TPU slices, or of GPU nodes.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def family(self) -> str:
        """The chip's name in `CHIPS`."""
        return next(name for name, chip in CHIPS.items() if chip is self.chip)

    @property
    def chips(self) -> int:
        return math.prod(self.shape) * self.slices

    @property
    def count(self) -> int:
        """JAX devices."""
        return self.chips * self.chip.cores

    @property
    def hosts(self) -> int:
        each = math.prod(self.shape)
        return self.slices * max(1, each // self.chip.host)

    @property
    def tpu(self) -> bool:
        return self.chip.maker == "tpu"

    @property
    def memory(self) -> int:
        """Bytes that a program may use on one device."""
        return int(self.place.memory)

    @property
    def place(self) -> Place:
        """What finds a mesh needs of them."""
        return Place(self.chip.kind, self.count, self.slices)

    def __str__(self) -> str:
        each = "" if self.chip.cores == 1 else f" = {self.count:,} devices"
        kind = self.chip.kind.replace("TPU v5 lite", "TPU v5e").replace("TPU v6 lite", "TPU v6e")
        return f"{self.chips:,} x {'TPU v5p' if kind == 'TPU v5' else kind}{each}"


def parse(text: str) -> Devices:
    """The devices of a name.

    Raises:
        UserError: an unknown chip, or a shape that it does not come in, with those that it does.

    >>> parse("v5p:8x8x16").chips, parse("2xv6e:16x16").chips, parse("h100:8x4").chips
    (1024, 512, 32)
    """
    match = re.fullmatch(r"(?:(\d+)x)?([a-z]\w*?)(?::([\dx]+))?", text.strip().lower())
    name = _ALIASES.get(match[2], match[2]) if match else ""
    if match is None or name not in CHIPS:
        raise UserError(
            f"no device is called {text!r}{did_you_mean(name, CHIPS)}; give a chip with its shape, such as "
            "v5p:4x4x8, 2xv6e:16x16 or h100:8x4"
        )
    chip, slices = CHIPS[name], int(match[1] or 1)
    sides = match[3] or ""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sides):
        raise UserError(f"{text!r} lacks its shape: {_possible(name)}")
    shape = tuple(map(int, sides.split("x")))
    if chip.maker == "gpu":
        return _gpus(name, chip, shape, slices, text)
    if shape not in shapes(name):
        ordered = tuple(sorted(shape))
        turned = f"{name} {sides} is written {name}:{_join(ordered)}; "
        raise UserError(
            (turned if ordered in shapes(name) else f"{name} does not come as {sides}; ")
            + _possible(name)
        )
    if slices < 1:
        raise UserError(f"{text!r} has no slice")
    prefix = f"{slices}x" if slices > 1 else ""
    return Devices(f"{prefix}{name}:{sides}", chip, shape, slices)


def _gpus(name: str, chip: Chip, shape: tuple[int, ...], slices: int, text: str) -> Devices:
    each, nodes = (*shape, 1)[:2]
    if len(shape) > 2 or slices > 1 or each > chip.most:
        raise UserError(f"{name} does not come as {text!r}; {_possible(name)}")
    if nodes > 1 and each != chip.most and chip.most == 8:
        raise UserError(
            f"several nodes of {name} have {chip.most} each: {name}:{chip.most}x{nodes}"
        )
    if nodes > _MOST_GPU_NODES:
        raise UserError(f"{nodes} nodes are more than {_MOST_GPU_NODES}, the most that are planned")
    return Devices(f"{name}:{_join(shape)}", chip, (each,), nodes)


def shapes(name: str) -> tuple[tuple[int, ...], ...]:
    """The shapes that a TPU's slices come in, by size.

    >>> shapes("v6e")[:4]
    ((1, 1), (2, 2), (2, 4), (4, 4))
    """
    chip = CHIPS[name]
    if chip.dims == 2:
        middle = ((2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
        return (*middle, (16, 32), (32, 32)) if name == "v3" else ((1, 1), *middle)
    small = [(2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4)]  # the first is one host
    cubes = itertools.combinations_with_replacement(range(4, chip.side + 1, 4), 3)
    large = [shape for shape in cubes if math.prod(shape) <= chip.most]
    return (*small, *sorted(large, key=math.prod))


def _join(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _possible(name: str) -> str:
    chip = CHIPS[name]
    if chip.maker == "gpu":
        return (
            f"write {name}:N for N = 1 to {chip.most} of one node, {name}:{chip.most}xM for M nodes"
        )
    found = [_join(shape) for shape in shapes(name)]
    if chip.dims == 2:
        return f"possible: {', '.join(found)}"
    return (
        f"possible: {', '.join(found[:4])}, and sides that are multiples of 4 in rising order up to "
        f"{chip.most:,} chips, such as {', '.join(found[4:10])}"
    )


def nearest_larger(devices: Devices, chips: int) -> str | None:
    """The smallest single slice or node set of the same chip with at least `chips` chips."""
    name = devices.family
    if not devices.tpu:
        nodes = -(-chips // devices.chip.most)
        return f"{name}:{chips}" if nodes == 1 else f"{name}:{devices.chip.most}x{nodes}"
    for shape in shapes(name):
        if math.prod(shape) >= chips:
            return f"{name}:{_join(shape)}"
    return None


def topology_arguments(devices: Devices) -> dict[str, Any]:
    """What `jax.experimental.topologies.get_topology_desc` wants for a TPU.

    A v4 chip's two cores act as one device only when that is said; slices of one chip are no multiple
    of a host's four.
    """
    name = devices.family
    found: dict[str, Any] = {"topology_name": f"{name}:{_join(devices.shape)}"}
    if devices.slices > 1 or name == "v4":
        found["num_slices"] = devices.slices
    if name == "v4":
        found |= {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)}
    if math.prod(devices.shape) == 1:
        found["chips_per_host_bounds"] = (1, 1, 1)
    return found
