"""A decoder's train step twice: ours as a benchmark, and the same model in PyTorch.

What `compare_decoder_torch.py` and `bench_decoder_gpu.py` measure; not a script of its own. The twin
is what one would write by hand in PyTorch: parameters in float32 under the names of `transformers`,
autocast for bfloat16, `scaled_dot_product_attention`, `rms_norm`, fused AdamW.

B batch · T tokens · D width · V vocabulary rows · N query heads · K key/value heads · H head dimension
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
import torch
from torch.nn import functional as F
from torch.utils import checkpoint as checkpoints

from mlperf_jax import metrics
from mlperf_jax.core.benchmark import Benchmark, Target, Weighted, i32
from mlperf_jax.models import decoder_huggingface as huggingface
from mlperf_jax.models.decoder import RULES, Decoder, rope_frequencies
from mlperf_jax.models.decoder_config import DecoderConfig
from mlperf_jax.ops.cross_entropy import chunked_xent, sequence_xent

ADAM = {"lr": 3e-4, "b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
CLIP_NORM = 1.0  # every recipe of these benchmarks clips here


# -- ours ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Step(Benchmark):
    """One train step of a decoder as a benchmark, for the core to compile; it has no data."""

    name = "decoder"
    ruleset = "5.1.0"
    metric = metrics.LogPerplexity()
    rules = RULES

    decoder: DecoderConfig
    tokens: int
    chunk: int = 1024
    size: str = "tiny"
    clip_norm: float | None = CLIP_NORM
    train_samples: int = 1 << 20
    eval_samples: int = 1
    targets: tuple[Target, ...] = (Target("log_perplexity", at_most=0.0),)

    def example(self):
        return {"tokens": i32(self.tokens), "labels": i32(self.tokens)}

    def model(self, rngs):
        return Decoder(self.decoder, self.dtype, rngs=rngs)

    def optimizer(self, tree):
        return optax.adamw(**{"learning_rate" if k == "lr" else k: v for k, v in ADAM.items()})

    def loss(self, model, batch, key):
        hidden = model.hidden(batch["tokens"], key=key)  # [B, T, D]
        total, count = chunked_xent(hidden, model.head_kernel(), batch["labels"], chunk=self.chunk)
        return Weighted(total, count)

    def predict(self, model, batch, key):
        return sequence_xent(
            model.hidden(batch["tokens"]), model.head_kernel(), batch["labels"], chunk=self.chunk
        )

    def eval_steps(self):
        return itertools.count(1)

    @property
    def flops_per_sample(self):
        return self.tokens * self.decoder.flops_per_token(self.tokens)


def random_batch(config: DecoderConfig, batch: int, tokens: int) -> dict[str, np.ndarray]:
    """Random tokens and the next ones, both [B, T] int32."""
    draw = np.random.RandomState(0).randint(0, config.vocab, (batch, tokens + 1)).astype(np.int32)
    return {"tokens": draw[:, :-1].copy(), "labels": draw[:, 1:].copy()}


# -- theirs ----------------------------------------------------------------------------------------


class Projection(torch.nn.Module):
    """A matrix as `transformers` stores it: [out, in] in Llama, [in, out] with a bias in GPT-2."""

    def __init__(self, inputs: int, outputs: int, bias: bool):
        super().__init__()
        shape = (inputs, outputs) if bias else (outputs, inputs)
        self.weight = torch.nn.Parameter(torch.empty(shape))
        self.bias = torch.nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x):
        return F.linear(x, self.weight if self.bias is None else self.weight.T, self.bias)


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

    def forward(self, x, rope):
        own, mlp = self.self_attn, self.mlp
        y = self.input_layernorm(x)
        q, k, v = own["q_proj"](y), own["k_proj"](y), own["v_proj"](y)
        q, k = (self.turned(z, rope) for z in (q, k))
        x = x + own["o_proj"](attend(q, k, v, self.config))
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


class Twin(torch.nn.Module):
    """The loss of a decoder in PyTorch, its parameters named as `huggingface.to_huggingface` does."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
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
            self.register_buffer("frequency", frequency, persistent=False)
        if not config.tied:
            self.lm_head = Projection(config.width, config.vocab, False)

    def forward(self, tokens, labels):
        """Mean cross entropy of labels [B, T] in float32."""
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
        logits = F.linear(norm(x), head).float()
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())

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


class TwinStepper:
    """Train steps of the twin, in float32 or under bfloat16 autocast."""

    def __init__(
        self, config: DecoderConfig, *, device: str, dtype: str = "float32", compiled: bool = False
    ):
        with torch.device(device):
            self.twin = Twin(config)
        self.dtype = getattr(torch, dtype)
        self.device = device
        for name, parameter in self.twin.named_parameters():
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name or "ln_" in name else 0.0, 0.02)
        self.loss = torch.compile(self._loss) if compiled else self._loss
        self.optimizer = torch.optim.AdamW(
            self.twin.parameters(),
            lr=ADAM["lr"],
            betas=(ADAM["b1"], ADAM["b2"]),
            eps=ADAM["eps"],
            weight_decay=ADAM["weight_decay"],
            fused=True,
        )

    @property
    def parameters(self) -> int:
        """How many weights are trained."""
        return sum(parameter.numel() for parameter in self.twin.parameters())

    def load(self, weights: Mapping[str, np.ndarray]) -> None:
        """Takes over a state dict of `huggingface.to_huggingface`, all of it."""
        state = {name: torch.from_numpy(np.array(value)) for name, value in weights.items()}
        self.twin.load_state_dict(state, strict=True)

    def place(self, batch: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        return {
            name: torch.from_numpy(np.array(value)).long().to(self.device)
            for name, value in batch.items()
        }

    def _loss(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
            return self.twin(batch["tokens"], batch["labels"])

    def step(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Loss, gradients, clipping, AdamW; returns the loss."""
        loss = self.loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.twin.parameters(), CLIP_NORM, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def exported(params: Any, config: DecoderConfig) -> dict[str, np.ndarray]:
    """Our parameters as the twin's state dict."""
    return huggingface.to_huggingface(jax.tree.map(np.asarray, params), config)
