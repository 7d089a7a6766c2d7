"""Whether a model suits a mesh, found by tracing its programs, and which devices would repeat others' work."""

from __future__ import annotations

import jax

from mlperf_jax.core import jaxprs, mesh as meshes, state as states, step
from mlperf_jax.core.judges import judges_of
from mlperf_jax.ops.shard import ROWS


def check_layout(assembly: states.Assembly) -> list[str]:
    """Nothing or sentences about idle devices, if the mesh divides what the model splits over it.

    Only axes that split something else than rows are looked into: of rows, `meshes.check_divides` knows. For
    them step and prediction are traced once more.

    Raises:
        UserError: such an axis does not divide an array of the model.
    """
    mesh, notes = assembly.mesh, []
    asked = {axis for axis, size in mesh.shape.items() if size > 1 and axis not in ROWS}
    if asked:
        for axis in sorted(asked - _used(assembly)):
            size = mesh.shape[axis]
            notes.append(
                f"note: nothing of {assembly.benchmark.name} is split over {axis}, so {size} devices do the same "
                f"work: give them to another axis of --mesh, such as data={size}"
            )
    here = len(meshes.available())
    if jax.process_count() == 1 and mesh.devices.size < here:
        notes.append(
            f"note: --mesh {meshes.describe(mesh)} uses {mesh.devices.size} of {here} devices; the others are idle"
        )
    return notes


def _used(assembly: states.Assembly) -> set[str]:
    """The axes that split a part of the state, or something on the way through a step or a prediction."""
    used = {axis for leaf in jax.tree.leaves(assembly.shardings) for axis in _axes(leaf)}
    judges = judges_of(assembly.benchmark, assembly.mesh)
    train, predict = step.jit_train_step(assembly), step.jit_predict_step(assembly, judges)
    with jax.set_mesh(assembly.mesh):
        programs = [
            *(train.trace(*arguments) for arguments in step.train_arguments(assembly)),
            *(predict.trace(*arguments) for arguments in step.predict_arguments(assembly, judges)),
        ]
    for program in programs:
        for equation in jaxprs.equations(program.jaxpr):
            if equation.primitive.name == "sharding_constraint":
                used |= _axes(equation.params["sharding"])
            elif equation.primitive.name == "shard_map":
                for spec in (*equation.params["in_specs"], *equation.params["out_specs"]):
                    used |= {axis for entry in spec for axis in meshes.axes_of(entry)}
    return used


def _axes(sharding: jax.sharding.Sharding) -> set[str]:
    spec = getattr(sharding, "spec", ())
    return {axis for entry in spec for axis in meshes.axes_of(entry)}
