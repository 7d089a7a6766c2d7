"""DDIM without randomness: from noise to samples in a few of a diffusion's steps, guided by the context.

Reference: the evaluation of mlcommons/training, retired_benchmarks/stable_diffusion: 50 steps, guidance 8 on v.

B batch · H, W, C height, width and channels of a latent · N steps
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mlperf_jax.errors import UserError
from mlperf_jax.ops import diffusion

# (noisy [2 B, H, W, C], time int32 [2 B], context [2 B, ...]) -> v [2 B, H, W, C]
PredictV = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class Step(NamedTuple):
    """The time of one step and the rates of sample and noise before and after it; [N] each for all of them."""

    time: Any
    signal_rate: Any
    noise_rate: Any
    next_signal_rate: Any
    next_noise_rate: Any


def steps_of(count: int, schedule: diffusion.Schedule = diffusion.STABLE_DIFFUSION) -> Step:
    """The steps in their order, rates in float64.

    They are T / count apart (rounded down), end at time 1, and the last goes to time 0, not to a sample
    without noise.

    Args:
        count: N, below the schedule's T.
        schedule: of the noise.

    Raises:
        UserError: there is no room for so many.

    >>> steps_of(50).time[[0, 1, -2, -1]].tolist()
    [981, 961, 21, 1]
    """
    if not 1 <= count < schedule.times:
        raise UserError(
            f"a sampler of {count} steps does not fit a noise schedule of {schedule.times} times: "
            f"choose 1 to {schedule.times - 1} steps"
        )
    stride = schedule.times // count
    time = np.arange(count)[::-1] * stride + 1
    now, later = (schedule.alpha_bars[t] for t in (time, np.maximum(time - stride, 0)))
    return Step(time.astype(np.int32), *map(np.sqrt, (now, 1 - now, later, 1 - later)))


def one_step(noisy: jax.Array, v: jax.Array, step: Step) -> jax.Array:
    """[B, H, W, C] at the step's time -> the same at the next; nothing is clipped."""
    x, noise = diffusion.parts_of(noisy, v, step.signal_rate, step.noise_rate)
    return step.next_signal_rate * x + step.next_noise_rate * noise


def sample(
    predict_v: PredictV,
    noise: jax.Array,
    context: jax.Array,
    unconditional: jax.Array,
    *,
    steps: int = 50,
    guidance: float = 8.0,
    schedule: diffusion.Schedule = diffusion.STABLE_DIFFUSION,
) -> jax.Array:
    """Samples, one for each context, by one scan whose body calls the network once.

    Args:
        predict_v: the network. Its rows are 2 b for the context of sample b and 2 b + 1 for the
            unconditional one: a pair stays on the device that holds the sample.
        noise: [B, H, W, C], standard normal.
        context: [B, ...] of each sample, such as the text's embedding.
        unconditional: [B, ...], or one for all, [...] or [1, ...]: of the empty text.
        steps: N.
        guidance: v is that of no context plus so many times what the context changes; 1 is no guidance.
        schedule: of the noise that the network was trained with.

    Returns:
        [B, H, W, C] in at least float32.

    Raises:
        UserError: shapes that do not fit, or too many steps.

    >>> noise, text = jnp.ones([2, 4, 4, 3]), jnp.zeros([2, 7, 5])
    >>> sample(lambda x, time, context: x, noise, text, text[0], steps=4).shape
    (2, 4, 4, 3)
    """
    kept = jnp.promote_types(noise.dtype, jnp.float32)
    contexts = _paired(context, _unconditional(noise, context, unconditional))
    table = steps_of(steps, schedule)
    table = Step(table.time, *(jnp.asarray(rate, kept) for rate in table[1:]))

    def body(noisy: jax.Array, step: Step) -> tuple[jax.Array, None]:
        pairs = _paired(noisy, noisy)  # [2 B, H, W, C]
        v = predict_v(pairs, jnp.broadcast_to(step.time, pairs.shape[:1]), contexts)
        if v.shape != pairs.shape:
            raise UserError(
                f"the network gives {list(v.shape)} for samples {list(pairs.shape)}: it must predict v, "
                "of their shape"
            )
        v = v.astype(kept).reshape(-1, 2, *noisy.shape[1:])
        v = v[:, 1] + guidance * (v[:, 0] - v[:, 1])  # [B, H, W, C]
        return one_step(noisy, v, step), None

    return lax.scan(body, noise.astype(kept), table)[0]


def _paired(one: jax.Array, other: jax.Array) -> jax.Array:
    """[B, ...] twice -> [2 B, ...], row about: where rows are split over devices, none moves."""
    return jnp.stack([one, other], 1).reshape(-1, *one.shape[1:])


def _unconditional(noise: jax.Array, context: jax.Array, unconditional: jax.Array) -> jax.Array:
    """One for each sample, [B, ...]."""
    if len(context) != len(noise):
        raise UserError(
            f"{len(noise)} samples have {len(context)} contexts: give as many contexts as noise"
        )
    one = context.shape[1:]
    if unconditional.shape not in (one, (1, *one), context.shape):
        raise UserError(
            f"the unconditional context is {list(unconditional.shape)}, those of the samples {list(context.shape)}: "
            f"give {list(one)}"
        )
    return jnp.broadcast_to(unconditional, context.shape).astype(context.dtype)
