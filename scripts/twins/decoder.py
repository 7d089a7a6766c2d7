"""A decoder with AdamW, Llama's or GPT3's, whole or with LoRA adapters on a frozen base.

What one would write by hand in PyTorch: parameters in float32 under the names of `transformers`,
`scaled_dot_product_attention`, `rms_norm`, layers recomputed in the backward pass as the benchmark says.

B batch · T tokens · D width · V vocabulary rows · N query heads · K key/value heads · H head dimension
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import torch
from torch.nn import functional as F
from torch.utils import checkpoint as checkpoints

from mlperf_jax.input_pipelines.tokens.megatron import IGNORED
from mlperf_jax.models import decoder_huggingface as huggingface
from mlperf_jax.models.decoder import rope_frequencies
from mlperf_jax.models.decoder_config import DecoderConfig, Lora
from scripts.twins import training

CHUNK = 1024  # tokens


def piece_of_loss(x, labels, head):
    """The summed cross entropy in float32 of tokens [T, D] under head [V, D]."""
    return F.cross_entropy(F.linear(x, head).float(), labels, reduction="sum")


class Projection(torch.nn.Module):
    """A matrix as `transformers` stores it: [out, in] in Llama, [in, out] with a bias in GPT-2."""

    def __init__(self, inputs: int, outputs: int, bias: bool):
        super().__init__()
        shape = (inputs, outputs) if bias else (outputs, inputs)
        self.weight = torch.nn.Parameter(torch.empty(shape))
        self.bias = torch.nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x):
        return F.linear(x, self.weight if self.bias is None else self.weight.T, self.bias)


class Adapter(torch.nn.Module):
    """alpha / rank B(A(dropout(x))), beside a projection."""

    def __init__(self, inputs: int, outputs: int, lora: Lora):
        super().__init__()
        self.a = torch.nn.Parameter(torch.empty(lora.rank, inputs))
        self.b = torch.nn.Parameter(torch.zeros(outputs, lora.rank))
        self.scale, self.dropout = lora.scale, lora.dropout

    def forward(self, x):
        return F.linear(F.linear(F.dropout(x, self.dropout), self.a), self.scale * self.b)


class Norm(torch.nn.Module):
    """RMS norm, or layer norm with gain and shift."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(config.width))
        rms = config.norm == "rms"
        self.bias = None if rms else torch.nn.Parameter(torch.empty(config.width))
        self.epsilon = config.norm_epsilon

    def forward(self, x):
        shape = (x.shape[-1],)
        if self.bias is None:
            return F.rms_norm(x, shape, self.weight, self.epsilon)
        return F.layer_norm(x, shape, self.weight, self.bias, self.epsilon)


def attend(q, k, v, config: DecoderConfig):
    """[B, T, N or K times H] -> [B, T, N H], causal."""
    q, k, v = (y.unflatten(-1, (-1, config.head_dim)).transpose(1, 2) for y in (q, k, v))
    grouped = config.kv_heads < config.heads
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    return y.transpose(1, 2).flatten(2)


class LlamaLayer(torch.nn.Module):
    def __init__(self, config: DecoderConfig):
        super().__init__()
        width, queries, shared = config.width, config.query_width, config.kv_width
        self.config = config
        self.input_layernorm, self.post_attention_layernorm = Norm(config), Norm(config)
        self.self_attn = torch.nn.ModuleDict(
            {
                "q_proj": Projection(width, queries, False),
                "k_proj": Projection(width, shared, False),
                "v_proj": Projection(width, shared, False),
                "o_proj": Projection(queries, width, False),
            }
        )
        self.mlp = torch.nn.ModuleDict(
            {
                "gate_proj": Projection(width, config.hidden, False),
                "up_proj": Projection(width, config.hidden, False),
                "down_proj": Projection(config.hidden, width, False),
            }
        )

        self.qkv_lora = self.out_lora = None
        if config.lora is not None:
            self.qkv_lora = Adapter(width, queries + 2 * shared, config.lora)
            self.out_lora = Adapter(queries, width, config.lora)

    def forward(self, x, rope):
        own, mlp = self.self_attn, self.mlp
        y = self.input_layernorm(x)
        parts = own["q_proj"](y), own["k_proj"](y), own["v_proj"](y)
        if self.qkv_lora is not None:
            more = self.qkv_lora(y).split([z.shape[-1] for z in parts], -1)
            parts = [z + low for z, low in zip(parts, more, strict=True)]
        q, k, v = parts
        q, k = (self.turned(z, rope) for z in (q, k))
        y = attend(q, k, v, self.config)
        x = x + own["o_proj"](y)
        if self.out_lora is not None:
            x = x + self.out_lora(y)
        y = self.post_attention_layernorm(x)
        return x + mlp["down_proj"](F.silu(mlp["gate_proj"](y)) * mlp["up_proj"](y))

    def turned(self, x, rope):
        """Rotary positions, as `transformers` applies them: x cos + (-x2, x1) sin."""
        heads = x.unflatten(-1, (-1, self.config.head_dim))
        first, second = heads.chunk(2, -1)
        turned = heads * rope[0] + torch.cat((-second, first), -1) * rope[1]
        return turned.to(x.dtype).flatten(2)


class GptLayer(torch.nn.Module):
    def __init__(self, config: DecoderConfig):
        super().__init__()
        width, size = config.width, config.query_width
        self.config = config
        self.ln_1, self.ln_2 = Norm(config), Norm(config)
        self.attn = torch.nn.ModuleDict(
            {"c_attn": Projection(width, 3 * size, True), "c_proj": Projection(size, width, True)}
        )
        self.mlp = torch.nn.ModuleDict(
            {
                "c_fc": Projection(width, config.hidden, True),
                "c_proj": Projection(config.hidden, width, True),
            }
        )

    def forward(self, x, rope):
        q, k, v = self.attn["c_attn"](self.ln_1(x)).chunk(3, -1)
        x = x + self.attn["c_proj"](attend(q, k, v, self.config))
        y = F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh")
        return x + self.mlp["c_proj"](y)


class Model(training.Model):
    """The loss of a decoder, its parameters named as `huggingface.to_huggingface` does."""

    def __init__(self, given: Any):
        super().__init__()
        self.config = config = given.decoder()
        rope = config.positions == "rope"
        layers = torch.nn.ModuleList(
            (LlamaLayer if rope else GptLayer)(config) for _ in range(config.layers)
        )
        embedding = torch.nn.Embedding(config.vocab, config.width)
        if rope:
            self.model = torch.nn.ModuleDict(
                {"embed_tokens": embedding, "layers": layers, "norm": Norm(config)}
            )
        else:
            positions = torch.nn.Embedding(config.max_positions or 0, config.width)
            self.transformer = torch.nn.ModuleDict(
                {"wte": embedding, "wpe": positions, "h": layers, "ln_f": Norm(config)}
            )
        if rope:
            each = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
            frequency = torch.tensor(np.tile(each, 2), dtype=torch.float32)
            frequency = frequency.to(torch.get_default_device())
            self.register_buffer("frequency", frequency, persistent=False)
        if not config.tied:
            self.lm_head = Projection(config.width, config.vocab, False)
        for name, parameter in self.named_parameters():
            mean = 1.0 if "norm" in name or "ln_" in name else 0.0
            torch.nn.init.normal_(parameter, mean, 0.02)
            if config.lora is not None and "_lora" not in name:  # the base, as it is computed with
                base = parameter.requires_grad_(False)
                base.data = base.data.to(getattr(torch, given.dtype))

    def layers_to_compile(self):
        parts = self.model if hasattr(self, "model") else self.transformer
        return list(parts.values())[-2]

    def forward(self, batch):
        """Mean cross entropy of labels [B, T] in float32; -100 counts in none."""
        tokens, labels = batch["inputs"], batch["labels"]
        parts = list((self.model if hasattr(self, "model") else self.transformer).values())
        embedding, layers, norm = parts[0], parts[-2], parts[-1]
        x, rope = embedding(tokens), None
        if self.config.positions == "rope":
            rope = self.rope(tokens.shape[1])
        else:
            x = x + parts[1](torch.arange(tokens.shape[1], device=tokens.device))
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))  # the residual stream too, as ours
        for layer in layers:
            x = self.applied(layer, x, rope)
        head = embedding.weight if self.config.tied else self.lm_head.weight
        x, labels = norm(x).flatten(0, 1), labels.flatten()
        # piece by piece, as all logits at once are larger than a layer's activations
        pieces = zip(x.split(CHUNK), labels.split(CHUNK), strict=True)
        total = sum(
            checkpoints.checkpoint(piece_of_loss, *p, head, use_reentrant=False) for p in pieces
        )
        return total / (labels != IGNORED).sum()

    def applied(self, layer, x, rope):
        """A layer, recomputed in the backward pass as `DecoderConfig.remat` says."""
        if self.config.remat is None:
            return layer(x, rope)
        more: dict[str, Any] = {}
        if self.config.remat == "attention":
            aten = torch.ops.aten
            kept = [
                aten._scaled_dot_product_flash_attention.default,
                aten._scaled_dot_product_flash_attention_for_cpu.default,
                aten._scaled_dot_product_cudnn_attention.default,
                aten._scaled_dot_product_efficient_attention.default,
            ]
            # torch.compile takes a partial here and no lambda
            more["context_fn"] = functools.partial(
                checkpoints.create_selective_checkpoint_contexts, kept
            )
        return checkpoints.checkpoint(layer, x, rope, use_reentrant=False, **more)

    def rope(self, length: int):
        """Cosines and sines [T, 1, H] in float32."""
        position = torch.arange(length, dtype=torch.float32, device=self.frequency.device)
        angle = position[:, None, None] * self.frequency
        return angle.cos(), angle.sin()


def load(model: Model, weights: Mapping[str, np.ndarray]) -> None:
    """Takes over a state dict of `huggingface.to_huggingface`, all of it."""
    state = {name: torch.from_numpy(np.array(value)) for name, value in weights.items()}
    model.load_state_dict(state, strict=True)


def exported(params: Any, config: DecoderConfig) -> dict[str, np.ndarray]:
    """Our parameters as the model's state dict."""
    return huggingface.to_huggingface(jax.tree.map(np.asarray, params), config)


def optimizer(model: Model, given: Any) -> Any:
    return training.adamw(model, given, given.weight_decay)
