"""The programs of a run, compiled for devices that are not here, and what the compiler says of them.

What is compiled is what `run` compiles: the assembly's own train and predict steps from shapes alone.
For TPUs by their compiler; for GPUs by the CPU's, over fake devices, with the forms that `ops` choose
on a GPU: a coarser estimate.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from mlperf_jax.core import (
    compiling,
    evaluation,
    generation as generations,
    loop,
    mesh as meshes,
    preflight,
    state as states,
)
from mlperf_jax.core.benchmark import Benchmark
from mlperf_jax.errors import UserError, optional
from mlperf_jax.ops import pretend
from mlperf_jax.planning import devices as names, hlo, messages, store, work

PARTS = {"params": "parameters", "opt": "optimizer"}  # the rest of the state is "other"


@dataclass(frozen=True)
class Program:
    """One compiled program, or why there is none.

    Attributes:
        name: "train", "evaluation" or "generation"; with a number where there are several shapes.
        outcome: "fits", "too big" or "compiler failed". Only the first two are verdicts on memory.
        room: bytes that a program may use on one device.
        total: bytes used; None when the compiler failed.
        arguments: bytes of the state and the batch; None unless it fits.
        temporaries: bytes of activations, gradients and other intermediate results.
        outputs: bytes of results that take no argument's place, and of the program itself.
        largest: the largest buffers, as (bytes, what).
        message: the compiler's own words, where it has any.
        seconds: of compiling.
        cpu_seconds: processor seconds of it.
        work: what one call does, or None.
    """

    name: str
    outcome: str
    room: int
    total: int | None = None
    arguments: int | None = None
    temporaries: int | None = None
    outputs: int | None = None
    largest: tuple[tuple[int, str], ...] = ()
    message: str = ""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    work: dict[str, Any] | None = None

    @property
    def fits(self) -> bool:
        return self.outcome == "fits"

    @property
    def over(self) -> int:
        """Bytes beyond the room, 0 if it fits."""
        return max(0, (self.total or 0) - self.room)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Program:
        """The inverse of `dataclasses.asdict`, also after JSON."""
        largest = tuple((int(size), str(what)) for size, what in values["largest"])
        return cls(**{**values, "largest": largest})


def worst(programs: Iterable[Program]) -> str:
    """The outcome of them all."""
    outcomes = [program.outcome for program in programs]
    return next((bad for bad in ("too big", "compiler failed") if bad in outcomes), "fits")


class Lowering(states.Assembly):
    """An assembly whose programs stop short of being compiled."""

    def compile(self, jitted: Any, *arguments: Any) -> Any:
        with jax.set_mesh(self.mesh):
            return jitted.lower(*arguments)


def assemble(
    benchmark: Benchmark, devices: names.Devices, sizes: Mapping[str, int], optimizer: Any = None
) -> Lowering:
    """The assembly of a run over devices that are not here.

    Raises:
        UserError: the mesh does not fit the devices, the batch or the model.
    """
    mesh = make_mesh(devices, sizes)
    preflight.check_batches(benchmark, mesh)
    found = states.assemble(benchmark, mesh, optimizer)
    return Lowering(**{f.name: getattr(found, f.name) for f in dataclasses.fields(found)})


def make_mesh(devices: names.Devices, sizes: Mapping[str, int]) -> Mesh:
    """The mesh over a described topology, or over fake devices for GPUs.

    Raises:
        UserError: its sizes do not multiply up to the devices, or there is no TPU compiler.
    """
    product = math.prod(sizes.values())
    if product != devices.count:
        raise UserError(
            f"mesh {mesh_text(sizes)} has {product:,} devices and {devices.name} {devices.count:,}: the "
            "sizes must multiply up to them"
        )
    shape = tuple(sizes.get(axis, 1) for axis in meshes.AXES)
    axis_types = (AxisType.Auto,) * len(meshes.AXES)
    if not devices.tpu:
        return jax.make_mesh(shape, meshes.AXES, axis_types=axis_types)
    return Mesh(
        meshes.arrange(shape, describe(devices).devices), meshes.AXES, axis_types=axis_types
    )


def describe(devices: names.Devices) -> Any:
    """The TPU topology as its compiler knows it.

    Raises:
        UserError: the compiler is not installed, or refuses the topology.
    """
    optional("libtpu", "plan", "planning for TPUs, by their compiler on any x86-64 Linux,")
    try:
        return topologies.get_topology_desc(platform="tpu", **names.topology_arguments(devices))
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"the TPU compiler does not know {devices.name}: {str(error).splitlines()[0]}"
        ) from error


def mesh_text(sizes: Mapping[str, int]) -> str:
    """Axis sizes as `--mesh` takes them."""
    return ",".join(f"{axis}={n}" for axis, n in sizes.items())


# -- what the state takes --------------------------------------------------------------------------


def state_bytes(assembly: states.Assembly) -> dict[str, int]:
    """Bytes on one device by part of the state: "parameters", "optimizer", "other"."""
    found = {"parameters": 0, "optimizer": 0, "other": 0}
    for part, leaves in assembly.abstract.items():
        for leaf in jax.tree.leaves(leaves):
            size = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            found[PARTS.get(part, "other")] += size
    return found


# -- compiling -------------------------------------------------------------------------------------


def lowered_programs(assembly: Lowering, only: str | None = None) -> Iterator[tuple[str, Any]]:
    """Name and lowered form of each program of a run.

    Raises:
        UserError: the model cannot be laid out over the mesh.
    """
    benchmark = assembly.benchmark
    makers: dict[str, Callable[[], Mapping[Any, Any]]] = {
        "train": lambda: loop.compile_train(assembly),
        "evaluation": lambda: evaluation.compile_predict(assembly),
    }
    if benchmark.generate is not None:
        makers["generation"] = lambda: {None: generations.compile_generate(assembly)}
    for name, make in makers.items():
        if only not in (None, name):
            continue
        try:
            found = list(make().values())
        except ValueError as error:
            raise UserError(
                f"{benchmark.name} cannot be laid out over the mesh {meshes.describe(assembly.mesh)}: "
                f"{error}"
            ) from error
        for number, lowered in enumerate(found, start=1):
            yield (f"{name} {number}" if len(found) > 1 else name), lowered


def content(devices: names.Devices, lowered: Any, options: Mapping[str, Any]) -> str:
    """A digest of what is compiled, by what and how."""
    flags = store.compiler_flags() if devices.tpu else ""
    return store.digest(lowered.as_text(), devices.name, store.compiler_versions(), options, flags)


def compile_program(lowered: Any, options: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The compiler's findings as JSON knows them, and the compiled program's text.

    Never raises for the compiler's sake: then there is an "error", and no text.
    """
    begin, cpu = time.perf_counter(), time.process_time()
    found: dict[str, Any] = {"error": None}
    text = ""
    try:
        compiled = compiling.compiled(lowered, options)
    except Exception as error:  # the compiler's own errors have no common type
        found["error"] = str(error) or repr(error)
        found["arrays"] = hlo.largest_tensors(lowered.as_text())
    else:
        memory = compiled.memory_analysis()
        found["memory"] = {
            name: getattr(memory, f"{name}_size_in_bytes")
            for name in ("argument", "temp", "output", "alias", "generated_code")
        }
        text = compiled.as_text() or ""
    found["seconds"] = time.perf_counter() - begin
    found["cpu_seconds"] = time.process_time() - cpu
    return found, text


def read_findings(name: str, devices: names.Devices, found: dict[str, Any], text: str) -> Program:
    """The program that `compile_program` told of."""
    if found["error"] is not None:
        failed = failed_program(name, found["error"], devices.memory)
        largest = failed.largest
        if failed.outcome == "too big" and not largest:  # the compiler names none
            largest = tuple(
                (size // devices.count, f"{shape} of all devices, if spread evenly")
                for size, shape in found.get("arrays", ())
            )
        seconds = {name: found[name] for name in ("seconds", "cpu_seconds")}
        return dataclasses.replace(failed, largest=largest, **seconds)
    memory, module = found["memory"], hlo.parse(text)
    outputs = memory["output"] - memory["alias"] + memory["generated_code"]
    total = memory["argument"] + memory["temp"] + outputs
    return Program(
        name=name,
        outcome="fits" if total <= devices.memory else "too big",
        room=devices.memory,
        total=total,
        arguments=memory["argument"],
        temporaries=memory["temp"],
        outputs=outputs,
        largest=hlo.largest_buffers(module),
        seconds=found["seconds"],
        cpu_seconds=found["cpu_seconds"],
        work=_work(module, devices),
    )


def failed_program(name: str, message: str, room: int) -> Program:
    """The program of a compilation that ended with this message."""
    used = messages.out_of_memory(message)
    if used is None:
        text = messages.first_lines(message)
        return Program(name, "compiler failed", room, message=text)
    total, available = used
    return Program(
        name,
        "too big",
        available or room,
        total=total,
        largest=messages.largest_allocations(message),
        message=messages.first_lines(message, 1),
    )


def _work(module: hlo.Module, devices: names.Devices) -> dict[str, Any] | None:
    """What one call does; None for a text that planning cannot read, which costs only the estimates."""
    try:
        return work.work(module, devices.count, devices.slices)
    except (ValueError, KeyError, IndexError, StopIteration):
        return None


def forms_of(devices: names.Devices) -> contextlib.AbstractContextManager[None]:
    """While it lasts `ops` choose the forms of these devices, whatever compiles them."""
    return contextlib.nullcontext() if devices.tpu else pretend.platform("gpu")
