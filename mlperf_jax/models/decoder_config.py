"""What a decoder is made of: sizes, parts and starting distributions; no arrays, no JAX.

L layers · D width · F feed-forward width · V vocabulary rows · N query heads · K key/value heads ·
H head dimension · T tokens of a sequence
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, Self

from mlperf_jax.errors import UserError


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama 3.1's stretching of the slow rotary frequencies.

    Wavelengths below `original_positions / high_factor` stay, those above
    `original_positions / low_factor` grow by `factor`, and those between are blended.
    """

    factor: float = 8.0
    low_factor: float = 1.0
    high_factor: float = 4.0
    original_positions: int = 8192


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adapters on the attention projections, the base being frozen.

    One adapter serves the fused query, key and value projection (one A, one B over all three) and one
    the output projection. The branch adds `alpha / rank * B(A(dropout(x)))`.

    Attributes:
        rank, alpha, dropout: of the branch.
        base_bits: 8 keeps the matrices of the frozen layers as int8 with a scale per 128 weights
            (extra `quantised`); None keeps them in the compute dtype, as the reference does.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.1
    base_bits: int | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"lora: rank is {self.rank}; give at least 1")
        if self.base_bits not in (None, 8):
            raise UserError(
                f"lora: base_bits is {self.base_bits}; choose 8, or None for the compute dtype"
            )
        _check_share("lora dropout", self.dropout)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """One decoder-only language model.

    Attributes:
        layers, width: L and D.
        heads, kv_heads, head_dim: N, K and H; K divides N, and K < N is grouped-query attention.
        hidden: F, the inner width of the feed-forward part.
        vocab: V, the rows of the embedding, padding rows included.
        positions: "rope", or "learned": a table of `max_positions` rows added to the embedding.
        max_positions: longest sequence; None for no limit (rope only).
        rope_theta, rope_scaling: base of the rotary frequencies, and how they are stretched.
        norm: "rms"; "layer"; "layer_offset", a layer norm whose stored gain is an offset from 1, so
            that weight decay pulls the gain to 1.
        norm_epsilon: added to the variance or mean square.
        feed_forward: "swiglu", or "gelu" (tanh approximation, two matrices).
        bias: whether all projections carry biases (the head never does).
        tied: whether the head is the transposed embedding.
        init_std: standard deviation of all matrices and embeddings.
        depth_scaled_init: whether the projections that end a residual branch start at
            `init_std / sqrt(2 L)`.
        dropout: on the embedding and on each residual branch.
        lora: adapters, or None. With them the base weights are kept in the compute dtype.
        remat: what the forward pass keeps per layer: None (all), "full" or "dots" as in `ops.stack.Stack`,
            "attention": the layer's input and the attention's result, or "dots_no_batch", as there, and
            the attention's result.
        attention: back end of `ops.attention.attention`.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    positions: Literal["rope", "learned"] = "rope"
    max_positions: int | None = None
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm: Literal["rms", "layer", "layer_offset"] = "rms"
    norm_epsilon: float = 1e-5
    feed_forward: str = "swiglu"
    bias: bool = False
    tied: bool = False
    init_std: float = 0.02
    depth_scaled_init: bool = True
    dropout: float = 0.0
    lora: Lora | None = None
    remat: str | None = None
    attention: str = "auto"

    def __post_init__(self) -> None:
        for field in ("layers", "width", "heads", "kv_heads", "head_dim", "hidden", "vocab"):
            if getattr(self, field) < 1:
                raise UserError(f"decoder: {field} is {getattr(self, field)}; give at least 1")
        if self.heads % self.kv_heads:
            raise UserError(
                f"decoder: {self.heads} query heads cannot share {self.kv_heads} key/value heads; "
                "choose a kv_heads that divides heads"
            )
        if self.positions == "rope" and self.head_dim % 2:
            raise UserError(f"decoder: rope turns pairs, so head_dim {self.head_dim} must be even")
        if self.positions == "learned" and not self.max_positions:
            raise UserError("decoder: learned positions need max_positions, the rows of the table")
        for field, known in (
            ("positions", ("rope", "learned")),
            ("norm", ("rms", "layer", "layer_offset")),
            ("feed_forward", ("swiglu", "gelu")),
        ):
            if getattr(self, field) not in known:
                raise UserError(
                    f"decoder: {field} {getattr(self, field)!r} is unknown; choose one of "
                    f"{', '.join(known)}"
                )
        _check_share("decoder dropout", self.dropout)

    @classmethod
    def llama31_8b(cls) -> Self:
        """Llama 3.1 8B. Reference: small_llm_pretraining/nemo."""
        return cls(
            layers=32,
            width=4096,
            heads=32,
            kv_heads=8,
            head_dim=128,
            hidden=14336,
            vocab=128_256,
            rope_theta=500_000.0,
            rope_scaling=RopeScaling(),
            remat="full",
        )

    @classmethod
    def llama31_405b(cls) -> Self:
        """Llama 3.1 405B as released; the benchmark keeps the first 32,000 vocabulary rows.

        Reference: large_language_model_pretraining/nemo.
        """
        return cls.llama31_8b().replace(layers=126, width=16384, heads=128, hidden=53248)

    @classmethod
    def llama2_70b(cls) -> Self:
        """Llama 2 70B without adapters. Reference: llama2_70b_lora."""
        sizes = {"layers": 80, "width": 8192, "heads": 64, "hidden": 28672, "vocab": 32_000}
        return cls.llama31_8b().replace(**sizes, rope_theta=10_000.0, rope_scaling=None)

    @classmethod
    def gpt3_175b(cls) -> Self:
        """GPT3 175B with 51,200 vocabulary rows. Reference: retired_benchmarks/gpt3 (paxml)."""
        return cls(
            layers=96,
            width=12288,
            heads=96,
            kv_heads=96,
            head_dim=128,
            hidden=49152,
            vocab=51_200,
            positions="learned",
            max_positions=2048,
            norm="layer_offset",
            feed_forward="gelu",
            bias=True,
            tied=True,
            init_std=0.006,
            depth_scaled_init=False,
            remat="full",
        )

    def replace(self, **changes: Any) -> Self:
        """A copy with these fields changed."""
        return dataclasses.replace(self, **changes)

    @property
    def output_std(self) -> float:
        """Starting deviation of the projections that end a residual branch."""
        return (
            self.init_std / math.sqrt(2 * self.layers) if self.depth_scaled_init else self.init_std
        )

    @property
    def query_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def quantised(self) -> bool:
        """Whether the matrices of the layers are kept in 8 bits."""
        return self.lora is not None and self.lora.base_bits == 8

    @property
    def has_dropout(self) -> bool:
        return self.dropout > 0 or (self.lora is not None and self.lora.dropout > 0)

    @property
    def matrix_parameters(self) -> int:
        """Weights a token is multiplied with: projections and head, no embedding, norms or biases.

        >>> DecoderConfig.llama31_8b().matrix_parameters
        7504658432
        """
        return self.layers * self.layer_parameters + self.width * self.vocab

    @property
    def layer_parameters(self) -> int:
        """The same of one layer."""
        attention = 2 * self.width * (self.query_width + self.kv_width)
        return attention + (self._columns + 1) * self.width * self.hidden

    @property
    def layer_products(self) -> int:
        """Values a token that the matrices of a layer give."""
        attention = self.query_width + 2 * self.kv_width + self.width
        return attention + self._columns * self.hidden + self.width

    @property
    def _columns(self) -> int:
        """Matrices of the feed-forward part that give its inner width."""
        return 2 if self.feed_forward == "swiglu" else 1

    @property
    def lora_parameters(self) -> int:
        """Weights of all adapters, the trained parameters when there are any.

        >>> DecoderConfig.llama2_70b().replace(lora=Lora()).lora_parameters
        44564480
        """
        if self.lora is None:
            return 0
        qkv = self.width + self.query_width + 2 * self.kv_width
        return self.layers * self.lora.rank * (qkv + self.query_width + self.width)

    def flops_per_token(self, length: int, *, causal: bool = True, training: bool = True) -> float:
        """Floating-point operations of the model for one token of a sequence of `length` tokens.

        Training triples the forward pass; with adapters the base gets no weight gradients and counts
        twice. Recomputation is not counted.

        Args:
            length: T.
            causal: whether only the lower half of the attention matrix counts.
            training: whether the backward pass counts.

        >>> round(DecoderConfig.llama31_8b().flops_per_token(8192) / 1e9, 2)
        51.47
        """
        passes = (3 if training else 1) * 1.0
        base_passes = 2.0 if training and self.lora else passes
        attention = 4 * self.layers * self.query_width * length * (0.5 if causal else 1.0)
        return (
            2 * base_passes * self.matrix_parameters
            + 2 * passes * self.lora_parameters
            + passes * attention
        )


def _check_share(what: str, value: float) -> None:
    if not 0 <= value < 1:
        raise UserError(f"{what} must be in [0, 1), not {value}")
