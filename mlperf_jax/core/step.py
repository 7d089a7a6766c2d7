"""The one train step and the one predict step, as pure functions of the state.

Shape legend: B rows of the global batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from mlperf_jax.core import mesh as meshes, phases, sharpness, state as states
from mlperf_jax.core.benchmark import Batch, Benchmark, Bucket, Shape, Table
from mlperf_jax.core.gradients import loss_at
from mlperf_jax.core.judges import Judges
from mlperf_jax.core.terms import differences
from mlperf_jax.errors import UserError
from mlperf_jax.ops import embedding, row_store
from mlperf_jax.ops.row_store import RowStore
from mlperf_jax.optimizers import tree as trees

State = states.State
Metrics = dict[str, jax.Array]
Ids = Mapping[str, jax.Array]  # what a batch looks up in each table


def make_train_step(
    assembly: states.Assembly,
) -> Callable[[State, Batch, jax.Array], tuple[State, Metrics]]:
    """`(state, batch, key) -> (state, metrics)`, to be jitted with the state donated.

    The batch is split into `gradient_accumulation_steps` micro-batches: micro-batch i holds rows
    i, i+n, i+2n, …, so that each device works on all of them. Metrics are scalars: `loss`,
    `bad_since`, what the benchmark's loss adds, and its means where it has several.
    """
    benchmark, tx = assembly.benchmark, assembly.tx

    def step(state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
        key = jax.random.fold_in(key, state["step"])
        ids = benchmark.lookups(batch) if state["tables"] else {}
        rows = look_up(assembly, state["tables"], ids)
        batch, rows = _with_untrained(assembly, batch, rows)
        found = sharpness.gradients(assembly, state, batch, rows, key)
        (grads, row_grads), loss, used = found["grads"], found["loss"], found["used"]
        if assembly.traced is None:
            extras = {}
        else:
            at = loss_at(assembly, state, batch, rows, key)
            extras = assembly.traced.given(loss, grads, at)
        updates, opt = tx.update(grads, state["opt"], state["params"], **extras)
        new = {
            "params": optax.apply_updates(state["params"], updates),
            "stats": _after_step(benchmark, found["stats"]),
            "opt": opt,
        }
        if "updates" in state:
            new["updates"] = state["updates"] + 1
        counted = {}
        if "evaluations" in state and assembly.traced is not None:
            asked = assembly.traced.evaluations(opt)
            counted["loss_evaluations"] = new["evaluations"] = state["evaluations"] + asked
        if (decay := benchmark.ema) is not None:
            new["ema"] = jax.tree.map(
                lambda a, p: decay * a + (1 - decay) * p, state["ema"], new["params"]
            )
        bad = ~jnp.isfinite(loss)
        if benchmark.nonfinite == "skip":  # a batch with no finite micro-batch changes nothing
            old = {part: state[part] for part in new}
            new = jax.tree.map(lambda a, b: jnp.where(used > 0, a, b), new, old)
            ids = _nowhere_unless(used > 0, ids, benchmark.tables() if ids else {})
            bad, loss = used == 0, jnp.where(used > 0, loss, jnp.nan)
        tables = _update_tables(assembly, state, ids, row_grads)
        moved = {"step": state["step"] + 1, "bad_since": _bad_since(benchmark, state, bad)}
        scalars = {**found["scalars"], **counted, "loss": loss, "bad_since": moved["bad_since"]}
        return {**state, **new, "tables": tables, **moved}, scalars

    return step


def _bad_since(benchmark: Benchmark, state: State, bad: jax.Array) -> jax.Array:
    step, since = state["step"], state["bad_since"]
    now = jnp.where(bad, jnp.where(since > 0, since, step + 1), 0)
    return jnp.where(states.given_up(benchmark, step, since), since, now)


def _after_step(benchmark: Benchmark, stats: State) -> State:
    """What `Benchmark.after_step` makes of the statistics."""
    new = dict(benchmark.after_step(stats))
    for path, became, was in differences(trees.flatten_paths(new), trees.flatten_paths(stats)):
        raise UserError(
            f"after_step must return the statistics that it was given, with other values: {path} was {was} "
            f"and became {became}"
        )
    return new


def look_up(assembly: states.Assembly, tables: State, ids: Ids) -> dict[str, jax.Array]:
    """Rows [B, K, width] of tables, sums of bags [B, T, width] of those that have a store of bags."""
    specs = assembly.benchmark.tables() if ids else {}
    found = {}
    for name, at in ids.items():
        rows, store = tables[name]["rows"], specs[name].store
        if store is None:
            found[name] = rows[at]
        elif isinstance(store, RowStore):
            found[name] = row_store.take(store, rows, at, assembly.mesh)
        else:
            found[name] = embedding.pool(store, rows, at, assembly.mesh)
    return found


def with_rows(assembly: states.Assembly, view: State, batch: Batch) -> Any:
    """The batch with what it looks up in the tables of an evaluation view, if there are any."""
    if not view["tables"]:
        return batch
    return {**batch, "rows": look_up(assembly, view["tables"], assembly.benchmark.lookups(batch))}


def _with_untrained(
    assembly: states.Assembly, batch: Batch, rows: Ids
) -> tuple[Mapping[str, Any], Ids]:
    """The batch with the rows of untrained tables, as data of its own, and the rows of the others."""
    specs = assembly.benchmark.tables() if rows else {}
    trained = {name: found for name, found in rows.items() if specs[name].optimizer is not None}
    fixed = {name: found for name, found in rows.items() if name not in trained}
    return ({**batch, "rows": fixed} if fixed else batch), trained


def _update_tables(assembly: states.Assembly, state: State, ids: Ids, row_grads: Ids) -> State:
    specs = assembly.benchmark.tables() if state["tables"] else {}

    def updated(name: str, table: State) -> State:
        optimizer, store = specs[name].optimizer, specs[name].store
        if optimizer is None:
            return table
        given, count = (table, ids[name], row_grads[name]), state["updates"]
        if store is None:
            return optimizer.update(*given, count)
        assert not isinstance(store, RowStore)  # of untrained tables alone
        return embedding.update(store, *given, optimizer.step, count, assembly.mesh)

    return {name: updated(name, table) for name, table in state["tables"].items()}


def _nowhere_unless(used: jax.Array, ids: Ids, specs: Mapping[str, Table]) -> Ids:
    """The ids, or row numbers past the table's end: updates of those are dropped.

    Choosing between the old and the new table instead would keep both in memory. Bags keep their ids:
    their gradients are zero, with which a row optimizer changes nothing.
    """
    return {
        name: jnp.where(used, at, specs[name].rows) if specs[name].store is None else at
        for name, at in ids.items()
    }


def jit_train_step(assembly: states.Assembly) -> jax.stages.Wrapped:
    """The jitted train step: state donated, its shardings kept."""
    return jax.jit(
        make_train_step(assembly),
        donate_argnums=0,
        in_shardings=(assembly.shardings, meshes.batch_sharding(assembly.mesh), None),
        out_shardings=(assembly.shardings, meshes.replicated(assembly.mesh)),
    )


def jit_predict_step(assembly: states.Assembly, judges: Judges | None = None) -> jax.stages.Wrapped:
    """The jitted `(view, batch, mask [B], key) -> sums or rows`, as the benchmark's metric takes them.

    The arrays of the judges, if there are any, are one more argument. Sums come back replicated, rows stay
    where they are.
    """
    benchmark, mesh = assembly.benchmark, assembly.mesh
    rows = benchmark.metric.rows

    def predict(view: State, batch: Batch, mask: jax.Array, key: jax.Array, *arrays: State) -> Any:
        batch = with_rows(assembly, view, batch)
        modules = [judges.module(own) for own in arrays if judges]
        outputs = benchmark.predict(assembly.eval_model(view), batch, key, *modules)
        for shape in {leaf.shape for leaf in jax.tree.leaves(outputs)}:
            if shape[:1] != mask.shape:
                raise UserError(
                    f"predict must give a row for each of a batch's {mask.size}, and gives {list(shape)}"
                )
        return outputs if rows else benchmark.metric.sums(outputs, mask)

    where = meshes.batch_sharding(mesh) if rows else meshes.replicated(mesh)
    return jax.jit(predict, out_shardings=where)


def in_phases(assembly: states.Assembly) -> list[states.Assembly]:
    """The program of each phase of the training, over one state."""
    every = phases.phases(assembly.benchmark)
    return [dataclasses.replace(assembly, benchmark=phase.benchmark) for phase in every]


def train_arguments(assembly: states.Assembly) -> Iterator[tuple[State, dict[str, Shape], Any]]:
    """What a step is traced with, for each batch shape: abstract state, batch and key."""
    sharding = meshes.batch_sharding(assembly.mesh)
    for bucket in assembly.benchmark.buckets():
        yield assembly.abstract, abstract_batch(bucket, sharding), states.abstract_key()


def predict_arguments(assembly: states.Assembly, judges: Judges | None) -> Iterator[tuple]:
    """What a prediction is traced with, for each batch shape: abstract view, batch, mask, key, and judges if any."""
    sharding = meshes.batch_sharding(assembly.mesh)
    for bucket in assembly.benchmark.eval_buckets():
        mask = jax.ShapeDtypeStruct((bucket.rows,), bool, sharding=sharding)
        own = (abstract_batch(bucket, sharding), mask, states.abstract_key())
        yield (assembly.abstract_view, *own, *([judges.abstract] if judges else []))


def abstract_batch(bucket: Bucket, sharding: NamedSharding) -> dict[str, Shape]:
    """The shapes of a global batch, rows in front."""
    return {
        name: jax.ShapeDtypeStruct((bucket.rows, *leaf.shape), leaf.dtype, sharding=sharding)
        for name, leaf in bucket.example.items()
    }
