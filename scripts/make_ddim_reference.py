"""Writes tests/decoding/data/ddim_reference.npz: the latents of diffusers' DDIM after every step, in float64.

Run by hand, with torch and diffusers installed, from the root of the repository:

    python scripts/make_ddim_reference.py

Noise, contexts and what stands for the network follow from seeds; the tests import this file for them.
diffusers keeps its table of alpha-bars in float32; here it is the same one in float64.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

OUTPUT = Path(__file__).parents[1] / "tests/decoding/data/ddim_reference.npz"

COUNTS = (50, 30, 7)  # steps; 1000 / 30 and 1000 / 7 are no whole numbers
GUIDANCE = 8.0


def inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noise [2, 3, 4, 4], contexts [2, 5, 6] and the unconditional one [5, 6], in float64."""
    draw = np.random.RandomState(16)
    shapes = (2, 3, 4, 4), (2, 5, 6), (5, 6)
    noise, context, unconditional = (draw.standard_normal(shape) for shape in shapes)
    return noise, context, unconditional


def predicted_v(xp: ModuleType, noisy: Any, time: Any, context: Any) -> Any:
    """Stands for the network, written for NumPy and JAX (`xp`): it looks at rows, time and context alike."""
    draw = np.random.RandomState(17)
    mix, look = draw.standard_normal((4, 4)) / 2, draw.standard_normal((30, 4)) / 6
    seen = (
        context.reshape(len(context), -1) @ look
        + xp.cos(xp.asarray(time, noisy.dtype) / 300)[:, None]
    )
    return xp.tanh(noisy @ mix + seen[:, None, None]) + noisy[:, ::-1] / 3


def trajectory(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Times [N], and the latents before the first step and after each, [N + 1, 2, 3, 4, 4]."""
    import diffusers
    import torch

    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
        prediction_type="v_prediction",
    )
    roots = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)
    table = torch.cumprod(1 - roots**2, 0)
    assert (table - scheduler.alphas_cumprod).abs().max() < 1e-6
    scheduler.alphas_cumprod, scheduler.final_alpha_cumprod = table, table[0]
    scheduler.set_timesteps(count)
    noisy, context, unconditional = inputs()
    found = [noisy]
    for time in scheduler.timesteps:
        times = np.full(len(noisy), time.item())
        without = predicted_v(np, noisy, times, np.stack([unconditional] * len(noisy)))
        v = without + GUIDANCE * (predicted_v(np, noisy, times, context) - without)
        stepped = scheduler.step(torch.from_numpy(v), time, torch.from_numpy(noisy), eta=0.0)
        noisy = stepped.prev_sample.numpy()
        found.append(noisy)
    return scheduler.timesteps.numpy(), np.stack(found)


def main() -> None:
    saved = {}
    for count in COUNTS:
        saved[f"times_{count}"], latents = trajectory(count)
        saved[f"latents_{count}"] = latents if count == COUNTS[0] else latents[-1:]
    OUTPUT.parent.mkdir(exist_ok=True)
    np.savez_compressed(OUTPUT, **saved)
    print(f"{OUTPUT.name}: {OUTPUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
