"""Stable Diffusion's UNet with AdamW, and the text tower that captions go through, which is not trained.

B images · S side of a latent · C channels · T tokens of a caption
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn import functional as F

from mlperf_jax.models.autoencoder import SCALE
from mlperf_jax.ops.diffusion import STABLE_DIFFUSION
from scripts.twins import training


class Residual(torch.nn.Module):
    def __init__(self, inputs: int, outputs: int, time: int, groups: int) -> None:
        super().__init__()
        self.norm1 = torch.nn.GroupNorm(groups, inputs, 1e-5)
        self.conv1 = torch.nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = torch.nn.Linear(time, outputs)
        self.norm2 = torch.nn.GroupNorm(groups, outputs, 1e-5)
        self.conv2 = torch.nn.Conv2d(outputs, outputs, 3, padding=1)
        same = inputs == outputs
        self.skip = torch.nn.Identity() if same else torch.nn.Conv2d(inputs, outputs, 1)

    def forward(self, x, time):
        y = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(time))[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(y)))


class Attention(torch.nn.Module):
    def __init__(self, width: int, context: int, head: int) -> None:
        super().__init__()
        self.head = head
        self.q = torch.nn.Linear(width, width, bias=False)
        self.k = torch.nn.Linear(context, width, bias=False)
        self.v = torch.nn.Linear(context, width, bias=False)
        self.out = torch.nn.Linear(width, width)

    def forward(self, x, context):
        made = self.q(x), self.k(context), self.v(context)
        heads = (y.unflatten(-1, (-1, self.head)).transpose(1, 2) for y in made)
        return self.out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class Transformer(torch.nn.Module):
    """Attention among pixels, then to the caption, then a gated layer."""

    def __init__(self, width: int, context: int, head: int, groups: int) -> None:
        super().__init__()
        self.norm = torch.nn.GroupNorm(groups, width, 1e-6)
        self.enter, self.leave = torch.nn.Linear(width, width), torch.nn.Linear(width, width)
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(width) for _ in range(3))
        self.own, self.other = Attention(width, width, head), Attention(width, context, head)
        self.wide, self.narrow = (
            torch.nn.Linear(width, 8 * width),
            torch.nn.Linear(4 * width, width),
        )

    def forward(self, x, context):
        side = x.shape[-1]
        y = self.enter(self.norm(x).flatten(2).transpose(1, 2))
        z = self.norms[0](y)
        y = y + self.own(z, z)
        y = y + self.other(self.norms[1](y), context)
        values, gate = self.wide(self.norms[2](y)).chunk(2, -1)
        y = y + self.narrow(values * F.gelu(gate))
        return x + self.leave(y).transpose(1, 2).unflatten(2, (-1, side))


class Step(torch.nn.Module):
    """A residual block, with a transformer behind it where the level attends."""

    def __init__(self, given: Any, inputs: int, outputs: int, attends: bool) -> None:
        super().__init__()
        self.residual = Residual(inputs, outputs, 4 * given.width, given.groups)
        sizes = outputs, given.text_width, given.head_width, given.transformer_groups
        self.transformer = Transformer(*sizes) if attends else None

    def forward(self, x, time, context):
        x = self.residual(x, time)
        return x if self.transformer is None else self.transformer(x, context)


class UNet(torch.nn.Module):
    def __init__(self, given: Any, channels: int) -> None:
        super().__init__()
        width, levels = given.width, len(given.multipliers)
        widths = [width * m for m in given.multipliers]
        attends = [level < given.attention_levels for level in range(levels)]
        self.first = width
        self.time = torch.nn.Sequential(
            torch.nn.Linear(width, 4 * width),
            torch.nn.SiLU(),
            torch.nn.Linear(4 * width, 4 * width),
        )
        conv = lambda a, b, stride=1: torch.nn.Conv2d(a, b, 3, stride, 1)  # noqa: E731
        self.enter = conv(channels, width)
        self.down, self.up, kept, now = torch.nn.ModuleList(), torch.nn.ModuleList(), [width], width
        for level, wide in enumerate(widths):
            for _ in range(given.res_blocks):
                self.down.append(Step(given, now, wide, attends[level]))
                kept.append(now := wide)
            if level < levels - 1:
                self.down.append(conv(now, now, 2))
                kept.append(now)
        self.middle = torch.nn.ModuleList(
            [Step(given, now, now, True), Residual(now, now, 4 * width, given.groups)]
        )
        for level in reversed(range(levels)):
            for _ in range(given.res_blocks + 1):
                self.up.append(Step(given, now + kept.pop(), widths[level], attends[level]))
                now = widths[level]
            if level:
                self.up.append(conv(now, now))
        self.norm, self.leave = torch.nn.GroupNorm(given.groups, now, 1e-5), conv(now, channels)

    def forward(self, x, time, context):
        half = self.first // 2
        scale = torch.arange(half, device=x.device, dtype=torch.float32) / half
        angle = time[:, None] * torch.exp(-np.log(10_000) * scale)
        time = self.time(torch.cat([angle.cos(), angle.sin()], 1))
        kept = [x := self.enter(x)]
        for part in self.down:
            x = part(x, time, context) if isinstance(part, Step) else part(x)
            kept.append(x)
        x = self.middle[1](self.middle[0](x, time, context), time)
        for part in self.up:
            if isinstance(part, Step):
                x = part(torch.cat([x, kept.pop()], 1), time, context)
            else:
                x = part(F.interpolate(x, scale_factor=2.0))
        return self.leave(F.silu(self.norm(x)))


class Model(training.Model):
    def __init__(self, given: Any) -> None:
        super().__init__()
        channels = given.example()["moments"].shape[-1] // 2
        self.unet = UNet(given, channels).to(memory_format=torch.channels_last)
        self.text, tower = None, given.text_tower()
        if not given.text_embeddings:
            config = transformers.CLIPTextConfig(
                vocab_size=tower.vocab,
                hidden_size=tower.width,
                intermediate_size=tower.hidden,
                num_hidden_layers=tower.layers - 1,  # what comes of the last one has no part
                num_attention_heads=tower.heads,
                max_position_embeddings=tower.tokens,
                hidden_act="gelu",
                attn_implementation="sdpa",
                bos_token_id=tower.vocab - 2,
                eos_token_id=tower.vocab - 1,
            )
            self.text = transformers.CLIPTextModel(config).requires_grad_(False)
        kept = torch.from_numpy(np.asarray(STABLE_DIFFUSION.alpha_bars, np.float32))
        self.register_buffer("kept", kept.to(torch.get_default_device()))

    def layers_to_compile(self):
        steps = (m for m in self.unet.modules() if isinstance(m, Residual | Transformer))
        return itertools.chain(steps, () if self.text is None else (self.text,))

    def forward(self, batch):
        mean, log_variance = batch["moments"].permute(0, 3, 1, 2).chunk(2, 1)
        first, noise = torch.randn_like(mean), torch.randn_like(mean)
        x = SCALE * (mean + (log_variance.clamp(-30, 20) / 2).exp() * first)
        time = torch.randint(0, len(self.kept), (len(x),), device=x.device)
        kept = self.kept[time][:, None, None, None]
        signal, rest = kept.sqrt(), (1 - kept).sqrt()
        if self.text is None:
            context = batch["embedding"]
        else:
            with torch.no_grad():
                context = self.text(batch["tokens"]).last_hidden_state
        v = self.unet(signal * x + rest * noise, time, context)
        return ((v.float() - (signal * noise - rest * x)) ** 2).mean()


def optimizer(model: Model, given: Any) -> Any:
    return training.adamw(model, given, given.weight_decay)
