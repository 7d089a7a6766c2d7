"""Times Stable Diffusion's train step, and that of the same UNet in diffusers on PyTorch.

    python scripts/bench_diffusion.py [--json FILE]                                # the full UNet in bfloat16, on a GPU
    JAX_PLATFORMS=cpu python scripts/bench_diffusion.py --size small --cores 1     # a small one, by processor time

Both take the same moments and embeddings of captions, made beforehand, and take turns in one process. Ours is the step that
`run` compiles. PyTorch's is `UNet2DConditionModel` with scaled_dot_product_attention, channels last, torch.compile, bfloat16
autocast and fused AdamW; its norms have 32 groups, as diffusers cannot have 16 of one kind and 32 of the other, which
is the same work. `--no-twin` leaves it out; so does a machine without torch.

The exit code is 1 when a GPU is slower than PyTorch. 140 images/s and H200 is the best rate in the logs of rounds.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Iterator
from typing import Any

# isort: split

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs room beside us

import numpy as np
import stepping
from make_diffusion_reference import unet_config

from mlperf_jax.benchmarks.stable_diffusion import StableDiffusion
from mlperf_jax.models.autoencoder import SCALE

PUBLISHED = 140
SMALL = {"side": 16, "width": 64, "multipliers": (1, 2), "attention_levels": 1, "text_width": 128}
SIZES = ("width", "multipliers", "res_blocks", "attention_levels", "head_width")


def benchmark(arguments: argparse.Namespace) -> StableDiffusion:
    """Of the size that is asked for, on embeddings made beforehand."""
    return StableDiffusion(
        **(SMALL if arguments.size == "small" else {}),
        text_embeddings=True,
        batch_size=arguments.batch,
        dtype=arguments.dtype,
        remat=arguments.remat,
    )


def drawn(given: StableDiffusion) -> dict[str, np.ndarray]:
    """A batch of random moments and embeddings."""
    rng, shapes = np.random.default_rng(0), given.example()
    batch = {
        name: rng.standard_normal((given.batch_size, *leaf.shape), np.float32)
        for name, leaf in shapes.items()
    }
    batch["moments"] = np.concatenate(
        [5 * batch["moments"][..., :4], batch["moments"][..., 4:] - 8], -1
    )
    return {name: x.astype(shapes[name].dtype) for name, x in batch.items()}


class Twin:
    """The same step in PyTorch; its weights and draws are random, as no loss is compared."""

    def __init__(
        self, given: StableDiffusion, batch: dict[str, np.ndarray], compiled: bool
    ) -> None:
        import diffusers
        import torch

        self.torch = torch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = getattr(torch, given.dtype)
        torch.set_float32_matmul_precision("high")
        sizes = {name: getattr(given, name) for name in SIZES} | {"context_width": given.text_width}
        model = diffusers.UNet2DConditionModel(**unet_config(sizes, 32))
        self.model = model.to(self.device, memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        self.loss = torch.compile(self._loss) if compiled else self._loss
        self.rows = len(batch["moments"])
        moments = np.ascontiguousarray(batch["moments"].transpose(0, 3, 1, 2))
        self.moments = torch.from_numpy(moments).to(self.device)
        self.context = torch.from_numpy(batch["embedding"]).to(self.device, self.dtype)
        betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        self.kept = torch.from_numpy(np.cumprod(1 - betas)).to(self.device)

    def _loss(self, latent_noise: Any, noise: Any, time: Any) -> Any:
        torch = self.torch
        mean, log_variance = self.moments.chunk(2, 1)
        x = SCALE * (mean + (log_variance.clamp(-30, 20) / 2).exp() * latent_noise)
        kept = self.kept[time][:, None, None, None]
        signal, rest = kept.sqrt().float(), (1 - kept).sqrt().float()
        with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
            noisy = signal * x + rest * noise
            v = self.model(noisy, time, encoder_hidden_states=self.context, return_dict=False)[0]
        return ((v.float() - (signal * noise - rest * x)) ** 2).mean()

    def step(self) -> None:
        shape = self.moments[:, :4].shape
        noise = (self.torch.randn(shape, device=self.device) for _ in range(2))
        time = self.torch.randint(0, 1000, shape[:1], device=self.device)
        self.loss(*noise, time).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def wait(self) -> None:
        if self.device == "cuda":
            self.torch.cuda.synchronize()


def sides_of(arguments: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    given = benchmark(arguments)
    batch = drawn(given)
    yield "ours", stepping.Ours(given, batch)
    if not arguments.no_twin and importlib.util.find_spec("torch"):
        yield "diffusers", Twin(given, batch, not arguments.eager)


def main() -> None:
    parser = stepping.parser(__doc__)
    parser.add_argument("--size", choices=("full", "small"), default="full")
    parser.add_argument(
        "--batch", type=int, help="images of a step; default 32, of the small size 8"
    )
    arguments = stepping.given(parser)
    small = arguments.size == "small"
    arguments.batch = arguments.batch or (8 if small else 32)
    sides = dict(sides_of(arguments))
    spent = stepping.timed(sides, arguments.rounds, arguments.steps)
    published = None if small else PUBLISHED
    found = stepping.report(benchmark(arguments), sides, spent, "images", published)
    stepping.end(arguments, found, spent, "diffusers")


if __name__ == "__main__":
    main()
