"""shard(): names the mesh has constrain, others do nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mlperf_jax.errors import UserError
from mlperf_jax.ops.shard import platform, shard


@pytest.fixture
def mesh():
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        yield mesh


def layout(mesh, x, *axes):
    out = jax.jit(lambda x: shard(x, *axes) * 1)(x)
    return out.sharding.is_equivalent_to, lambda *spec: NamedSharding(mesh, PartitionSpec(*spec))


def test_without_a_mesh_it_is_the_identity():
    x = jnp.ones((3, 2))
    assert shard(x, "data", "tensor") is x
    assert platform() == jax.default_backend()


@pytest.mark.parametrize(
    ("axes", "spec"),
    [
        (("data", "tensor"), ("data", "tensor")),
        ((("data", "fsdp"), None), ("data", None)),  # the mesh has no fsdp
        ((("tensor", "data"),), (("tensor", "data"), None)),
        ((None, "tensor"), (None, "tensor")),
    ],
)
def test_layout(mesh, axes, spec):
    same_as, named = layout(mesh, jnp.ones((8, 4)), *axes)
    assert same_as(named(*spec), 2)


def test_names_the_mesh_lacks_leave_the_layout_alone(mesh):
    x = jax.device_put(jnp.ones((8, 4)), NamedSharding(mesh, PartitionSpec("data", "tensor")))
    same_as, named = layout(mesh, x, "expert", None)
    assert same_as(named("data", "tensor"), 2)
    assert shard(x, "expert", "context") is x


def test_values_and_gradient_pass_through(mesh):
    x = jnp.arange(8.0).reshape(4, 2)
    value, grad = jax.jit(jax.value_and_grad(lambda x: (shard(x, "data") ** 2).sum()))(x)
    assert value == 140
    np.testing.assert_array_equal(grad, 2 * x)


def test_manual_axes_are_dropped(mesh):
    @jax.jit
    @jax.shard_map(
        in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data"), axis_names={"data"}
    )
    def double(x):
        return 2 * shard(x, "data", "tensor")

    np.testing.assert_array_equal(double(jnp.ones((8, 4))), 2 * np.ones((8, 4)))


def test_errors_name_the_dimension(mesh):
    with pytest.raises(UserError, match=r"tensor=2 splits dimension 1 of .* \(8, 3\) 2 ways"):
        shard(jnp.ones((8, 3)), "data", "tensor")
    with pytest.raises(ValueError, match="3 axes"):
        shard(jnp.ones((8, 4)), None, None, "data")
