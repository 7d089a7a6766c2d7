"""The mesh, and where each leaf of the state lives on it.

Five axes with fixed names; every mesh has all five, most of size 1. Rules are (path pattern,
PartitionSpec or function) pairs, first match wins, each written for ONE layer: for a leaf under a
`layers` component the layer axis stays unsharded and is put in front here.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import KeyPath

from mlperf_jax.errors import UserError
from mlperf_jax.ops.shard import ROWS
from mlperf_jax.optimizers import tree as trees

AXES = ("data", "fsdp", "tensor", "expert", "context")

Spec = PartitionSpec | Callable[[tuple[int, ...], Mesh], PartitionSpec]
Rules = Sequence[tuple[str, Spec]]
Device = Any  # jax.Device, which type checkers do not take for a type
Entry = str | Sequence[str] | None  # of a PartitionSpec

# the devices that `only` leaves of those that are there; None leaves all
_ONLY: contextvars.ContextVar[tuple[Device, ...] | None] = contextvars.ContextVar(
    "_ONLY", default=None
)


def parse_mesh(text: str) -> dict[str, int]:
    """Axis sizes from "data=4,fsdp=2".

    Raises:
        UserError: for an unknown axis, a repeated one or a size that is no positive number.
    """
    sizes: dict[str, int] = {}
    for part in text.replace(" ", "").split(","):
        axis, equals, size = part.partition("=")
        if axis not in AXES:
            raise UserError(f"mesh {text!r} names axis {axis!r}; the axes are {', '.join(AXES)}")
        if not equals or not size.isdigit() or int(size) < 1:
            raise UserError(
                f"mesh {text!r}: write {axis}=N with N at least 1, such as data=4,fsdp=2"
            )
        if axis in sizes:
            raise UserError(f"mesh {text!r} names axis {axis!r} twice")
        sizes[axis] = int(size)
    return sizes


def available() -> list[Device]:
    """The devices that JAX has here, or those that `only` leaves of them.

    Raises:
        UserError: it has none of the kind that `JAX_PLATFORMS` names.
    """
    try:
        return list(_ONLY.get() or jax.devices())
    # an assertion, where the kind is known and what it needs is not installed
    except (RuntimeError, AssertionError) as error:
        asked = getattr(jax.config, "jax_platforms", None) or ""
        told = str(error).splitlines()[0].rstrip(".") if str(error) else "it is not installed"
        raise UserError(
            f"JAX finds no device of JAX_PLATFORMS={asked!r}: {told}; install what it needs "
            "(`mlperf-jax doctor` says what is here), or unset it"
        ) from error


@contextlib.contextmanager
def only(devices: Sequence[Device]) -> Iterator[None]:
    """Within it, in this thread, these devices are all that there are."""
    token = _ONLY.set(tuple(devices))
    try:
        yield
    finally:
        _ONLY.reset(token)


def make_mesh(text: str | None = None, devices: Sequence[Device] | None = None) -> Mesh:
    """A mesh over `devices` (all by default); without a text all devices are on `data`.

    One process may take fewer devices than it has; several processes must use all.

    Raises:
        UserError: when the mesh needs more devices than there are.
    """
    devices = list(available() if devices is None else devices)
    sizes = parse_mesh(text) if text else {"data": len(devices)}
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    wanted = math.prod(shape)
    if wanted > len(devices):
        on_cpu = f"; or try it with XLA_FLAGS=--xla_force_host_platform_device_count={wanted}"
        pretend = on_cpu if devices[0].platform == "cpu" else ""
        raise UserError(
            f"mesh {text} needs {wanted} devices and this machine has {len(devices)} "
            f"({devices[0].device_kind}): make it smaller{pretend}"
        )
    if wanted < len(devices) and jax.process_count() > 1:
        raise UserError(
            f"mesh {text} has {wanted} devices; with several processes it must use all {len(devices)}"
        )
    axis_types = (AxisType.Auto,) * len(AXES)
    if devices[0].platform == "tpu":  # jax.make_mesh refuses some meshes there, and several slices
        return Mesh(arrange(shape, devices[:wanted]), AXES, axis_types=axis_types)
    return jax.make_mesh(shape, AXES, axis_types=axis_types, devices=devices[:wanted])


def arrange(shape: tuple[int, ...], devices: Sequence[Device]) -> np.ndarray:
    """TPU devices as an array of this shape, neighbours in it being neighbours in the network.

    An axis of the mesh takes whole axes of the network where that goes, and parts of them where not;
    `data`, or else `fsdp`, spans the slices.
    """
    slices = len({getattr(device, "slice_index", None) for device in devices})
    if slices > 1:
        each = _within_slices(shape, slices)
        over = tuple(whole // part for whole, part in zip(shape, each))
        make = functools.partial(mesh_utils.create_hybrid_device_mesh, each, over)
    else:
        make = functools.partial(mesh_utils.create_device_mesh, shape)
    try:
        return make(devices=devices)
    except NotImplementedError:
        return make(devices=devices, allow_split_physical_axes=True)


def _within_slices(shape: tuple[int, ...], slices: int) -> tuple[int, ...]:
    """The mesh of one slice: `data`, or else `fsdp`, spans the slices."""
    for axis in (0, 1):
        if shape[axis] % slices == 0:
            return tuple(n // slices if i == axis else n for i, n in enumerate(shape))
    raise UserError(
        f"{slices} slices must divide the data or fsdp axis of the mesh, which alone may span them"
    )


def describe(mesh: Mesh) -> str:
    """The axes larger than 1, as `--mesh` takes them: "data=4,fsdp=2"."""
    return ",".join(f"{a}={n}" for a, n in mesh.shape.items() if n > 1) or "data=1"


def batch_ways(mesh: Mesh) -> int:
    """Over how many parts the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over `ROWS`; every other axis whole."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def check_divides(mesh: Mesh, rows: float, what: str) -> None:
    """Nothing, if so many rows of something split over the mesh."""
    ways = batch_ways(mesh)
    if rows % ways:
        raise UserError(
            f"{what} {rows:.12g} is not divided by the mesh {describe(mesh)}, which splits rows {ways} ways: "
            f"choose a multiple of {ways}, or another --mesh"
        )


def process_rows(mesh: Mesh, batch_size: int) -> tuple[int, int]:
    """The consecutive rows of a global batch that this process must read.

    Several processes may own the same rows (tensor parallelism across hosts); each reads them.

    Raises:
        UserError: when the mesh does not divide the batch, or a process would own rows that are not
            consecutive.
    """
    check_divides(mesh, batch_size, "batch size")
    parts = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    spans = sorted({index[0].indices(batch_size)[:2] for index in parts.values() if index})
    low, high = spans[0][0], spans[-1][1]
    if sum(stop - start for start, stop in spans) != high - low:
        raise UserError(
            f"mesh {describe(mesh)} gives process {jax.process_index()} rows that are not consecutive: "
            f"let the process count divide {'×'.join(ROWS)}"
        )
    return low, high


def fsdp_largest(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Shards the largest axis that `fsdp` divides; small leaves (< 16,384 elements) stay whole.

    Gathering a small leaf costs more in latency than it saves in memory.
    """
    ways = mesh.shape["fsdp"]
    if ways == 1 or math.prod(shape) < 16_384:
        return PartitionSpec()
    fitting = [(size, -axis) for axis, size in enumerate(shape) if size % ways == 0]
    if not fitting:
        return PartitionSpec()
    axis = -max(fitting)[1]
    return PartitionSpec(*(["fsdp" if i == axis else None for i in range(len(shape))]))


DEFAULT_RULES: Rules = ((".*", fsdp_largest),)


def leaf_spec(path: str, shape: tuple[int, ...], rules: Rules, mesh: Mesh) -> PartitionSpec:
    """The first matching rule's spec for a leaf, with the layer axis of a stack in front.

    An axis that the mesh's size does not divide stays whole.
    """
    stacked = trees.stack_of(path) is not None
    layer = shape[1:] if stacked else shape
    matching = (rule for rule in (*rules, *DEFAULT_RULES) if re.fullmatch(rule[0], path))
    pattern, spec = next(matching)  # the default rule matches every path
    found = spec if isinstance(spec, PartitionSpec) else spec(layer, mesh)
    if len(found) > len(layer):
        raise UserError(
            f"sharding rule {pattern!r} has {len(found)} axes but {path} has shape {layer}"
        )
    entries = [_fitting(entry, size, mesh) for entry, size in zip(found, layer, strict=False)]
    return PartitionSpec(None, *entries) if stacked else PartitionSpec(*entries)


def _fitting(entry: Entry, size: int, mesh: Mesh) -> Entry:
    ways = math.prod(mesh.shape[axis] for axis in axes_of(entry))
    return entry if ways > 1 and size % ways == 0 else None


def axes_of(entry: Entry) -> Sequence[str]:
    """The mesh axes that one entry of a `PartitionSpec` names."""
    return (entry,) if isinstance(entry, str) else entry or ()


def state_shardings(abstract: Mapping[str, Any], rules: Rules, mesh: Mesh) -> dict[str, Any]:
    """A NamedSharding for every leaf of the state.

    Parameters, frozen weights, tables and their averages follow the rules by path. An optimizer leaf
    whose path ends with a parameter's path and whose shape equals that parameter's lives where the
    parameter lives; everything else (counts, scalars) is replicated.
    """
    weights: dict[str, tuple[tuple[int, ...], PartitionSpec]] = {}
    for part in ("params", "frozen", "tables"):
        for path, leaf in trees.flatten_paths(abstract.get(part, {})).items():
            weights[path] = (leaf.shape, leaf_spec(path, leaf.shape, rules, mesh))

    def sharding(path: KeyPath, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        names = [jax.tree_util.keystr((key,), simple=True) for key in path]
        for start in range(1, len(names)):
            shape, spec = weights.get("/".join(names[start:]), (None, None))
            if spec is not None and shape == tuple(leaf.shape):
                return NamedSharding(mesh, spec)
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(sharding, abstract)
