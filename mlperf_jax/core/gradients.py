"""The gradient of a loss over the global batch, whole or in micro-batches.

A loss is a sum of means, L = sum over i of T_i / W_i: `Weighted` totals and weights, each added over all
micro-batches before it is divided. How the gradients of the T_i are added depends on when the W_i are known:

* One mean: its gradient is added, and divided by W at the end.
* Several in one piece: their weights are known after the forward pass, so 1 / W_i goes into the one
  backward pass.
* Several in micro-batches, whose weights follow from the batch alone (labels, masks): the weights of all
  micro-batches are added first. The compiler drops the rest of the model from that pass, so it costs
  nothing, and again there is one backward pass each and one gradient.
* Several whose weights depend on the model (sampled proposals), or on which micro-batches turn out
  finite: a backward pass and a gradient in memory for each mean, divided at the end.

Shape legend: B rows of the global batch · n micro-batches.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jaxprs

from mlperf_jax.core import optimizer_trace, state as states
from mlperf_jax.core.benchmark import Batch, Loss, Weighted
from mlperf_jax.errors import UserError

State = states.State
Scalars = dict[str, jax.Array]
Rows = Mapping[str, jax.Array]  # looked up in tables
Inputs = tuple[Rows, Batch, jax.Array]  # rows, batch and key of a micro-batch
Parts = dict[str, Any]  # totals, weights, gradients … by name
_LOSS = "loss"  # the name of a mean that has none, and of the sum


def gradients(
    assembly: states.Assembly, state: State, batch: Batch, rows: Rows, key: jax.Array
) -> Parts:
    """The mean loss of a batch, arrays [B, …] and the rows that it looked up, and its gradients.

    Returns:
        "grads" of params and of rows; the "loss"; "scalars", its means by name among them; "stats" as they
        are afterwards; "used", how many micro-batches count: all, unless bad ones are skipped.
    """
    micro = assembly.benchmark.gradient_accumulation_steps
    if micro == 1:
        key = jax.random.fold_in(key, 0)
        total = _one(assembly, state, state["stats"], (rows, batch, key), at_once=True)
    else:
        total = _accumulate(assembly, state, batch, rows, key, micro)
    weights = jax.tree.map(_divisor, total["weights"])
    means = {name: value / weights[name] for name, value in total["totals"].items()}
    # what has no name is the gradient of the whole loss, and divided already
    parts = [_divided(g, weights[n]) if n else g for n, g in total["grads"].items()]
    scalars = jax.tree.map(lambda s: s / jnp.maximum(total["used"], 1), total["scalars"])
    return {
        "grads": functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), parts),
        "loss": sum(means.values()),
        "scalars": {**means, **scalars},
        "stats": total["stats"],
        "used": total["used"],
    }


def loss_at(
    assembly: states.Assembly, state: State, batch: Batch, rows: Rows, key: jax.Array
) -> Callable[..., jax.Array]:
    """The mean loss of the batch as a function of the parameters: what line searches and the like ask for.

    At the state's own parameters it is the loss of `gradients`. All micro-batches and their keys are the
    same, rows of tables stay as they are, and statistics are dropped. A backward pass recomputes one
    micro-batch after the other.
    """
    micro = assembly.benchmark.gradient_accumulation_steps

    def parts(params: State, inputs: Inputs) -> tuple[Scalars, Scalars]:
        rows, part, key = inputs
        trained = (params, rows)
        totals, (weights, *_) = _objective(
            assembly, state["frozen"], trained, state["stats"], part, key
        )
        return totals, weights

    def loss(params: State, *_: Any) -> jax.Array:
        optimizer_trace.check_whole(params, state["params"])
        if micro == 1:
            totals, weights = parts(params, (rows, batch, jax.random.fold_in(key, 0)))
        else:
            pieces = jax.tree.map(lambda x: jnp.moveaxis(interleave(x, micro), 1, 0), (rows, batch))
            keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(micro))
            body = jax.checkpoint(lambda each: parts(params, each))
            found = jax.lax.map(body, (*pieces, keys))
            totals, weights = jax.tree.map(lambda leaf: leaf.sum(0), found)
        return sum(totals[name] / _divisor(weights[name]) for name in totals)  # pyright: ignore[reportReturnType]

    return loss


def _divided(grads: State, weight: jax.Array) -> State:
    return jax.tree.map(lambda g: g / weight.astype(g.dtype), grads)


def _divisor(weight: jax.Array) -> jax.Array:
    """The weight; without any (no valid label, no micro-batch left) 1, as 0 / 1 is no NaN."""
    return jnp.where(weight == 0, 1, weight)


def _objective(
    assembly: states.Assembly,
    frozen: State,
    trained: tuple[State, Rows],
    stats: State,
    part: Mapping[str, Any],
    key: jax.Array,
) -> tuple[Scalars, tuple[Scalars, Scalars, State]]:
    """Totals by mean; their weights, other scalars, and statistics."""
    params, rows = trained
    model = states.merge(assembly.graphdef, params, frozen, stats)
    found = {**part.get("rows", {}), **rows}  # those of untrained tables came with the batch
    loss = assembly.benchmark.loss(model, {**part, "rows": found} if found else part, key)
    means, scalars = loss_parts(loss)
    totals, weights = ({n: getattr(m, w) for n, m in means.items()} for w in ("total", "weight"))
    return totals, (weights, scalars, states.stats_of(model))


def loss_parts(
    loss: Loss | tuple[Loss, Mapping[str, jax.Array]],
) -> tuple[dict[str, Weighted], Scalars]:
    """The means and the scalars of what `Benchmark.loss` gave."""
    loss, scalars = loss if isinstance(loss, tuple) else (loss, {})
    means = loss if isinstance(loss, Mapping) else {_LOSS: loss}
    taken = {*scalars, "bad_since", *([_LOSS] if isinstance(loss, Mapping) else [])} & means.keys()
    if taken:
        raise UserError(f"a mean of the loss is called {taken.pop()!r}, which is taken: rename it")
    alone = lambda mean: Weighted(mean, jnp.ones((), mean.dtype))  # noqa: E731
    means = {n: m if isinstance(m, Weighted) else alone(m) for n, m in means.items()}
    sizes = [(n, x) for n, m in means.items() for x in (m.total, m.weight)]
    for name, given in [*sizes, *scalars.items()]:
        if shape := jnp.shape(given):
            raise UserError(f"loss gives {name!r} as {list(shape)}: it must be one number, a mean")
    return means, dict(scalars)


def _one(
    assembly: states.Assembly,
    state: State,
    stats: State,
    inputs: Inputs,
    *,
    at_once: bool = False,
    weights: Scalars | None = None,
) -> Parts:
    """Totals, weights and gradients of one micro-batch.

    "grads" are those of the totals by mean; or those of the whole loss, by the name "", where its means are
    `at_once` those of the batch, or their `weights` over the batch are given.
    """
    rows, part, key = inputs
    totals, pull, (own, scalars, new) = jax.vjp(
        lambda trained: _objective(assembly, state["frozen"], trained, stats, part, key),
        (state["params"], rows),
        has_aux=True,
    )
    if at_once and len(totals) > 1:
        weights = own
    if weights is not None:
        scales = {"": {n: 1 / _divisor(weights[n]).astype(t.dtype) for n, t in totals.items()}}
    else:
        scales = {n: {m: jnp.full((), m == n, t.dtype) for m, t in totals.items()} for n in totals}
    grads = {name: pull(scale)[0] for name, scale in scales.items()}
    found = dict(totals=totals, weights=own, grads=grads, scalars=scalars)
    finite = jnp.isfinite(sum(totals.values()))
    used = jnp.ones((), jax.tree.leaves(totals)[0].dtype)
    if assembly.benchmark.nonfinite == "skip":
        used = finite.astype(used.dtype)
        found = jax.tree.map(lambda leaf: jnp.where(finite, leaf, 0), found)
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, stats)
    return {**found, "stats": new, "used": used}


def _accumulate(
    assembly: states.Assembly, state: State, batch: Batch, rows: Rows, key: jax.Array, micro: int
) -> Parts:
    parts = jax.tree.map(lambda x: interleave(x, micro), (rows, batch))

    def inputs(i: jax.Array | int) -> Inputs:
        return *jax.tree.map(lambda x: x[:, i], parts), jax.random.fold_in(key, i)

    one = functools.partial(_one, assembly, state)
    shapes = jax.eval_shape(one, state["stats"], inputs(0))
    if len(shapes["totals"]) > 1 and assembly.benchmark.nonfinite != "skip":
        one = functools.partial(one, weights=_weights_of_data(assembly, state, inputs, micro))
        shapes = jax.eval_shape(one, state["stats"], inputs(0))

    def body(
        carry: tuple[Parts, State], i: jax.Array
    ) -> tuple[tuple[Parts, State], dict[str, Rows]]:
        sums, stats = carry
        part, row_grads = _apart(one(stats, inputs(i)))
        stats = part.pop("stats")
        return (jax.tree.map(jnp.add, sums, part), stats), row_grads

    shapes, _ = _apart(shapes)
    shapes.pop("stats")
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (total, stats), row_grads = jax.lax.scan(body, (zeros, state["stats"]), jnp.arange(micro))
    # [n, B/n, …] back to the batch's own row order
    row_grads = jax.tree.map(lambda g: jnp.swapaxes(g, 0, 1).reshape(-1, *g.shape[2:]), row_grads)
    grads = {name: (own, row_grads[name]) for name, own in total["grads"].items()}
    return {**total, "grads": grads, "stats": stats}


def _apart(part: Parts) -> tuple[Parts, dict[str, Rows]]:
    """A micro-batch's sums, and the gradients of its rows, which are not added to others'."""
    params, rows = ({n: pair[k] for n, pair in part["grads"].items()} for k in (0, 1))
    return {**part, "grads": params}, rows


def interleave(x: jax.Array, micro: int) -> jax.Array:
    """[B, …] as [B/n, n, …]: splitting the row axis this way moves no row to another device."""
    return x.reshape(x.shape[0] // micro, micro, *x.shape[1:])


# -- weights known beforehand ----------------------------------------------------------------------


def _weights_of_data(
    assembly: states.Assembly, state: State, inputs: Callable[[jax.Array | int], Inputs], micro: int
) -> Scalars | None:
    """Weights of the whole batch by mean; None if one depends on more than batch and key."""

    def weights(model: tuple[Any, ...], part: Batch, key: jax.Array) -> Scalars:
        frozen, params, rows, stats = model
        return _objective(assembly, frozen, (params, rows), stats, part, key)[1][0]

    def of_micro_batch(i: jax.Array | int) -> tuple[tuple[State | Rows, ...], Batch, jax.Array]:
        rows, part, key = inputs(i)
        return (state["frozen"], state["params"], rows, state["stats"]), part, key

    first = of_micro_batch(0)
    jaxpr, shapes = jax.make_jaxpr(weights, return_shape=True)(*first)
    if _reads(jaxpr.jaxpr, len(jax.tree.leaves(first[0]))):
        return None
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def add(sums: Scalars, i: jax.Array) -> tuple[Scalars, None]:
        return jax.tree.map(jnp.add, sums, weights(*of_micro_batch(i))), None

    return jax.lax.scan(add, zeros, jnp.arange(micro))[0]


def _reads(jaxpr: jaxprs.Jaxpr, count: int) -> bool:
    """Whether results depend on the first `count` arguments; each equation's on all of its own."""
    needed = {var for var in jaxpr.outvars if not isinstance(var, jaxprs.Literal)}
    for equation in reversed(jaxpr.eqns):
        if not needed.isdisjoint(equation.outvars):
            needed |= {var for var in equation.invars if not isinstance(var, jaxprs.Literal)}
    return not needed.isdisjoint(jaxpr.invars[:count])
