"""The one way a model says how an activation is laid out over the mesh, and asks what runs it."""

from __future__ import annotations

import jax
from jax.sharding import AxisType, PartitionSpec

from mlperf_jax.errors import UserError
from mlperf_jax.ops.pretend import pretended

Axes = str | tuple[str, ...] | None

# The mesh axes that split the rows of a batch, the outermost first. Devices of `expert` hold different
# experts, and rows of their own, which go to the experts that they need.
ROWS = ("data", "fsdp", "expert")


def shard(x: jax.Array, *axes: Axes) -> jax.Array:
    """Lays x out over the mesh of the surrounding `jax.set_mesh`; the identity without one.

    Axis names that the mesh lacks are dropped, so one model serves every mesh; if none is left, x is
    returned as it is and the compiler chooses.

    Args:
      x: any array.
      *axes: per dimension of x a mesh axis, a tuple of them (the first is the outermost), or None
        for a dimension that is not split. Dimensions left out are not split.

    Returns:
      x, with the constraint.

    Raises:
      UserError: a dimension that its axes do not divide: the mesh does not suit the model.
      ValueError: more axes than x has dimensions.

    >>> shard(jax.numpy.ones([4, 2]), ROWS, "tensor").shape
    (4, 2)
    """
    if len(axes) > x.ndim:
        raise ValueError(f"shard: {len(axes)} axes {axes} for an array of shape {x.shape}")
    sizes = free_axes()
    kept = [_kept(entry, sizes) for entry in axes]
    if not any(kept):
        return x
    for dim, (size, names) in enumerate(zip(x.shape, kept)):
        parts = 1
        for name in names:
            parts *= sizes[name]
        if size % parts:
            given = ",".join(f"{name}={sizes[name]}" for name in names if sizes[name] > 1)
            raise UserError(
                f"--mesh {given} splits dimension {dim} of an array of shape {x.shape} {parts} ways, which do not "
                f"divide {size}: give a mesh that does"
            )
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*(names or None for names in kept)))


def free_axes() -> dict[str, int]:
    """Sizes of the mesh's axes that no surrounding shard_map has taken; none without a mesh.

    >>> free_axes()
    {}
    """
    mesh = jax.sharding.get_abstract_mesh()
    return {
        name: mesh.shape[name]
        for name, kind in zip(mesh.axis_names, mesh.axis_types)
        if kind != AxisType.Manual
    }


def row_axes() -> tuple[str, ...]:
    """Those of the free axes that split the rows of a batch, the outermost first."""
    free = free_axes()
    return tuple(axis for axis in ROWS if axis in free)


def platform() -> str:
    """ "cpu", "gpu" or "tpu": what the surrounding mesh is made of, without one the default backend.

    The mesh goes first, so that a program compiled ahead of time for a TPU on a machine without one
    takes the TPU's forms.

    >>> platform() in ("cpu", "gpu", "tpu")
    True
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return pretended() or (jax.default_backend() if device is None else device.platform)


def _kept(entry: Axes, sizes: dict[str, int]) -> tuple[str, ...]:
    names = (entry,) if isinstance(entry, str) else entry or ()
    return tuple(name for name in names if name in sizes)
