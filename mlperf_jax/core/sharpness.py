"""Gradients of a sharpness-aware step: where the loss is highest nearby (Foret et al. 2021, arXiv:2010.01412).

    g = gradient at w;  e = rho * g / |g|;  the step goes by the gradient at w + e

The norm is over all trained parameters together; rows of tables stay where they are, and get their gradients at w + e.
The loss and what it adds, and the running statistics, are those at w. `optax.contrib.sam` would go an optimizer step to
get there, which counts, decays and averages.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from mlperf_jax.core import gradients as plain, state as states
from mlperf_jax.core.benchmark import Batch

State = states.State


def gradients(
    assembly: states.Assembly, state: State, batch: Batch, rows: plain.Rows, key: jax.Array
) -> plain.Parts:
    """What `gradients.gradients` returns, with the gradients of a sharpness-aware step if the levers ask for them."""
    found = plain.gradients(assembly, state, batch, rows, key)
    rho = assembly.benchmark.levers.sam
    if rho is None:
        return found
    grads, _ = found["grads"]
    norm = optax.global_norm(grads)
    scale = jnp.where(norm > 0, rho / jnp.where(norm > 0, norm, 1), 0)
    there = jax.tree.map(lambda p, g: p + (scale * g).astype(p.dtype), state["params"], grads)
    away = plain.gradients(assembly, {**state, "params": there}, batch, rows, key)
    return {**found, "grads": away["grads"], "used": jnp.minimum(found["used"], away["used"])}
