"""The one train step and the one predict step, as pure functions of the state.

Shape legend: B rows of the global batch · n micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mlperf_jax.core import mesh as meshes
from mlperf_jax.core import state as states
from mlperf_jax.core.benchmark import Weighted
from mlperf_jax.ops import embedding

State = states.State
Metrics = dict[str, jax.Array]


def make_train_step(assembly: states.Assembly) -> Callable[[State, Any, jax.Array], Any]:
    """`(state, batch, key) -> (state, metrics)`, to be jitted with the state donated.

    The batch is split into `gradient_accumulation_steps` micro-batches: micro-batch i holds rows
    i, i+n, i+2n, …, so that each device works on all of them. Metrics are scalars: `loss`, `finite`,
    and what the benchmark's loss adds.
    """
    benchmark, tx = assembly.benchmark, assembly.tx
    micro = benchmark.gradient_accumulation_steps

    def step(state: State, batch: Any, key: jax.Array) -> tuple[State, Metrics]:
        key = jax.random.fold_in(key, state["step"])
        ids = benchmark.lookups(batch) if state["tables"] else {}
        rows = look_up(assembly, state["tables"], ids)
        batch, rows = _with_untrained(assembly, batch, rows)
        total = _gradients(assembly, state, batch, rows, key, micro)
        used = total["used"]  # micro-batches that count: all, unless bad ones are skipped
        loss = total["loss"] / total["weight"]
        grads, row_grads = jax.tree.map(
            lambda g: g / total["weight"].astype(g.dtype), total["grads"]
        )
        updates, opt = tx.update(grads, state["opt"], state["params"], value=loss)
        new = {
            "params": optax.apply_updates(state["params"], updates),
            "stats": total["stats"],
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
        scalars = jax.tree.map(lambda s: s / jnp.maximum(used, 1), total["scalars"])
        return new, {"loss": loss, "finite": finite, **scalars}

    return step


def _gradients(
    assembly: states.Assembly, state: State, batch: Any, rows: Any, key: jax.Array, micro: int
) -> dict[str, Any]:
    """Sums over micro-batches: gradients of the total loss, the total, its weight, scalars, stats."""
    skip = assembly.benchmark.nonfinite == "skip"

    def objective(trained: Any, stats: State, part: Any, key: jax.Array) -> Any:
        params, rows = trained
        model = states.merge(assembly.graphdef, params, state["frozen"], stats)
        found: Any = {**part.get("rows", {}), **rows}
        loss = assembly.benchmark.loss(model, {**part, "rows": found} if found else part, key)
        total, weight, scalars = _loss_parts(loss)
        return total, (weight, scalars, states.stats_of(model))

    def one(params: Any, rows: Any, stats: State, part: Any, key: jax.Array) -> dict[str, Any]:
        grad = jax.value_and_grad(objective, has_aux=True)
        (loss, (weight, scalars, new)), grads = grad((params, rows), stats, part, key)
        used = jnp.ones((), loss.dtype)
        if skip:
            ok = jnp.isfinite(loss)
            used = ok.astype(loss.dtype)
            clear = lambda tree: jax.tree.map(lambda g: jnp.where(ok, g, 0), tree)  # noqa: E731
            loss, weight, grads, scalars = clear((loss, weight, grads, scalars))
            new = jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, stats)
        return dict(grads=grads, loss=loss, weight=weight, scalars=scalars, stats=new, used=used)

    if micro == 1:
        total = one(state["params"], rows, state["stats"], batch, jax.random.fold_in(key, 0))
    else:
        total = _accumulate(one, state, batch, rows, key, micro)
    # no valid label in the whole batch, or no micro-batch left: 0 / 1 instead of 0 / 0
    return {**total, "weight": jnp.where(total["weight"] == 0, 1, total["weight"])}


def _accumulate(
    one: Callable[..., dict[str, Any]],
    state: State,
    batch: Any,
    rows: Any,
    key: jax.Array,
    micro: int,
) -> dict[str, Any]:
    parts, row_parts = jax.tree.map(lambda x: _interleave(x, micro), (batch, rows))
    take = lambda tree, i: jax.tree.map(lambda x: x[:, i], tree)  # noqa: E731
    params = state["params"]

    def body(carry: Any, i: jax.Array) -> Any:
        sums, stats = carry
        part = one(params, take(row_parts, i), stats, take(parts, i), jax.random.fold_in(key, i))
        stats, (grads, row_grads) = part.pop("stats"), part.pop("grads")
        return (jax.tree.map(jnp.add, sums, {**part, "grads": grads}), stats), row_grads

    shapes = jax.eval_shape(
        one, params, take(row_parts, 0), state["stats"], take(parts, 0), jax.random.fold_in(key, 0)
    )
    shapes.pop("stats")
    zeros = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype), {**shapes, "grads": shapes["grads"][0]}
    )
    (total, stats), row_grads = jax.lax.scan(body, (zeros, state["stats"]), jnp.arange(micro))
    # [n, B/n, …] back to the batch's own row order
    row_grads = jax.tree.map(lambda g: jnp.swapaxes(g, 0, 1).reshape(-1, *g.shape[2:]), row_grads)
    return {**total, "grads": (total["grads"], row_grads), "stats": stats}


def _interleave(x: jax.Array, micro: int) -> jax.Array:
    """[B, …] as [B/n, n, …]: splitting the row axis this way moves no row to another device."""
    return x.reshape(x.shape[0] // micro, micro, *x.shape[1:])


def _loss_parts(loss: Any) -> tuple[jax.Array, jax.Array, Metrics]:
    scalars: Mapping[str, jax.Array] = {}
    if isinstance(loss, tuple):
        loss, scalars = loss
    if isinstance(loss, Weighted):
        return loss.total, loss.weight, dict(scalars)
    return loss, jnp.ones((), loss.dtype), dict(scalars)


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
    assembly: states.Assembly,
) -> Callable[[State, Any, jax.Array, jax.Array], Any]:
    """`(view, batch, mask [B], key) -> sums or rows`, as the benchmark's metric takes them."""
    benchmark = assembly.benchmark

    def predict(view: State, batch: Any, mask: jax.Array, key: jax.Array) -> Any:
        if view["tables"]:
            ids = benchmark.lookups(batch)
            batch = {**batch, "rows": look_up(assembly, view["tables"], ids)}
        outputs = benchmark.predict(assembly.eval_model(view), batch, key)
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


def jit_predict_step(assembly: states.Assembly) -> Any:
    """The jitted predict step: sums come back replicated, rows stay where they are."""
    rows = assembly.benchmark.metric.rows
    return jax.jit(
        make_predict_step(assembly),
        out_shardings=meshes.batch_sharding(assembly.mesh)
        if rows
        else meshes.replicated(assembly.mesh),
    )


def abstract_batch(example: Mapping[str, Any], batch_size: int, sharding: Any) -> dict[str, Any]:
    """The shapes of a global batch of this example, rows in front."""
    return {
        name: jax.ShapeDtypeStruct((batch_size, *leaf.shape), leaf.dtype, sharding=sharding)
        for name, leaf in example.items()
    }
