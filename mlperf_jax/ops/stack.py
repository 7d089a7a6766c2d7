"""Identical layers as one: stacked parameters, one `lax.scan` over them.

A stack compiles its layer once, whatever the depth, and its leaves carry one leading layer axis
under the path component `layers`. This file and core/state.py alone take modules apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from mlperf_jax.errors import UserError

_POLICIES = {
    "full": None,  # keep nothing but each layer's input
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
Remat = str | Callable[..., Any] | None


class Stack(nnx.Module):
    """n layers of equal structure, applied one after the other.

    `layer(x, *args, *each_l, key=key_l)` is called for layer 0 ... n - 1 and must return the carry x
    with the shapes and dtypes it came with (x may be any pytree, say activations and a running
    auxiliary loss). Batch statistics that a layer updates are written back to the stack; it may
    write no other variable. Parameters go into the scan and never come out of it: returned from the
    body they would be kept twice.

    >>> make = lambda rngs: nnx.Linear(4, 4, rngs=rngs)
    >>> stack = Stack(make, 3, rngs=nnx.Rngs(0))
    >>> stack.layers.kernel.shape, stack(jnp.ones([2, 4])).shape
    ((3, 4, 4), (2, 4))
    """

    def __init__(
        self,
        make_layer: Callable[[nnx.Rngs], nnx.Module],
        n: int,
        *,
        remat: Remat = None,
        rngs: nnx.Rngs,
    ):
        """Makes the layers, layer l from the l-th of the keys that `rngs.split(n)` gives.

        Args:
          make_layer: one layer from its own rngs. It is traced once, so all layers share what is
            not an array.
          n: number of layers, at least 1.
          remat: what the forward pass keeps for the backward pass: None everything, "full" only each
            layer's input, "dots" also all matmul results, "dots_no_batch" only those without batch
            axes (dense layers yes, attention scores no); or a `jax.checkpoint` policy.
          rngs: keys.
        """
        if n < 1:
            raise UserError(f"stack: {n} layers; give at least 1")
        remat_policy(remat)
        self.layers = stacked(make_layer, n, rngs=rngs)
        self.n = n
        self.remat = remat

    def __call__(
        self, x: Any, *args: Any, each: tuple[Any, ...] = (), key: jax.Array | None = None
    ) -> Any:
        """Applies all layers.

        Args:
          x: the carry, any pytree of arrays.
          *args: given to every layer as they are.
          each: further arguments with a leading layer axis; layer l gets row l, after `args`.
          key: if given, layer l is called with `key=fold_in(key, l)`.

        Returns:
          The last layer's result.

        Raises:
          TypeError: if a layer changes the carry's structure, shapes or dtypes, or writes a
            variable that is no batch statistic.
        """
        graphdef, stats, rest = nnx.split(self.layers, nnx.BatchStat, ...)

        def body(carry, row):
            layer_index, layer_stats, layer_rest, layer_each = row
            before = _leaves(layer_rest)
            layer = nnx.merge(graphdef, layer_stats, layer_rest)
            keyed = {} if key is None else {"key": jax.random.fold_in(key, layer_index)}
            out = layer(carry, *args, *layer_each, **keyed)
            _check_carry(type(layer).__name__, carry, out)
            return out, _written_stats(layer, before)

        if self.remat is not None:
            # the loop already keeps XLA from merging the recomputation with the first pass
            body = jax.checkpoint(body, prevent_cse=False, policy=remat_policy(self.remat))
        x, stats = lax.scan(body, x, (jnp.arange(self.n), stats, rest, each))
        nnx.update(self.layers, stats)
        return x


def remat_policy(remat: Remat) -> Callable[..., Any] | None:
    """The `jax.checkpoint` policy of a name that `Stack` takes.

    >>> remat_policy("full") is None
    True
    """
    if remat is None or callable(remat):
        return remat
    if remat not in _POLICIES:
        raise UserError(
            f"remat: unknown policy {remat!r}; choose None or one of {', '.join(_POLICIES)}"
        )
    return _POLICIES[remat]


def stacked(make_layer: Callable[[nnx.Rngs], nnx.Module], n: int, *, rngs: nnx.Rngs) -> Any:
    """n modules of equal structure as one whose arrays have a leading axis, to be kept as an attribute `layers`.

    Arguments as of `Stack`, which applies them one after the other; parts that lie beside each other, such as the
    relations of a graph, take their arrays apart themselves.
    """
    layers = nnx.vmap(make_layer)(rngs.split(n))
    if jax.tree.leaves(nnx.state(layers, nnx.RngState)):
        raise TypeError(
            f"stack: {type(layers).__name__} holds random state, which would repeat itself at every "
            "step; make its parts without `rngs` and give the stack a key when it is called"
        )
    return layers


def _check_carry(name: str, before: Any, after: Any):
    """Raises a TypeError in our words where lax.scan would speak of carry avals."""
    trees = jax.tree.structure(before), jax.tree.structure(after)
    if trees[0] != trees[1]:
        raise TypeError(f"stack: {name} was given {trees[0]} and returned {trees[1]}")
    for given, returned in zip(jax.tree.leaves(before), jax.tree.leaves(after)):
        kinds = [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in (given, returned)]
        if kinds[0] != kinds[1]:
            texts = [f"{dtype}{list(shape)}" for shape, dtype in kinds]
            raise TypeError(
                f"stack: {name} was given {texts[0]} and returned {texts[1]}; each layer must keep "
                "shape and dtype (set `dtype` on every part of it, norms too)"
            )


def _written_stats(layer: nnx.Module, before: dict) -> nnx.State:
    """The batch statistics after a call; raises if the layer wrote anything else."""
    _, stats, rest = nnx.split(layer, nnx.BatchStat, ...)
    changed = [path for path, leaf in _leaves(rest).items() if leaf is not before.get(path)]
    if changed:
        raise TypeError(
            f"stack: {type(layer).__name__} wrote {jax.tree_util.keystr(changed[0])}, which would be "
            "lost; a stacked layer may write only nnx.BatchStat variables"
        )
    return stats


def _leaves(tree: Any) -> dict:
    return dict(jax.tree_util.tree_leaves_with_path(tree))
