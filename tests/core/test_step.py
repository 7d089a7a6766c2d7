"""The train step: accumulation, averages, tables, clipping, bad micro-batches, keys, donation."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import more_toys
import numpy as np
import optax
import pytest
import toys

from mlperf_jax.core import gradients, mesh as meshes, starts, step as train
from mlperf_jax.core.benchmark import Table
from mlperf_jax.ops.shard import ROWS
from mlperf_jax.optimizers import rows, tree as trees

pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.fixture
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def f64(cls, **fields):
    return cls(dtype="float64", **fields)


def one_step(benchmark, batch, mesh="data=1", seed=0, state=None):
    """(state before, state after, scalars) of one step on this batch."""
    assembly = toys.prepared(benchmark, mesh)
    before = assembly.create(seed) if state is None else state
    kept = jax.tree.map(jnp.copy, before)
    batch = jax.device_put(batch, meshes.batch_sharding(assembly.mesh))
    after, scalars = train.jit_train_step(assembly)(before, batch, jax.random.key(seed))
    return kept, after, {name: float(value) for name, value in scalars.items()}


def changed(one, other):
    flat = trees.flatten_paths(other)
    return {p for p, leaf in trees.flatten_paths(one).items() if not np.array_equal(leaf, flat[p])}


# -- gradient accumulation -------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [toys.Plain, toys.Masked])
def test_accumulation_does_not_change_the_step(x64, cls):
    (one, first), (four, second) = (
        toys.stepped(f64(cls, gradient_accumulation_steps=n), steps=3) for n in (1, 4)
    )
    assert toys.distance(one["params"], four["params"]) < 1e-14
    for a, b in zip(first, second, strict=True):
        assert a == pytest.approx(b, rel=1e-13)


def test_a_weighted_mean_is_over_all_weights():
    benchmark = toys.Masked(dtype="float32", gradient_accumulation_steps=4)
    batch = toys.batch_of(benchmark, 0)
    batch["label"][:] = 0
    batch["label"][5] = 2  # one valid row in one of the four micro-batches
    before, _, scalars = one_step(benchmark, batch)
    logits = batch["x"][5] @ np.asarray(before["params"]["head"]["kernel"])
    assert scalars["loss"] == pytest.approx(np.log(np.exp(logits).sum()) - logits[2], rel=1e-5)
    assert scalars["valid"] == pytest.approx(1 / 32)


def test_a_batch_without_any_weight_changes_no_weight():
    benchmark = toys.Masked(dtype="float32")
    batch = toys.batch_of(benchmark, 0)
    batch["label"][:] = 0
    before, after, scalars = one_step(benchmark, batch)
    assert changed(before["params"], after["params"]) == set()
    assert scalars["loss"] == 0 and scalars["bad_since"] == 0


def test_table_gradients_of_micro_batches_return_to_their_own_rows(x64):
    # a span of 8 in micro-batches of 8 rows is another group of rows, so leave the norm out
    class NoNorm(toys.Toy):
        def loss(self, model, batch, key):
            logits = model.head(model.mix(batch["rows"]["items"].sum(1)))
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    one, four = (
        toys.stepped(f64(NoNorm, gradient_accumulation_steps=n), steps=3)[0] for n in (1, 4)
    )
    assert toys.distance(toys.weights(one), toys.weights(four)) < 1e-14


def test_each_device_works_on_every_micro_batch():
    """Splitting the batch into micro-batches moves no row to another device."""
    mesh = meshes.make_mesh("data=8")
    x = jax.device_put(np.arange(32.0), meshes.batch_sharding(mesh))
    parts = jax.jit(lambda x: gradients.interleave(x, 4))(x)
    for shard in parts.addressable_shards:
        assert shard.data.shape == (1, 4)
    np.testing.assert_array_equal(parts, np.arange(32.0).reshape(8, 4))


# -- averages, clipping, keys ----------------------------------------------------------------------


def test_averages_follow_the_new_weights():
    benchmark = toys.Toy(dtype="float32", ema_decay=0.75)
    before, after, _ = one_step(benchmark, toys.batch_of(benchmark, 0))
    wanted = jax.tree.map(lambda a, p: 0.75 * a + 0.25 * p, before["ema"], after["params"])
    assert toys.distance(wanted, after["ema"]) < 1e-6
    assert toys.distance(before["ema"], after["ema"]) > 0


def test_clipping_bounds_the_update():
    class Big(toys.Plain):
        def optimizer(self, tree):
            return optax.sgd(1.0)

        def loss(self, model, batch, key):
            return 1000 * super().loss(model, batch, key)

    batch = toys.batch_of(Big(dtype="float32"), 0)
    norms = []
    for limit in (None, 0.5):
        before, after, _ = one_step(Big(dtype="float32", clip_norm=limit), batch)
        moved = jax.tree.map(jnp.subtract, after["params"], before["params"])
        norms.append((float(optax.tree.norm(moved)), moved))
    (free, one), (clipped, other) = norms
    assert free > 10 and clipped == pytest.approx(0.5, rel=1e-4)
    assert toys.distance(jax.tree.map(lambda g: g * 0.5 / free, one), other) < 1e-5


def noise(seed=0, steps=1, micro=1):
    """What the noisy toy's bias moved by at each step."""
    benchmark = toys.Noisy(dtype="float32", gradient_accumulation_steps=micro)
    assembly = toys.prepared(benchmark)
    state, key = assembly.create(seed), jax.random.key(seed)
    program, moves = jax.jit(train.make_train_step(assembly)), []
    for number in range(steps):
        new, _ = program(state, toys.batch_of(benchmark, number), key)
        moves.append(np.asarray(state["params"]["head"]["bias"] - new["params"]["head"]["bias"]))
        state = new
    return moves


def drawn(seed, step, part):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), part)
    return np.asarray(jax.random.normal(key, (toys.CLASSES,)))


def test_noise_is_a_function_of_seed_step_and_micro_batch():
    for step, moved in enumerate(noise(steps=3)):
        np.testing.assert_allclose(moved, drawn(0, step, 0), atol=1e-6)
    np.testing.assert_allclose(noise(seed=9)[0], drawn(9, 0, 0), atol=1e-6)
    wanted = np.mean([drawn(0, 0, part) for part in range(4)], 0)
    np.testing.assert_allclose(noise(micro=4)[0], wanted, atol=1e-6)


def test_step_counts_and_donates_the_state():
    assembly = toys.prepared(toys.Toy(dtype="float32"), "data=8")
    state = assembly.create(0)
    given = jax.tree.leaves(state)
    batch = jax.device_put(
        toys.batch_of(assembly.benchmark, 0), meshes.batch_sharding(assembly.mesh)
    )
    new, _ = train.jit_train_step(assembly)(state, batch, jax.random.key(0))
    assert int(new["step"]) == 1
    assert all(leaf.is_deleted() for leaf in given), "every buffer of the state is reused"
    for path, leaf in trees.flatten_paths(new).items():
        assert leaf.sharding == trees.flatten_paths(assembly.shardings)[path], path


# -- losses that are not finite --------------------------------------------------------------------


def poisoned(benchmark, *parts):
    """A batch with NaN in these micro-batches of four."""
    batch = toys.batch_of(benchmark, 0)
    for part in parts:
        batch["x"][part::4] = np.nan
    return batch


def test_abort_marks_the_state_for_good():
    benchmark = toys.Toy(dtype="float32")
    batch = toys.batch_of(benchmark, 0)
    batch["x"][3] = np.nan
    _, after, scalars = one_step(benchmark, batch)
    assert after["bad_since"] == 1 and scalars["bad_since"] == 1
    _, later, scalars = one_step(benchmark, toys.batch_of(benchmark, 1), state=after)
    assert later["bad_since"] == 1 and scalars["bad_since"] == 1


def test_skipped_batches_in_a_row_are_counted_until_the_run_is_given_up():
    benchmark = toys.Plain(dtype="float32", nonfinite="skip", skip_limit=3)
    state, found = None, []
    for number in "gbbgbgbbbbg":
        batch = toys.batch_of(benchmark, 0) if number == "g" else poisoned(benchmark, 0, 1, 2, 3)
        _, state, scalars = one_step(benchmark, batch, state=state)
        found.append(scalars["bad_since"])
    assert found == [0, 2, 2, 0, 5, 0, 7, 7, 7, 7, 7], "from the third on it stays"


@pytest.mark.parametrize("micro", [1, 4])
def test_a_batch_that_is_bad_altogether_changes_nothing_but_the_step(micro):
    benchmark = toys.Toy(
        dtype="float32", span=None, nonfinite="skip", gradient_accumulation_steps=micro
    )
    before, after, scalars = one_step(benchmark, poisoned(benchmark, 0, 1, 2, 3))
    assert changed(before, after) == {"step", "bad_since"}
    assert np.isnan(scalars["loss"]) and scalars["bad_since"] == 1


def test_a_bad_micro_batch_is_left_out_of_the_mean():
    fields = dict(dtype="float32", ema_decay=None)
    skipping = toys.Plain(nonfinite="skip", gradient_accumulation_steps=4, **fields)
    batch = poisoned(skipping, 2)
    good = {name: np.delete(v, np.s_[2::4], axis=0) for name, v in batch.items()}
    _, skipped, scalars = one_step(skipping, batch)
    _, wanted, mean = one_step(toys.Plain(batch_size=24, **fields), good)
    assert toys.distance(wanted["params"], skipped["params"]) < 1e-6
    assert scalars["loss"] == pytest.approx(mean["loss"], rel=1e-6)


def test_scalars_of_a_skipped_micro_batch_do_not_count():
    class Marked(toys.Plain):
        def loss(self, model, batch, key):
            return super().loss(model, batch, key), {"one": jnp.ones(())}

    benchmark = Marked(dtype="float32", nonfinite="skip", gradient_accumulation_steps=4)
    assert one_step(benchmark, poisoned(benchmark, 0, 3))[2]["one"] == 1


def test_skipping_keeps_the_statistics_and_table_rows_of_good_micro_batches():
    benchmark = toys.Toy(
        dtype="float32", span=None, nonfinite="skip", gradient_accumulation_steps=4
    )
    batch = poisoned(benchmark, 1)
    batch["ids"][:] = 3
    batch["ids"][1::4] = 7  # only the bad rows look this one up
    before, after, _ = one_step(benchmark, batch)
    moved = np.asarray(before["tables"]["items"]["rows"] != after["tables"]["items"]["rows"])
    assert np.flatnonzero(moved.any(1)).tolist() == [3]
    assert np.all(np.isfinite(after["stats"]["norm"]["mean"]))
    assert changed(before["stats"], after["stats"]) == {"norm/mean", "norm/var"}


# -- tables ----------------------------------------------------------------------------------------


def dense_twin(kind, table, ids, grads):
    """The row optimizer's step by a dense gradient, in NumPy."""
    dense = np.zeros_like(table["rows"])
    np.add.at(dense, ids.ravel(), grads.reshape(-1, dense.shape[-1]))
    if kind == "sgd":
        return {"rows": table["rows"] - 0.1 * dense}
    squares = dense**2 if kind == "adagrad" else (dense**2).mean(-1)
    squares = table["accumulator"] + squares
    root = np.sqrt(squares) + 1e-8
    step = 0.1 * dense / (root if kind == "adagrad" else root[:, None])
    return {"rows": table["rows"] - step, "accumulator": squares}


@pytest.mark.parametrize("kind", ["adagrad", "rowwise_adagrad", "sgd"])
def test_steps_on_rows_equal_steps_on_a_dense_gradient(x64, kind):
    """Three steps of the whole train step, with ids that repeat within a batch."""

    class Kind(toys.Toy):
        def tables(self):
            (table,) = super().tables().values()
            return {"items": Table(toys.ROWS, 4, table.init, getattr(rows, kind)(0.1))}

    benchmark = f64(Kind)
    assembly = toys.prepared(benchmark, "data=2,fsdp=4")
    state, key = assembly.create(0), jax.random.key(0)
    program = jax.jit(train.make_train_step(assembly))
    for number in range(3):
        batch = toys.batch_of(benchmark, number)
        assert len(np.unique(batch["ids"])) < batch["ids"].size, "no duplicates: nothing is tested"
        table = {name: np.asarray(leaf) for name, leaf in state["tables"]["items"].items()}

        def loss(found, state=state, batch=batch):
            return benchmark.loss(assembly.model(state), {**batch, "rows": {"items": found}}, key)

        grads = np.asarray(jax.grad(loss)(jnp.asarray(table["rows"][batch["ids"]])))
        state, _ = program(state, batch, key)
        wanted = dense_twin(kind, table, batch["ids"], grads)
        assert set(wanted) == set(state["tables"]["items"])
        assert toys.distance(wanted, state["tables"]["items"]) < 1e-13


def test_tables_and_weights_read_their_rates_at_one_count():
    """Also where the start sets it, and where a bad batch is skipped and counts in neither."""
    benchmark = toys.Started(dtype="float32", nonfinite="skip", span=None)
    assembly = toys.prepared(benchmark)
    state = starts.begin_from(assembly.create(0), benchmark.start(""))
    program, key = jax.jit(train.make_train_step(assembly)), jax.random.key(0)
    for number, bad in enumerate([False, True, False]):
        batch = toys.batch_of(benchmark, number)
        batch["x"][:] = np.nan if bad else batch["x"]
        counts = int(state["updates"]), int(state["opt"].count)
        assert counts == ((7, 8, 8)[number],) * 2
        before, (state, _) = state, program(state, batch, key)
        moved = np.abs(state["tables"]["items"]["rows"] - before["tables"]["items"]["rows"])
        # Adagrad's first step of a row is the rate itself
        first = moved[before["tables"]["items"]["accumulator"] == 0].max()
        assert first == pytest.approx(0 if bad else benchmark.table_rate(counts[0]), rel=1e-3)
    assert int(state["step"]) == 3


@pytest.mark.parametrize("nonfinite", ["abort", "skip"])
def test_no_gradient_of_a_whole_table_is_made(nonfinite):
    """The step on a table of 5 MB takes far less besides, and gives its buffers back."""
    benchmark = more_toys.Wide(dtype="float32", nonfinite=nonfinite)
    assembly = toys.prepared(benchmark)
    batch = train.abstract_batch(benchmark.buckets()[0], meshes.batch_sharding(assembly.mesh))
    key = jax.eval_shape(lambda: jax.random.key(0))
    memory = train.jit_train_step(assembly).lower(assembly.abstract, batch, key).compile()
    memory = memory.memory_analysis()
    table = benchmark.table_rows * benchmark.table_width * 4
    assert memory.temp_size_in_bytes < table / 10
    assert memory.alias_size_in_bytes > 2 * table  # rows and accumulators are updated in place


def test_an_untrained_table_is_data():
    """In its own dtype, also of whole numbers; nothing is made of its size, and it stays where it is."""

    class Large(toys.Featured):
        rules = ((r"features/.*", jax.sharding.PartitionSpec(ROWS)),)
        table_rows: ClassVar[int] = 80_000

        def tables(self):
            tables = super().tables()
            fixed = dataclasses.replace(tables["features"], rows=self.table_rows, dtype=jnp.int8)
            return {**tables, "features": fixed}

    benchmark = Large(dtype="float32", gradient_accumulation_steps=2)
    assembly = toys.prepared(benchmark, "data=2,fsdp=2,expert=2")
    state = assembly.create(0)
    rows = state["tables"]["features"]["rows"]
    assert rows.dtype == jnp.int8 and set(state["tables"]["features"]) == {"rows"}
    assert rows.sharding.shard_shape(rows.shape) == (10_000, toys.FEATURES)
    before = np.asarray(rows)
    assert len(np.unique(before)) > 2
    batch = toys.batch_of(benchmark, 0)
    batch = jax.device_put(batch, meshes.batch_sharding(assembly.mesh))
    with jax.set_mesh(assembly.mesh):
        program = train.jit_train_step(assembly).lower(state, batch, jax.random.key(0)).compile()
    assert program.memory_analysis().temp_size_in_bytes < rows.nbytes / 8
    after, _ = program(state, batch, jax.random.key(0))
    np.testing.assert_array_equal(after["tables"]["features"]["rows"], before)
    assert after["tables"]["features"]["rows"].sharding.is_equivalent_to(rows.sharding, 2)
    assert int(after["updates"]) == 1


# -- one program, any mesh -------------------------------------------------------------------------


def test_meshes_agree_in_float64(x64):
    (alone, losses), *others = [
        toys.stepped(f64(toys.Toy), mesh)
        for mesh in (
            "data=1",
            "data=8",
            "data=2,fsdp=4",
            "data=2,fsdp=2,expert=2",
            "fsdp=4,context=2",
        )
    ]
    for state, found in others:
        assert toys.distance(toys.weights(alone), toys.weights(state)) < 1e-12
        assert [s["loss"] for s in found] == pytest.approx([s["loss"] for s in losses], rel=1e-12)


def test_meshes_agree_on_an_untrained_table_too(x64):
    (one, _), (eight, _) = [
        toys.stepped(f64(toys.Featured, gradient_accumulation_steps=2), mesh)
        for mesh in ("data=1", "data=2,fsdp=2,expert=2")
    ]
    assert one["tables"]["features"]["rows"].dtype == jnp.float16
    assert toys.distance(toys.weights(one), toys.weights(eight)) < 1e-12


def test_tensor_parallelism_agrees_in_float64(x64):
    P = jax.sharding.PartitionSpec

    class Ruled(toys.Layered):
        rules = (("head/kernel", P("tensor")), (".*/layers/kernel", P(None, "tensor")))

        def model(self, rngs):
            return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), super().model(rngs))

    one, losses = toys.stepped(f64(Ruled), "data=1")
    two, found = toys.stepped(f64(Ruled), "data=2,fsdp=2,tensor=2")
    assert toys.distance(one["params"], two["params"]) < 1e-12
    assert two["params"]["head"]["kernel"].sharding.spec == P("tensor")
    assert found[-1]["loss"] == pytest.approx(losses[-1]["loss"], rel=1e-12)


def test_accumulation_on_a_mesh_agrees_too(x64):
    fields = dict(gradient_accumulation_steps=2, span=8)
    one, _ = toys.stepped(f64(toys.Toy, **fields), "data=1")
    eight, _ = toys.stepped(f64(toys.Toy, **fields), "data=2,fsdp=2,expert=2")
    assert toys.distance(toys.weights(one), toys.weights(eight)) < 1e-12
