"""Writes tests/models/data/diffusion_reference.npz: what `diffusers` computes with small networks in float64.

Run by hand, with torch and diffusers installed, from the root of the repository:

    PYTHONPATH=. python scripts/make_diffusion_reference.py

Weights and inputs follow from names and seeds, hence the file holds results only: outputs, of every gradient its
norm and a projection, and the names and shapes of the full networks' arrays. The tests import this file for the
rest; torch and diffusers are imported where they are used.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from scripts.make_bert_reference import drawn, summary

OUTPUT = Path(__file__).parents[1] / "tests/models/data/diffusion_reference.npz"

UNET = {"width": 32, "multipliers": (1, 2), "res_blocks": 2, "attention_levels": 1, "head_width": 16,
        "context_width": 24}  # fmt: skip
UNET_INPUTS = {"latents": (2, 4, 4, 6), "context": (2, 7, 24)}
TIMESTEPS = (981, 1)
AUTOENCODER = {"width": 32, "multipliers": (1, 2), "res_blocks": 2, "groups": 16}
AUTOENCODER_INPUTS = {"images": (2, 3, 8, 12), "decoded latents": (2, 4, 4, 6)}
# single parts, as wide as in the benchmark: channels first, and few pixels
RES_BLOCK = {"x": (2, 640, 2, 3), "time": (2, 1280)}
TRANSFORMER = {"tokens": (2, 320, 2, 3), "captions": (2, 77, 1024)}


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 array that goes by a name of diffusers."""
    noise = drawn(name, shape)
    if len(shape) > 1:
        return noise * np.float32(1.2 / np.sqrt(np.prod(shape[1:])))
    return 1 + noise / 10 if name.endswith("weight") else noise / 10


# -- diffusers -------------------------------------------------------------------------------------


def unet_config(sizes: dict[str, Any], groups: int) -> dict[str, Any]:
    """The arguments of UNet2DConditionModel."""
    widths = [sizes["width"] * multiplier for multiplier in sizes["multipliers"]]
    attends = [level < sizes["attention_levels"] for level in range(len(widths))]
    return {
        "block_out_channels": widths,
        "layers_per_block": sizes["res_blocks"],
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]],
        "attention_head_dim": [width // sizes["head_width"] for width in widths],
        "cross_attention_dim": sizes["context_width"],
        "use_linear_projection": True,
        "norm_num_groups": groups,
    }


def autoencoder_config(sizes: dict[str, Any]) -> dict[str, Any]:
    """The arguments of AutoencoderKL."""
    widths = [sizes["width"] * multiplier for multiplier in sizes["multipliers"]]
    return {
        "block_out_channels": widths,
        "layers_per_block": sizes["res_blocks"],
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "norm_num_groups": sizes["groups"],
    }


def filled(module: Any, start: str = "") -> Any:
    """A module of torch in float64, holding `weight`s."""
    import torch

    named = {n: weight(start + n, tuple(p.shape)) for n, p in module.named_parameters()}
    module.load_state_dict({n: torch.from_numpy(x) for n, x in named.items()})
    return module.double().train()


def exact_sinusoids(timesteps: Any, width: int) -> Any:
    """The embedding of times in float64, where diffusers has it in float32."""
    import torch

    half = width // 2
    frequency = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = timesteps.double()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def build_unet(groups: int, sizes: dict[str, Any] = UNET) -> Any:
    """A small UNet, whose transformers have 32 groups."""
    import diffusers
    import torch

    class Sinusoids(torch.nn.Module):
        def forward(self, timesteps: Any) -> Any:
            return exact_sinusoids(timesteps, sizes["width"])

    model = filled(diffusers.UNet2DConditionModel(**unet_config(sizes, 32)))
    model.time_proj = Sinusoids()
    for name, norm in model.named_modules():
        if isinstance(norm, torch.nn.GroupNorm) and ".attentions." not in name:
            assert norm.eps == 1e-5
            norm.num_groups = groups
    return model


# -- results ---------------------------------------------------------------------------------------


def results(name: str, module: Any, arguments: list[Any], outputs: Any) -> dict[str, Any]:
    """Outputs, and the gradients of their sum weighted by numbers that go by the name."""
    import torch

    outputs.backward(torch.from_numpy(drawn(f"slope {name}", tuple(outputs.shape))).double())
    gradients = {n: p.grad.numpy() for n, p in module.named_parameters()}
    inputs = {f"input {i}": x.grad.numpy() for i, x in enumerate(arguments)}
    shapes = {n: list(p.shape) for n, p in module.named_parameters()}
    module.zero_grad()
    text = json.dumps({"shapes": shapes, "gradients": summary({**gradients, **inputs})})
    return {
        name: outputs.detach().numpy(),
        f"{name} gradients": np.frombuffer(text.encode(), np.uint8),
    }


def full_size() -> np.ndarray:
    """Names and shapes of all arrays of the benchmark's UNet and autoencoder."""
    import diffusers
    import torch

    unet = {"width": 320, "multipliers": (1, 2, 4, 4), "res_blocks": 2, "attention_levels": 3, "head_width": 64,
            "context_width": 1024}  # fmt: skip
    autoencoder = {"width": 128, "multipliers": (1, 2, 4, 4), "res_blocks": 2, "groups": 32}
    with torch.device("meta"):
        found = {
            "unet": diffusers.UNet2DConditionModel(**unet_config(unet, 32)),
            "vae": diffusers.AutoencoderKL(**autoencoder_config(autoencoder)),
        }
    shapes = {
        name: {n: list(p.shape) for n, p in m.named_parameters()} for name, m in found.items()
    }
    return np.frombuffer(json.dumps(shapes).encode(), np.uint8)


def main() -> None:
    import torch
    from diffusers import AutoencoderKL
    from diffusers.models.embeddings import get_timestep_embedding
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    torch.set_num_threads(1)

    def inputs(shapes: dict[str, tuple[int, ...]]) -> list[Any]:
        arrays = (torch.from_numpy(drawn(name, shape)) for name, shape in shapes.items())
        return [x.double().requires_grad_() for x in arrays]

    saved: dict[str, Any] = {"full size": full_size()}
    times = torch.tensor(TIMESTEPS)
    saved["sinusoids"] = get_timestep_embedding(
        times, 320, flip_sin_to_cos=True, downscale_freq_shift=0
    ).numpy()
    for groups in (16, 32):
        unet = build_unet(groups)
        latents, context = inputs(UNET_INPUTS)
        out = unet(latents, times, encoder_hidden_states=context).sample
        saved |= results(f"unet {groups}", unet, [latents, context], out)

    vae = filled(AutoencoderKL(**autoencoder_config(AUTOENCODER)))
    images, decoded = inputs(AUTOENCODER_INPUTS)
    moments = vae._encode(images)
    saved["moments"] = moments.detach().numpy()
    pictures = vae.decode(decoded).sample
    both = torch.cat([moments.flatten(), pictures.flatten()])
    found = results("autoencoder", vae, [images, decoded], both)
    saved |= {
        "pictures": pictures.detach().numpy(),
        "autoencoder gradients": found["autoencoder gradients"],
    }

    x, time = inputs(RES_BLOCK)
    made = ResnetBlock2D(in_channels=640, out_channels=320, temb_channels=1280, groups=16, eps=1e-5)
    block = filled(made, "res block ")
    saved |= results("res block", block, [x, time], block(x, time))

    x, captions = inputs(TRANSFORMER)
    made = Transformer2DModel(
        5, 64, in_channels=320, cross_attention_dim=1024, use_linear_projection=True
    )
    block = filled(made, "transformer ")
    out = block(x, encoder_hidden_states=captions).sample
    saved |= results("transformer", block, [x, captions], out)

    np.savez_compressed(OUTPUT, **saved)
    print(f"{OUTPUT.name}: {OUTPUT.stat().st_size:,} bytes")
    for name, value in saved.items():
        print(name, value.shape, value.dtype, "" if value.dtype == np.uint8 else value.std())


if __name__ == "__main__":
    main()
