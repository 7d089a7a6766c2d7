"""Weights that a run begins with in place of random ones, read straight onto the devices that hold them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import KeyPath

from mlperf_jax.core.benchmark import Benchmark
from mlperf_jax.core.terms import Reader, Shape, Start
from mlperf_jax.errors import UserError
from mlperf_jax.optimizers import tree as trees

State = dict[str, Any]
Source = np.ndarray | Reader


def begin_from(
    state: State,
    start: Start,
    optimizer: Callable[[State], optax.OptState] | None = None,
    *,
    replaced: bool = False,
) -> State:
    """The state with the given weights in place of random ones, each read straight onto its devices.

    What is replaced is deleted before it is read, so that no device needs room for both.

    Args:
        state: with random weights.
        start: what it begins from.
        optimizer: makes the optimizer's state from new weights, where that matters.
        replaced: whether the optimizer is another than the recipe's, whose count and moments the start has; it
            then begins with its own.

    Raises:
        UserError: for a path the state lacks or a shape that differs, naming it.
    """
    parts = ("params", "frozen", "stats", "tables")
    leaves = trees.flatten_paths({part: state[part] for part in parts})
    for path, source in start.weights.items():
        if path not in leaves:
            raise UserError(f"start checkpoint has {path!r}, which this model lacks")
        leaves[path] = read_leaf(path, leaves[path], source)
    state = {**state, **{part: {} for part in parts}, **trees.unflatten(leaves)}
    if any(path.startswith("params/") for path in start.weights):
        if "ema" in state:
            state["ema"] = jax.tree.map(jnp.copy, state["params"])
        if optimizer is not None:
            for leaf in jax.tree.leaves(state["opt"]):
                leaf.delete()
            state["opt"] = optimizer(state["params"])
    if start.optimizer_step and "updates" in state:
        state["updates"] = _filled(state["updates"], start.optimizer_step)
    if replaced:
        return state
    if start.optimizer_step:
        state["opt"] = set_optimizer_step(state["opt"], start.optimizer_step)
    if start.moments:
        state["opt"] = set_moments(state["opt"], start.moments)
    return state


def table_readers(benchmark: Benchmark, data_dir: str) -> Mapping[str, Reader]:
    """What reads the rows of those tables that are data, by table.

    Raises:
        UserError: they are missing; no row is read here.
    """
    tables = benchmark.tables().items()
    return {name: table.data(data_dir) for name, table in tables if table.data is not None}


def read_leaf(path: str, leaf: jax.Array | Shape, source: Source) -> jax.Array:
    """An array or what a reader gives, placed as `leaf` lies, each device's part read by itself."""
    shape = getattr(source, "shape", leaf.shape)
    if tuple(shape) != leaf.shape:
        raise UserError(
            f"start checkpoint has {path!r} of shape {tuple(shape)}, the model {leaf.shape}"
        )

    def part(index: Any) -> np.ndarray:
        values = source(index) if callable(source) else source[index]
        return np.asarray(values).astype(leaf.dtype, copy=False)

    if isinstance(leaf, jax.Array):  # its memory is for what is read
        leaf.delete()
    shape, sharding = leaf.shape, leaf.sharding
    if sharding.is_fully_replicated:
        return jax.make_array_from_callback(shape, sharding, part)
    # device after device, where JAX would have all parts of a host in its memory first
    parts = [
        jax.block_until_ready(jax.device_put(part(index), device))
        for device, index in sharding.addressable_devices_indices_map(shape).items()
    ]
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)


def set_moments(opt: optax.OptState, moments: Mapping[str, Mapping[str, Source]]) -> optax.OptState:
    """The optimizer's state with these arrays in place of its own, by name and parameter path."""

    def value(path: KeyPath, leaf: jax.Array) -> jax.Array:
        names = [jax.tree_util.keystr((key,), simple=True) for key in path]
        known = [at for at, name in enumerate(names) if name in moments]
        if not known:
            return leaf
        name, parameter = names[known[0]], "/".join(names[known[0] + 1 :])
        if parameter not in moments[name]:
            raise UserError(f"start checkpoint has no {name!r} of {parameter!r}")
        return read_leaf(f"{name} of {parameter}", leaf, moments[name][parameter])

    return jax.tree_util.tree_map_with_path(value, opt)


def set_optimizer_step(opt: optax.OptState, step: int) -> optax.OptState:
    """The optimizer's state with each of its counts set to `step`."""

    def count(path: KeyPath, leaf: jax.Array) -> jax.Array:
        # one number, or one per layer under `per_layer`; schedule-free optimizers count from 1
        first = {"count": 0, "step_count": 1}.get(jax.tree_util.keystr(path[-1:], simple=True))
        return leaf if first is None else _filled(leaf, first + step)

    return jax.tree_util.tree_map_with_path(count, opt)


def _filled(leaf: jax.Array, number: int) -> jax.Array:
    value = np.full(leaf.shape, number, leaf.dtype)
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda i: value[i])
