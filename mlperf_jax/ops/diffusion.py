"""Diffusion in discrete steps: the noise schedule, and how a sample, its noise and v depend on each other.

At time t a sample x is seen as x_t = a x + s e: e is the noise, the rates are a^2 = alpha-bar of t and s^2 = 1 - a^2.
v is a e - s x: (x_t, v) is (x, e) turned by an angle, and turned back it gives x and e.
Reference: mlcommons/training, retired_benchmarks/stable_diffusion (the "scaled linear" schedule of Stable Diffusion).

T times · B batch · ... axes of a sample
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from mlperf_jax.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """Times 0 ... T - 1, the later the noisier; square roots of beta lie on a line.

    Attributes:
        times: T.
        first: beta of time 0.
        last: beta of time T - 1.

    >>> [round(float(Schedule().alpha_bars[t]), 5) for t in (0, 999)]
    [0.99915, 0.00466]
    """

    times: int = 1000
    first: float = 0.00085
    last: float = 0.012

    def __post_init__(self) -> None:
        if self.times < 1:
            raise UserError(f"a noise schedule has {self.times} times: give it at least 1")
        if not 0 < self.first <= self.last < 1:
            raise UserError(
                f"a noise schedule has betas from {self.first:g} to {self.last:g}: they must rise, within 0 and 1"
            )

    @functools.cached_property
    def betas(self) -> np.ndarray:
        """The share of the variance that each time replaces by noise, float64 [T]."""
        return np.linspace(np.sqrt(self.first), np.sqrt(self.last), self.times) ** 2

    @functools.cached_property
    def alpha_bars(self) -> np.ndarray:
        """The share of the variance that is still the sample's, float64 [T]."""
        return np.cumprod(1 - self.betas)

    def rates(
        self, time: jax.Array, like: jax.Array | jax.ShapeDtypeStruct
    ) -> tuple[jax.Array, jax.Array]:
        """What samples and noise are multiplied by at each row's time.

        The roots are taken in float64 and rounded once.

        Args:
          time: [B] int; another one than 0 ... T - 1 gives NaN.
          like: [B, ...], what the rates are for.

        Returns:
          (signal rate, noise rate), each [B, 1 ...] in at least float32.
        """
        kept = jnp.promote_types(like.dtype, jnp.float32)
        shape = (*time.shape, *(1,) * (len(like.shape) - time.ndim))

        def at_times(share: np.ndarray) -> jax.Array:
            table = jnp.asarray(np.sqrt(share), kept)
            found = table.at[time].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
            return found.reshape(shape)

        return at_times(self.alpha_bars), at_times(1 - self.alpha_bars)


STABLE_DIFFUSION = Schedule()


def add_noise(
    x: jax.Array, noise: jax.Array, time: jax.Array, schedule: Schedule = STABLE_DIFFUSION
) -> jax.Array:
    """Samples as they are seen at their times.

    Args:
      x: [B, ...].
      noise: [B, ...], standard normal.
      time: [B] int in 0 ... T - 1.
      schedule: of the noise.

    Returns:
      [B, ...] in at least float32.
    """
    signal_rate, noise_rate = schedule.rates(time, x)
    return signal_rate * x + noise_rate * noise


def v_target(
    x: jax.Array, noise: jax.Array, time: jax.Array, schedule: Schedule = STABLE_DIFFUSION
) -> jax.Array:
    """What a network of v has to predict; arguments and result as of `add_noise`."""
    signal_rate, noise_rate = schedule.rates(time, x)
    return signal_rate * noise - noise_rate * x


def parts_of(
    noisy: jax.Array, v: jax.Array, signal_rate: jax.Array, noise_rate: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The sample and the noise that what is seen and v tell of.

    Args:
      noisy: [...], x_t.
      v: [...].
      signal_rate, noise_rate: of x_t, as `Schedule.rates` gives them.

    Returns:
      (x, noise), each [...].

    >>> x, noise, a, s = jnp.array(3.0), jnp.array(5.0), jnp.array(0.6), jnp.array(0.8)
    >>> [round(float(part), 4) for part in parts_of(a * x + s * noise, a * noise - s * x, a, s)]
    [3.0, 5.0]
    """
    return signal_rate * noisy - noise_rate * v, signal_rate * v + noise_rate * noisy
