"""Writes tests/benchmarks/data/stable_diffusion_reference.npz: thirty steps of a small Stable Diffusion in torch.

Run by hand, with torch, diffusers and transformers installed, from the root of the repository:

    PYTHONPATH=. python scripts/make_stable_diffusion_reference.py

The UNet is diffusers', the text tower transformers', the optimizer torch's, all in float64; loss and schedule are
written here. Weights, batches and draws follow from names, hence the file holds results only: the loss of each step, of
the first gradients and of the last weights the norm and a projection. The tests import this file for the rest.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from scripts import make_clip_reference as clip, make_diffusion_reference as diffusion
from scripts.make_bert_reference import drawn, summary

OUTPUT = Path(__file__).parents[1] / "tests/benchmarks/data/stable_diffusion_reference.npz"

STEPS, ROWS, SIDE = 30, 4, 4
UNET = {**diffusion.UNET, "multipliers": (1,), "res_blocks": 1, "context_width": 32}
GROUPS = 16  # of residual blocks; transformers have 32
TEXT = {"layers": 3, "width": 32, "heads": 2, "hidden": 128, "vocab": 60, "tokens": 11}
RATE, WARMUP, FIRST = 3e-3, 8, 1e-6
BETAS, EPSILON, DECAY = (0.9, 0.999), 1e-8, 0.01


def batch(step: int) -> dict[str, np.ndarray]:
    """Of a step, from 0: moments, tokens, and what is drawn; channels last."""
    latent = (ROWS, SIDE, SIDE, 4)
    moments = drawn(f"moments {step}", (*latent[:3], 8))
    moments[..., 4:] = 12 * moments[..., 4:] - 8  # some beyond where they are clamped
    moments[0, 0, 0, 4:] = 33, -60, 25, -31
    draw = np.random.RandomState(step)
    return {
        "moments": moments,
        "tokens": clip.captions(TEXT)[draw.permutation(ROWS)].astype(np.int32),
        "latent_noise": drawn(f"latent noise {step}", latent) / 1e3,
        "noise": drawn(f"noise {step}", latent),
        "time": draw.randint(0, 1000, ROWS).astype(np.int32),
    }


def text_tower() -> Any:
    """CLIP's text model in torch, with `weight`s by name."""
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=TEXT["vocab"],
        hidden_size=TEXT["width"],
        intermediate_size=TEXT["hidden"],
        num_hidden_layers=TEXT["layers"],
        num_attention_heads=TEXT["heads"],
        max_position_embeddings=TEXT["tokens"],
        hidden_act="gelu",
        attn_implementation="sdpa",
    )
    return clip.filled(transformers.CLIPTextModel(config))


def conditioning(tower: Any, tokens: Any) -> Any:
    """What the last layer but one gives, and the final norm."""
    found = tower(tokens.long(), output_hidden_states=True).hidden_states[-2]
    return getattr(tower, "text_model", tower).final_layer_norm(found)


def main() -> None:
    import torch

    torch.set_num_threads(1)
    unet, tower = diffusion.build_unet(GROUPS, UNET), text_tower()
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    share = torch.from_numpy(np.cumprod(1 - betas))
    optimizer = torch.optim.AdamW(
        unet.parameters(), RATE, betas=BETAS, eps=EPSILON, weight_decay=DECAY
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: FIRST + (1 - FIRST) * min(n / WARMUP, 1)
    )
    losses, first = [], {}
    for step in range(STEPS):
        b = {name: torch.from_numpy(x) for name, x in batch(step).items()}
        planes = {
            n: b[n].double().permute(0, 3, 1, 2) for n in ("moments", "latent_noise", "noise")
        }
        mean, log_variance = planes["moments"].chunk(2, 1)
        deviation = (log_variance.clamp(-30, 20) / 2).exp()
        x = 0.18215 * (mean + deviation * planes["latent_noise"])
        kept = share[b["time"].long()][:, None, None, None]
        noise = planes["noise"]
        noisy = kept.sqrt() * x + (1 - kept).sqrt() * noise
        target = kept.sqrt() * noise - (1 - kept).sqrt() * x
        with torch.no_grad():
            context = conditioning(tower, b["tokens"])
        v = unet(noisy, b["time"], encoder_hidden_states=context).sample
        loss = ((v - target) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        if not step:
            first = {n: p.grad.numpy().copy() for n, p in unet.named_parameters()}
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    last = {n: p.detach().numpy() for n, p in unet.named_parameters()}
    text = {
        "unet": {n: list(x.shape) for n, x in last.items()},
        "text": {n: list(p.shape) for n, p in tower.named_parameters()},
        "first gradients": summary(first),
        "last weights": summary(last),
    }
    OUTPUT.parent.mkdir(exist_ok=True)
    told = np.frombuffer(json.dumps(text).encode(), np.uint8)
    np.savez_compressed(OUTPUT, losses=np.array(losses), told=told)
    print(f"{OUTPUT.name}: {OUTPUT.stat().st_size:,} bytes\n{np.round(losses, 4)}")


if __name__ == "__main__":
    main()
