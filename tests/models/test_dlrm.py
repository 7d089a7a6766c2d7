"""DLRM's network: parity with PyTorch (scripts/make_dlrm_reference.py), initial laws, counts."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlperf_jax.benchmarks.dlrm_dcnv2 import DlrmDcnV2
from mlperf_jax.core import mesh as meshes, state as states, step as train
from mlperf_jax.models import dlrm
from mlperf_jax.optimizers import tree as trees

FILE = pathlib.Path(__file__).parent / "data" / "dlrm_reference.npz"
ROWS, BAGS = (50, 7, 30), (3, 1, 5)


def small(**fields):
    return DlrmDcnV2(
        dtype="float64", table_rows=ROWS, bag_sizes=BAGS, width=8, bottom=(16, 8), top=(12, 6),
        cross_layers=3, cross_rank=4, batch_size=24, shards=8, **fields
    )  # fmt: skip


@pytest.fixture
def saved():
    with jax.enable_x64(True):
        yield dict(np.load(FILE))


def with_weights(assembly, saved):
    """The initial state with the reference's weights, and a way to read it back."""
    state = assembly.create(0)
    params = {
        path: jnp.asarray(saved[f"before/{path}"]) for path in trees.flatten_paths(state["params"])
    }
    tables = {}
    for store in assembly.benchmark.plan().stores.values():
        rows = np.zeros((store.rows, store.width))
        for place in store.places:
            name = place.bag.name
            at = store.positions(name, np.arange(place.bag.rows))
            rows[at] = saved[f"before/table_{name.removeprefix('cat_')}"]
        tables[store.kind] = {**state["tables"][store.kind], "rows": jnp.asarray(rows)}
    state = {**state, "params": trees.unflatten(params), "tables": tables}
    return jax.tree.map(jax.device_put, state, assembly.shardings)


def logical_tables(benchmark, state):
    found = {}
    for store in benchmark.plan().stores.values():
        rows = np.asarray(state["tables"][store.kind]["rows"])
        for place in store.places:
            name = place.bag.name
            found[f"table_{name.removeprefix('cat_')}"] = rows[
                store.positions(name, np.arange(place.bag.rows))
            ]
    return found


@pytest.mark.parametrize(("placement", "mesh"), [("auto", "data=1"), ("rows", "data=8")])
def test_forward_loss_and_adagrad_steps_equal_pytorch(saved, placement, mesh):
    benchmark = small(placement=placement)
    assembly = states.assemble(benchmark, meshes.make_mesh(mesh))
    state = with_weights(assembly, saved)
    batch = {name: saved[name] for name in ("dense", "ids", "label")}
    placed = jax.device_put(batch, meshes.batch_sharding(assembly.mesh))
    bags, end = [], 0
    for number, size in enumerate(BAGS):
        bags.append(saved[f"before/table_{number}"][batch["ids"][:, end : end + size]].sum(1))
        end += size
    logits = assembly.model(state)(jnp.asarray(batch["dense"]), jnp.stack(bags, 1))
    np.testing.assert_allclose(logits, saved["logits_0"], rtol=1e-12)
    program = train.jit_train_step(assembly)
    for number in range(2):
        state, scalars = program(state, placed, jax.random.key(0))
        assert float(scalars["loss"]) == pytest.approx(float(saved[f"loss_{number}"]), rel=1e-12)
        found = trees.flatten_paths(state["params"]) | logical_tables(benchmark, state)
        wanted = {
            k.partition("/")[2]: v for k, v in saved.items() if k.startswith(f"after_{number}")
        }
        assert found.keys() == wanted.keys()
        for path, leaf in wanted.items():
            np.testing.assert_allclose(found[path], leaf, rtol=0, atol=1e-11, err_msg=path)
    moved = [np.any(found[p] != saved[f"before/{p}"], axis=-1) for p in found if "table" in p]
    assert [int(rows.sum()) for rows in moved] == [
        len(np.unique(batch["ids"][:, columns]))
        for columns in (slice(0, 3), slice(3, 4), slice(4, 9))
    ]


def test_a_cross_layer_by_hand():
    layer = dlrm.LowRankCross(3, 3, jnp.float32, nnx.Rngs(0))
    layer.v.kernel[...] = jnp.diag(jnp.array([1.0, 2.0, 3.0]))
    layer.w.kernel[...] = jnp.eye(3)[:, ::-1]  # turns the order around
    layer.w.bias[...] = jnp.array([1.0, 0.0, -1.0])
    x0, x = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[1.0, -1.0, 1.0]])
    # V x = (1, -2, 3); W turns it to (3, -2, 1); plus b = (4, -2, 0); times x0 = (4, -4, 0); plus x
    np.testing.assert_array_equal(layer(x0, x), [[5.0, -5.0, 1.0]])


def test_the_cross_kernels_have_no_gradient_when_x0_is_zero():
    cross = dlrm.CrossInteraction(3, 4, 2, 2, jnp.float32, nnx.Rngs(0))
    graph, params = nnx.split(cross)

    def total(params):
        return nnx.merge(graph, params)(jnp.zeros((5, 4)), jnp.zeros((5, 2, 4))).sum()

    assert all(not np.any(leaf) for leaf in jax.tree.leaves(jax.grad(total)(params)))


def test_the_dense_vector_comes_first_and_dots_are_of_all_pairs():
    dense, bags = jnp.array([[1.0, 2.0]]), jnp.array([[[3.0, 4.0], [5.0, 6.0]]])
    none = dlrm.CrossInteraction(3, 2, 0, 1, jnp.float32, nnx.Rngs(0))
    np.testing.assert_array_equal(none(dense, bags), [[1, 2, 3, 4, 5, 6]])
    dots = dlrm.DotInteraction(3, 2)
    np.testing.assert_array_equal(dots(dense, bags), [[1, 2, 11, 17, 39]])
    assert dots.features == 5
    model = dlrm.Dlrm(4, (6, 2), (5,), dots, jnp.float32, rngs=nnx.Rngs(0))
    assert model(jnp.ones((7, 4)), jnp.ones((7, 2, 2))).shape == (7,)


def test_initial_laws():
    benchmark = DlrmDcnV2(dtype="float32")
    shapes = jax.eval_shape(lambda: nnx.state(benchmark.model(nnx.Rngs(0))))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 16_044_545
    params = trees.flatten_paths(
        states.split(benchmark.replace(top=(64,), cross_layers=1).model(nnx.Rngs(3)))[1]["params"]
    )
    for path, leaf in params.items():
        values = np.asarray(leaf)
        if "cross" not in path:
            beside = params[path.replace("bias", "kernel")]
            bound = beside.shape[0] ** -0.5
            assert abs(values).max() <= bound
            if values.size > 100:
                assert values.std() == pytest.approx(bound / 3**0.5, rel=0.15), path
        elif path.endswith("bias"):
            assert not values.any()
        else:
            assert values.std() == pytest.approx((2 / 3968) ** 0.5, rel=0.01)
    assert params["interaction/cross/0/v/kernel"].shape == (3456, 512)


@pytest.mark.parametrize("placement", ["rows", "columns"])
def test_tables_begin_within_one_over_the_root_of_all_their_rows(placement):
    benchmark = small(placement=placement).replace(dtype="float32", table_rows=(400, 7, 3000))
    state = states.assemble(benchmark, meshes.make_mesh("data=8")).create(1)
    for name, values in logical_tables(benchmark, state).items():
        bound = len(values) ** -0.5
        assert 0.8 * bound < abs(values).max() <= bound, name
        assert values.std() == pytest.approx(bound / 3**0.5, rel=0.2)
    sums = [leaf["accumulator"] for leaf in state["tables"].values()]
    assert not any(np.any(leaf) for leaf in sums)
