"""The one train step and the one predict step, as pure functions of the state.

Shape legend: B rows of the global batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from mlperf_jax.core import mesh as meshes
from mlperf_jax.core import state as states
from mlperf_jax.core.benchmark import Benchmark, Bucket, Shape
from mlperf_jax.core.gradients import gradients
from mlperf_jax.core.judges import Judges
from mlperf_jax.errors import UserError
from mlperf_jax.ops import embedding
from mlperf_jax.optimizers import tree as trees

State = states.State
Metrics = dict[str, jax.Array]


def make_train_step(assembly: states.Assembly) -> Callable[[State, Any, jax.Array], Any]:
    """`(state, batch, key) -> (state, metrics)`, to be jitted with the state donated.

    The batch is split into `gradient_accumulation_steps` micro-batches: micro-batch i holds rows
    i, i+n, i+2n, …, so that each device works on all of them. Metrics are scalars: `loss`, `finite`,
    what the benchmark's loss adds, and its means where it has several.
    """
    benchmark, tx = assembly.benchmark, assembly.tx

    def step(state: State, batch: Any, key: jax.Array) -> tuple[State, Metrics]:
        key = jax.random.fold_in(key, state["step"])
        ids = benchmark.lookups(batch) if state["tables"] else {}
        rows = look_up(assembly, state["tables"], ids)
        batch, rows = _with_untrained(assembly, batch, rows)
        found = gradients(assembly, state, batch, rows, key)
        (grads, row_grads), loss, used = found["grads"], found["loss"], found["used"]
        updates, opt = tx.update(grads, state["opt"], state["params"], value=loss)
        new = {
            "params": optax.apply_updates(state["params"], updates),
            "stats": _after_step(benchmark, found["stats"]),
            "opt": opt,
        }
        if "updates" in state:
            new["updates"] = state["updates"] + 1
        if benchmark.ema_decay is not None:
            new["ema"] = _average(benchmark.ema_decay, state["ema"], new["params"])
        finite = state["finite"] & jnp.isfinite(loss)
        if benchmark.nonfinite == "skip":  # a batch with no finite micro-batch changes nothing
            old = {part: state[part] for part in new}
            new = jax.tree.map(lambda a, b: jnp.where(used > 0, a, b), new, old)
            ids = _nowhere_unless(used > 0, ids, benchmark.tables() if ids else {})
            finite, loss = state["finite"], jnp.where(used > 0, loss, jnp.nan)
        tables = _update_tables(assembly, state, ids, row_grads)
        new = {**state, **new, "tables": tables, "step": state["step"] + 1, "finite": finite}
        return new, {**found["scalars"], "loss": loss, "finite": finite}

    return step


def _after_step(benchmark: Benchmark, stats: State) -> State:
    """What `Benchmark.after_step` makes of the statistics.

    Raises:
        UserError: it changes more than their values.
    """
    new = dict(benchmark.after_step(stats))
    was, became = (
        {
            path: f"{leaf.dtype}{list(leaf.shape)}"
            for path, leaf in trees.flatten_paths(tree).items()
        }
        for tree in (stats, new)
    )
    for path in sorted({*was, *became}):
        if was.get(path) != became.get(path):
            raise UserError(
                f"after_step must return the statistics that it was given, with other values: {path} was "
                f"{was.get(path, 'not there')} and became {became.get(path, 'nothing')}"
            )
    return new


def look_up(assembly: states.Assembly, tables: State, ids: Any) -> dict[str, jax.Array]:
    """Rows [B, K, width] of plain tables, sums of bags [B, T, width] of a store's."""
    specs = assembly.benchmark.tables() if ids else {}
    found = {}
    for name, at in ids.items():
        rows, store = tables[name]["rows"], specs[name].store
        found[name] = rows[at] if store is None else embedding.pool(store, rows, at, assembly.mesh)
    return found


def _with_untrained(assembly: states.Assembly, batch: Any, rows: Any) -> tuple[Any, Any]:
    """The batch with the rows of untrained tables, as data of its own, and the rows of the others."""
    specs = assembly.benchmark.tables() if rows else {}
    trained = {name: found for name, found in rows.items() if specs[name].optimizer is not None}
    fixed = {name: found for name, found in rows.items() if name not in trained}
    return ({**batch, "rows": fixed} if fixed else batch), trained


def _update_tables(assembly: states.Assembly, state: State, ids: Any, row_grads: Any) -> State:
    specs = assembly.benchmark.tables() if state["tables"] else {}

    def updated(name: str, table: State) -> State:
        optimizer, store = specs[name].optimizer, specs[name].store
        if optimizer is None:
            return table
        given, count = (table, ids[name], row_grads[name]), state["updates"]
        if store is None:
            return optimizer.update(*given, count)
        return embedding.update(store, *given, optimizer.step, count, assembly.mesh)

    return {name: updated(name, table) for name, table in state["tables"].items()}


def _nowhere_unless(used: jax.Array, ids: Any, specs: Any) -> Any:
    """The ids, or row numbers past the table's end: updates of those are dropped.

    Choosing between the old and the new table instead would keep both in memory. Bags keep their ids:
    their gradients are zero, with which a row optimizer changes nothing.
    """
    return {
        name: jnp.where(used, at, specs[name].rows) if specs[name].store is None else at
        for name, at in ids.items()
    }


def _average(decay: float, old: Any, new: Any) -> Any:
    return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, old, new)


def make_predict_step(
    assembly: states.Assembly, judges: Judges | None = None
) -> Callable[..., Any]:
    """`(view, batch, mask [B], key) -> sums or rows`, as the benchmark's metric takes them.

    The arrays of the judges, if there are any, are one more argument.
    """
    benchmark = assembly.benchmark

    def predict(view: State, batch: Any, mask: jax.Array, key: jax.Array, *arrays: State) -> Any:
        if view["tables"]:
            ids = benchmark.lookups(batch)
            batch = {**batch, "rows": look_up(assembly, view["tables"], ids)}
        modules = [judges.module(own) for own in arrays if judges]
        outputs = benchmark.predict(assembly.eval_model(view), batch, key, *modules)
        return outputs if benchmark.metric.rows else benchmark.metric.sums(outputs, mask)

    return predict


def jit_train_step(assembly: states.Assembly) -> Any:
    """The jitted train step: state donated, its shardings kept."""
    return jax.jit(
        make_train_step(assembly),
        donate_argnums=0,
        in_shardings=(assembly.shardings, meshes.batch_sharding(assembly.mesh), None),
        out_shardings=(assembly.shardings, meshes.replicated(assembly.mesh)),
    )


def jit_predict_step(assembly: states.Assembly, judges: Judges | None = None) -> Any:
    """The jitted predict step: sums come back replicated, rows stay where they are."""
    rows = assembly.benchmark.metric.rows
    return jax.jit(
        make_predict_step(assembly, judges),
        out_shardings=meshes.batch_sharding(assembly.mesh)
        if rows
        else meshes.replicated(assembly.mesh),
    )


def abstract_batch(bucket: Bucket, sharding: NamedSharding) -> dict[str, Shape]:
    """The shapes of a global batch, rows in front."""
    return {
        name: jax.ShapeDtypeStruct((bucket.rows, *leaf.shape), leaf.dtype, sharding=sharding)
        for name, leaf in bucket.example.items()
    }
