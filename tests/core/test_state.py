"""What the state holds, what it leaves out, and where each leaf lives."""

import functools

import jax
import jax.numpy as jnp
import more_toys
import numpy as np
import optax
import pytest
import toys
from jax.sharding import PartitionSpec as P

from mlperf_jax.core import mesh as meshes, starts, state as states, step as train
from mlperf_jax.core.benchmark import Start, Table
from mlperf_jax.errors import UserError
from mlperf_jax.ops.embedding_plan import Bag, make_plan
from mlperf_jax.optimizers import per_layer, rows, tree as trees
from mlperf_jax.planning import programs

MESH = "data=2,fsdp=4"


def paths(tree):
    return set(trees.flatten_paths(tree))


def test_every_seat_of_the_state_is_taken_by_its_own():
    state = toys.prepared(toys.Toy()).abstract
    assert set(state) == {
        "params", "frozen", "tables", "stats", "opt", "ema", "step", "bad_since", "updates",
    }  # fmt: skip
    assert paths(state["frozen"]) == {"base/kernel", "base/bias"}
    assert paths(state["tables"]) == {"items/rows", "items/accumulator"}
    assert paths(state["stats"]) == {"norm/mean", "norm/var"}
    trained = {"norm/scale", "norm/bias", "mix/kernel", "mix/bias", "head/kernel", "head/bias"}
    assert paths(state["params"]) == paths(state["ema"]) == trained
    moments = {path.partition("/")[2] for path in paths(state["opt"]) if "/" in path}
    assert moments == trained, "the optimizer must not hold what is frozen"
    assert "ema" not in toys.prepared(toys.Toy(ema_decay=None)).abstract
    assert "updates" not in toys.prepared(toys.Plain()).abstract


def test_frozen_weights_have_no_gradient_and_never_move():
    seen = []

    def spy(tree):
        assert not any(leaf.path.startswith("base") for leaf in tree.leaves)

        def update(grads, state, params=None):
            seen.append(paths(grads))
            return jax.tree.map(lambda g: -g, grads), state

        return optax.GradientTransformation(lambda params: (), update)

    assembly = toys.prepared(toys.Lora(), optimizer=spy)
    before = assembly.create(0)
    batch = toys.batch_of(assembly.benchmark, 0)
    after, _ = jax.jit(train.make_train_step(assembly))(before, batch, jax.random.key(0))
    assert {*map(frozenset, seen)} == {frozenset({"lora_a", "lora_b"})}
    assert toys.distance(before["frozen"], after["frozen"]) == 0
    assert toys.distance(before["params"], after["params"]) > 0


def test_adapters_are_split_from_their_base_by_path():
    # nnx.LoRAParam is an nnx.Param: a split by type would freeze or train both
    state = toys.prepared(toys.Lora()).abstract
    assert paths(state["params"]) == paths(state["ema"]) == {"lora_a", "lora_b"}
    assert paths(state["frozen"]) == {"base/kernel", "base/bias"}


def test_model_is_put_together_from_all_parts():
    assembly = toys.prepared(toys.Lora())
    state = assembly.create(3)
    x = np.ones((2, toys.FEATURES), np.float32)
    base = state["frozen"]["base"]
    np.testing.assert_allclose(
        assembly.model(state)(x), x @ base["kernel"] + base["bias"], rtol=1e-6
    )


def test_random_state_in_a_module_is_refused():
    with pytest.raises(UserError, match=r"random state at drop/.*take a key"):
        toys.prepared(toys.Stateful())


def test_frozen_pattern_that_matches_nothing_is_refused():
    class Typo(toys.Lora):
        frozen = ("bse/.*",)

    with pytest.raises(UserError, match=r"'bse/\.\*' matches no parameter"):
        toys.prepared(Typo())


def test_initialisation_is_a_function_of_the_seed_and_not_of_the_mesh():
    one, other = (toys.prepared(toys.Toy(), mesh).create(7) for mesh in ("data=1", MESH))
    for path, leaf in trees.flatten_paths(one).items():
        np.testing.assert_array_equal(leaf, trees.flatten_paths(other)[path], err_msg=path)
    assert toys.distance(one["params"], toys.prepared(toys.Toy()).create(8)["params"]) > 0.1


def test_no_two_leaves_begin_with_the_same_random_numbers():
    class Same(toys.Toy):
        def tables(self):
            (table,) = super().tables().values()
            return {"a": table, "b": table}

    state = toys.prepared(Same()).create(0)
    drawn = [state["tables"]["a"]["rows"] * 10, state["tables"]["b"]["rows"] * 10]
    drawn += [state["params"]["mix"]["kernel"], state["frozen"]["base"]["kernel"]]
    firsts = [np.asarray(leaf).ravel()[:32] for leaf in drawn]
    for i, one in enumerate(firsts):
        for other in firsts[i + 1 :]:
            assert abs(np.corrcoef(one, other)[0, 1]) < 0.7


def test_an_untrained_table_is_not_kept_and_counts_for_nothing():
    assembly, plain = (toys.prepared(x(), "data=1") for x in (toys.Featured, toys.Toy))
    assert paths(assembly.abstract["tables"]) - paths(plain.abstract["tables"]) == {"features/rows"}
    kept = assembly.kept(assembly.abstract)
    assert paths(kept) == paths(plain.kept(plain.abstract))
    assert "frozen" not in kept and "updates" in kept
    assert assembly.parameters == plain.parameters
    more = programs.state_bytes(assembly)["other"] - programs.state_bytes(plain)["other"]
    assert more == toys.FEATURE_ROWS.nbytes == toys.ROWS * toys.FEATURES * 2  # float16


def test_a_table_is_read_by_parts_in_place_of_what_it_began_as():
    asked = []

    def reader(index):
        asked.append(index)
        return toys.FEATURE_ROWS[index]

    start = Start({"tables/features/rows": reader})
    before, after = started(start, toys.Featured(), "data=2,fsdp=2,expert=2")
    np.testing.assert_array_equal(after["tables"]["features"]["rows"], toys.FEATURE_ROWS)
    spans = sorted(index[0].indices(toys.ROWS)[:2] for index in asked)
    assert spans == [
        (first, first + toys.ROWS // 8) for first in range(0, toys.ROWS, toys.ROWS // 8)
    ]
    assert before["tables"]["features"]["rows"].is_deleted(), "no device needs room for two"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"optimizer": rows.sgd(1.0), "dtype": jnp.float16},
            "in float32, not float16.*leave dtype",
        ),
        ({"optimizer": None, "store": True}, "without an optimizer has a RowStore.*not a Store"),
        (
            {"optimizer": rows.sgd(1.0), "data": lambda folder: None},
            "has no data: give its rows as",
        ),
    ],
)
def test_a_table_that_cannot_be_is_refused(given, sentence):
    (store,) = make_plan([Bag("a", 8, 1)], width=4, bins=1, way="rows").stores.values()
    more = {**given, "store": store} if "store" in given else given
    with pytest.raises(UserError, match=sentence):
        Table(8, 4, jax.nn.initializers.zeros, **more)


def test_frozen_weights_are_made_again_bit_for_bit():
    assembly = toys.prepared(toys.Toy(), MESH)
    whole, again = (
        x["frozen"] for x in (assembly.create(5), assembly.completed({"tables": {}}, 5))
    )
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.sharding == other.sharding


# -- where leaves live -----------------------------------------------------------------------------


def test_leaves_are_created_where_the_rules_say():
    class Ruled(toys.Layered):
        rules = (("head/kernel", P("tensor", None)), (".*/layers/bias", P("fsdp")))

    assembly = toys.prepared(Ruled(), "data=2,fsdp=2,tensor=2")
    state = assembly.create(0)
    specs = {path: leaf.sharding.spec for path, leaf in trees.flatten_paths(state).items()}
    assert specs["params/head/kernel"] == P("tensor", None)
    assert specs["params/blocks/layers/bias"] == P(None, "fsdp")
    assert specs["params/blocks/layers/kernel"] == P(None, "fsdp", None)  # the default rule's
    assert specs["params/embed/kernel"] == P()  # too small to be worth gathering
    assert specs["opt/momentum/head/kernel"] == specs["params/head/kernel"]
    assert specs["opt/momentum/blocks/layers/kernel"] == specs["params/blocks/layers/kernel"]
    assert specs["opt/count"] == P()
    kernel = state["params"]["blocks"]["layers"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(3, 64, 128)}


def test_nothing_is_created_whole():
    """Initialising a table of 5 MB on eight devices takes an eighth of it on each."""
    benchmark = more_toys.Wide(dtype="float32")
    assembly = toys.prepared(benchmark, "fsdp=8")
    rows = assembly.abstract["tables"]["items"]["rows"]
    assert rows.sharding.spec == P("fsdp", None)
    init = jax.jit(assembly.initial, out_shardings=assembly.shardings)
    with jax.set_mesh(assembly.mesh):
        memory = init.lower(jax.random.key(0)).compile().memory_analysis()
    whole = rows.size * 4
    assert memory.output_size_in_bytes < 2.2 * whole / 8  # the rows and their accumulators
    assert memory.temp_size_in_bytes < whole / 2
    state = assembly.create(0)
    assert state["tables"]["items"]["rows"].addressable_shards[0].data.nbytes == whole // 8


def test_first_rule_that_matches_wins_and_what_does_not_divide_stays_whole():
    mesh = meshes.make_mesh(MESH)
    rules = (("a/.*", P("fsdp", "data")), (".*", P("data")))
    assert meshes.leaf_spec("a/kernel", (8, 6), rules, mesh) == P("fsdp", "data")
    assert meshes.leaf_spec("a/kernel", (6, 6), rules, mesh) == P(None, "data")
    assert meshes.leaf_spec("b/kernel", (4, 4), rules, mesh) == P("data")
    assert meshes.leaf_spec("x/layers/b", (3, 4), rules, mesh) == P(None, "data")
    assert meshes.leaf_spec("b", (4,), (("b", P(("data", "fsdp"))),), mesh) == P(None)
    assert meshes.leaf_spec("b", (8,), (("b", P(("data", "fsdp"))),), mesh) == P(("data", "fsdp"))
    with pytest.raises(UserError, match=r"rule 'a/\.\*' has 2 axes but a/bias"):
        meshes.leaf_spec("a/bias", (8,), rules, mesh)


# -- start checkpoints -----------------------------------------------------------------------------


def started(start, benchmark=None, mesh=MESH, optimizer=None):
    assembly = toys.prepared(benchmark or toys.Toy(), mesh, optimizer)
    before = assembly.create(0)
    return before, starts.begin_from(before, start)


def test_start_takes_arrays_and_readers_and_keeps_the_rest():
    kernel = np.arange(16 * toys.CLASSES, dtype=np.float64).reshape(16, -1)
    asked = []

    def reader(index):
        asked.append(index)
        return np.full((toys.FEATURES, 16), 0.25, np.float32)[index]

    before, after = started(Start({"params/head/kernel": kernel, "frozen/base/kernel": reader}, 7))
    np.testing.assert_array_equal(after["params"]["head"]["kernel"], kernel)
    np.testing.assert_array_equal(after["ema"]["head"]["kernel"], kernel)
    assert after["params"]["head"]["kernel"].dtype == jnp.float32
    assert np.all(np.asarray(after["frozen"]["base"]["kernel"]) == 0.25)
    assert asked and all(isinstance(part, slice) for part in asked[0])
    assert toys.distance(before["params"]["mix"], after["params"]["mix"]) == 0
    assert int(after["opt"].count) == 7 and int(after["step"]) == 0
    for path, leaf in trees.flatten_paths(after).items():
        assert leaf.sharding == trees.flatten_paths(before)[path].sharding, path


def test_readers_are_asked_for_a_part_of_a_sharded_leaf():
    asked = []

    def reader(index):
        asked.append(index)
        return np.ones((3, 128, 128), np.float32)[index]

    _, after = started(Start({"params/blocks/layers/kernel": reader}), toys.Layered())
    assert np.all(np.asarray(after["params"]["blocks"]["layers"]["kernel"]) == 1)
    assert {index[1].indices(128)[:2] for index in asked} == {
        (i, i + 32) for i in range(0, 128, 32)
    }


def test_an_average_begins_with_the_weights_of_the_start():
    kernel = np.ones((toys.FEATURES, toys.CLASSES), np.float32)
    tx = optax.inject_hyperparams(optax.contrib.schedule_free_sgd)(0.1)
    assembly = toys.prepared(toys.Plain(), MESH, tx)
    before = assembly.create(0)
    after = assembly.begin_from(before, Start({"params/head/kernel": kernel}, 7))
    view = assembly.eval_view(after)["params"]
    np.testing.assert_allclose(view["head"]["kernel"], kernel, rtol=1e-6)
    assert int(after["opt"].count) == 0, (
        "a replaced optimizer begins anew, whatever the start's count"
    )
    for path, leaf in trees.flatten_paths(after).items():
        assert leaf.sharding == trees.flatten_paths(before)[path].sharding, path


def test_a_replaced_optimizer_takes_neither_count_nor_moments_of_the_start():
    kernel = np.ones((toys.FEATURES, toys.CLASSES), np.float32)
    start = Start({"params/head/kernel": kernel}, 7, {"mu": {"head/kernel": kernel}})
    assembly = toys.prepared(toys.Plain(), MESH, optax.adam(1e-2))
    after = assembly.begin_from(assembly.create(0), start)
    np.testing.assert_array_equal(after["params"]["head"]["kernel"], kernel)
    assert not any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(after["opt"]))


def test_start_sets_every_count_of_the_optimizer():
    tx = optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(lambda count: -0.1 * count))
    _, after = started(Start({}, 100), toys.Layered(), optimizer=per_layer(tx))
    counts = {
        p: leaf for p, leaf in trees.flatten_paths(after["opt"]).items() if p.endswith("count")
    }
    assert len(counts) == 4  # two of the stack, with a layer axis, and two of the rest
    assert {leaf.shape for leaf in counts.values()} == {(), (3,)}
    assert all(np.all(np.asarray(leaf) == 100) for leaf in counts.values())


def test_start_of_frozen_weights_alone_leaves_averages_as_they_are():
    # what a resumed run does: its averages come from the checkpoint
    assembly = toys.prepared(toys.Toy())
    state = assembly.create(0)
    state["ema"] = jax.tree.map(lambda leaf: leaf + 1, state["ema"])
    base = np.zeros((toys.FEATURES, 16), np.float32)
    after = starts.begin_from(state, Start({"frozen/base/kernel": base}))
    assert toys.distance(state["ema"], after["ema"]) == 0


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ({"params/hed/kernel": np.zeros(3)}, "has 'params/hed/kernel', which this model lacks"),
        ({"params/head/bias": np.zeros(4)}, r"of shape \(4,\), the model \(3,\)"),
    ],
)
def test_start_that_does_not_fit_is_refused(weights, sentence):
    with pytest.raises(UserError, match=sentence):
        started(Start(weights))


# -- what is worth keeping -------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["params", "tables", "stats", "ema"])
def test_a_weight_that_is_not_finite_is_found(part):
    assembly = toys.prepared(toys.Toy(), MESH)
    state = assembly.create(0)
    all_finite = functools.partial(states.all_finite, assembly.benchmark)
    assert bool(all_finite(state))
    leaves, structure = jax.tree.flatten(state[part])
    leaves[-1] = leaves[-1].at[(0,) * leaves[-1].ndim].set(jnp.inf)
    assert not bool(all_finite({**state, part: jax.tree.unflatten(structure, leaves)}))
    assert not bool(all_finite({**state, "step": jnp.array(4), "bad_since": jnp.array(4)}))
