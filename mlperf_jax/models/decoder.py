"""One decoder-only language model: GPT3, Llama 2 and Llama 3.1 by configuration.

Pre-norm residual layers of causal attention and a feed-forward part, stacked and scanned. Which norm,
positions and feed-forward part a model has is a field of its `DecoderConfig`.

References: mlcommons/training, retired_benchmarks/gpt3 (paxml), small_llm_pretraining and
large_language_model_pretraining (Llama 3.1), llama2_70b_lora.

B batch · T tokens · D width · F feed-forward width · V vocabulary rows · N query heads ·
K key/value heads · H head dimension
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec as P

from mlperf_jax.errors import UserError
from mlperf_jax.models.decoder_config import DecoderConfig, Lora, RopeScaling
from mlperf_jax.models.lora import FROZEN, LoraBranch
from mlperf_jax.models.quantised import QuantisedLinear
from mlperf_jax.ops import attention as attentions, dense, stack
from mlperf_jax.ops.dropout import dropped
from mlperf_jax.ops.shard import ROWS, Axes, platform, shard

__all__ = ["FROZEN", "RULES", "Decoder", "DecoderConfig", "Lora", "RopeScaling"]

# Where parameters live, by path, for one layer: matrices over fsdp along D and over tensor along
# heads, F or V, so that each layer starts with column-split and ends with row-split products.
RULES = (
    (r"(embed|positions)/embedding", P(None, ("tensor", "fsdp"))),
    (r"head/kernel", P("fsdp", "tensor")),
    (r".*/(query|key|value|gate|up)/kernel(_scale)?", P("fsdp", "tensor")),
    (r".*/(out|down)/kernel(_scale)?", P("tensor", "fsdp")),
    (r".*/(query|key|value|up)/bias", P("tensor")),
    (r".*/qkv_lora/a", P("fsdp", None)),
    (r".*/out_lora/a", P(("tensor", "fsdp"), None)),
    (r".*_lora/b", P(None, "fsdp")),
    (r".*(norm/(scale|bias)|/bias)", P()),
)

_SEQUENCE = ("context", "tensor")  # norms and residuals are split over tensor too, along T


# -- rotary positions ------------------------------------------------------------------------------


class Rope(NamedTuple):
    """Cosines and sines [T, 1, H/2], or [B, T, 1, H/2] where rows have positions of their own."""

    cos: jax.Array
    sin: jax.Array


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    """Radians per position of each pair, [H/2] float64.

    >>> rope_frequencies(128, 500_000.0, RopeScaling())[[28, 32, 35]].round(8).tolist()
    [0.00321145, 0.00052485, 9.556e-05]
    """
    frequency = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    if scaling is None:
        return frequency
    turns = scaling.original_positions * frequency / (2 * np.pi)  # over the original context
    keep = (turns - scaling.low_factor) / (scaling.high_factor - scaling.low_factor)
    keep = np.clip(keep, 0, 1)
    return keep * frequency + (1 - keep) * frequency / scaling.factor


def rotate(x: jax.Array, rope: Rope) -> jax.Array:
    """Turns pairs (i, i + H/2) of x [B, T, N, H]: the half-split layout of released Llama weights."""
    wide = x.astype(rope.cos.dtype)
    first, second = jnp.split(wide, 2, axis=-1)
    turned = (first * rope.cos - second * rope.sin, second * rope.cos + first * rope.sin)
    return jnp.concatenate(turned, -1).astype(x.dtype)


# -- parts of a layer ------------------------------------------------------------------------------


class Norm(nnx.Module):
    """x over its root mean square along D, times a gain; statistics in promote_types(x, f32).

    "rms" is that. "layer" subtracts the mean before and adds a shift after it; "layer_offset" stores
    its gain as an offset from 1.
    """

    def __init__(self, config: DecoderConfig, dtype: jax.typing.DTypeLike):
        kept = _kept(config, dtype)
        self.centred = config.norm != "rms"
        self.offset = config.norm == "layer_offset"
        self.scale = nnx.Param(jnp.full((config.width,), 0 if self.offset else 1, kept))
        self.bias = nnx.Param(jnp.zeros((config.width,), kept)) if self.centred else None
        self.epsilon = config.norm_epsilon
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if self.centred:
            wide = wide - wide.mean(-1, keepdims=True)
        y = wide * lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.epsilon)
        y = y * (1 + self.scale[...] if self.offset else self.scale[...])
        return (y if self.bias is None else y + self.bias[...]).astype(self.dtype)


class Embedding(nnx.Module):
    """A table of vectors, looked up in its own precision so that its gradient adds up in it."""

    def __init__(self, rows: int, config: DecoderConfig, dtype: jax.typing.DTypeLike, *, rngs):
        init = nnx.initializers.normal(config.init_std)
        kept = _kept(config, dtype)
        self.embedding = nnx.Param(init(rngs.params(), (rows, config.width), kept))
        self.dtype = dtype

    def __call__(self, index: jax.Array) -> jax.Array:
        """Rows of the table; one that it lacks gives NaN, which ends a run where a clamp would not."""
        # Split along D alone, every device looks up its own tokens; split along the rows, the lookup
        # would gather the tokens of all devices and reduce vectors for all of them.
        table = shard(self.embedding[...], None, "tensor")
        index = shard(index, ROWS, "context") if index.ndim == 2 else index
        found = jnp.take(table, index, axis=0, mode="fill").astype(self.dtype)
        return shard(found, ROWS, "context", "tensor") if index.ndim == 2 else found


class Attention(nnx.Module):
    """Causal attention with grouped queries, rotary positions or none, and adapters or none.

    Query, key and value have kernels of their own, so that each is split over `tensor` by heads.
    """

    def __init__(self, config: DecoderConfig, dtype: jax.typing.DTypeLike, *, rngs: nnx.Rngs):
        width, queries, shared = config.width, config.query_width, config.kv_width
        self.query = _column_split(width, queries, config, dtype, rngs=rngs)
        self.key = _column_split(width, shared, config, dtype, rngs=rngs)
        self.value = _column_split(width, shared, config, dtype, rngs=rngs)
        self.out = _row_split(queries, width, config, dtype, rngs=rngs)

        def branch(inputs, *outputs):
            lora = config.lora
            return None if lora is None else LoraBranch(inputs, outputs, lora, dtype, rngs=rngs)

        self.qkv_lora = branch(width, queries, shared, shared)
        self.out_lora = branch(queries, width)
        self.head_dim = config.head_dim
        self.backend = config.attention

    def __call__(
        self,
        x: jax.Array,
        rope: Rope | None,
        segments: jax.Array | None,
        key: jax.Array | None,
    ) -> jax.Array:
        """[B, T, D] -> [B, T, D]. The key draws the dropout of the adapters; without one none."""
        keys = (None, None) if key is None else jax.random.split(key)
        parts = [self.query(x), self.key(x), self.value(x)]
        if self.qkv_lora is not None:
            parts = [y + z for y, z in zip(parts, self.qkv_lora(x, keys[0]))]
        # [B, T, N or K, H]
        q, k, v = (y.reshape(*y.shape[:2], -1, self.head_dim) for y in parts)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        q = shard(q, ROWS, "context", "tensor")
        y = attentions.attention(q, k, v, causal=True, segments=segments, backend=self.backend)
        y = shard(y.reshape(*x.shape[:2], -1), ROWS, "context", "tensor")
        branch = 0 if self.out_lora is None else self.out_lora(y, keys[1])[0]
        return self.out(y) + branch


class FeedForward(nnx.Module):
    """[B, T, D] -> [B, T, D]: "swiglu" is down(silu(gate(x)) * up(x)), "gelu" down(gelu(up(x)))."""

    def __init__(self, config: DecoderConfig, dtype: jax.typing.DTypeLike, *, rngs: nnx.Rngs):
        width, hidden = config.width, config.hidden
        gated = config.feed_forward == "swiglu"
        self.gate = _column_split(width, hidden, config, dtype, rngs=rngs) if gated else None
        self.up = _column_split(width, hidden, config, dtype, rngs=rngs)
        self.down = _row_split(hidden, width, config, dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.gate is None:
            hidden = _lean(nnx.gelu)(self.up(x))  # the tanh approximation
        else:
            hidden = _lean(lambda gate, up: nnx.silu(gate) * up)(self.gate(x), self.up(x))
        return self.down(shard(hidden, ROWS, "context", "tensor"))


def _lean(elementwise: Any) -> Any:
    """The function, keeping for the backward pass its arguments alone and none of its own steps."""
    return jax.checkpoint(elementwise, prevent_cse=False)


class Layer(nnx.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: DecoderConfig, dtype: jax.typing.DTypeLike, *, rngs: nnx.Rngs):
        self.attention_norm = Norm(config, dtype)
        self.attention = Attention(config, dtype, rngs=rngs)
        self.feed_forward_norm = Norm(config, dtype)
        self.feed_forward = FeedForward(config, dtype, rngs=rngs)
        self.dropout = config.dropout

    def __call__(
        self,
        x: jax.Array,
        rope: Rope | None,
        segments: jax.Array | None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        keys = (None, None, None) if key is None else jax.random.split(key, 3)
        # gathered along T once, ahead of the column-split products
        y = shard(self.attention_norm(x), ROWS, "context", None)
        y = _reduced(self.attention(y, rope, segments, keys[0]))
        x = x + dropped(y, self.dropout, keys[1])
        y = shard(self.feed_forward_norm(x), ROWS, "context", None)
        y = _reduced(self.feed_forward(y))
        return x + dropped(y, self.dropout, keys[2])


def _reduced(y: jax.Array) -> jax.Array:
    """A row-split product summed over `tensor` and split along T over it.

    In two steps, which XLA makes one reduce-scatter of; told only the second, it gathers the
    operands along `context` first.
    """
    return shard(shard(y, ROWS, "context", None), ROWS, _SEQUENCE, None)


# -- the model -------------------------------------------------------------------------------------


class Decoder(nnx.Module):
    """Tokens to logits of the next token.

    >>> tiny = DecoderConfig(layers=2, width=32, heads=4, kv_heads=2, head_dim=8, hidden=64, vocab=96)
    >>> model = Decoder(tiny, jnp.float32, rngs=nnx.Rngs(0))
    >>> model(jnp.zeros([2, 16], jnp.int32)).shape
    (2, 16, 96)
    """

    def __init__(self, config: DecoderConfig, dtype: jax.typing.DTypeLike, *, rngs: nnx.Rngs):
        """Makes the model.

        Args:
          config: sizes and parts.
          dtype: of the computation. Parameters are kept in promote_types(dtype, f32); with adapters
            only these are, and the frozen base in `dtype`.
          rngs: keys.
        """
        self.config = config
        self.dtype = dtype
        self.deterministic = False
        self.embed = Embedding(config.vocab, config, dtype, rngs=rngs)
        learned = config.positions == "learned"
        rows = config.max_positions or 0
        self.positions = Embedding(rows, config, dtype, rngs=rngs) if learned else None
        self.blocks = stack.Stack(
            lambda rngs: Layer(config, dtype, rngs=rngs),
            config.layers,
            remat=_remat(config.remat),
            rngs=rngs,
        )
        self.final_norm = Norm(config, dtype)
        plain = config.replace(bias=False)
        untied = None if config.tied else (config.width, config.vocab)
        self.head = _linear(*untied, plain, dtype, rngs=rngs) if untied else None

    def set_view(self, deterministic: bool | None = None):
        """Switches dropout off and on; called by `nnx.view`."""
        if deterministic is not None:
            self.deterministic = deterministic

    def hidden(
        self,
        tokens: jax.Array,
        *,
        segments: jax.Array | None = None,
        positions: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """What the head is applied to.

        Args:
          tokens: [B, T] int, in 0 ... V - 1.
          segments: [B, T] int32 for packed rows: a token sees those of its own number only.
          positions: [B, T] int where positions are not 0 ... T - 1 in every row.
          key: draws dropout; needed in training if the model has any.

        Returns:
          [B, T, D] in `dtype`, after the final norm.

        Raises:
          UserError: for sequences longer than `max_positions`, or dropout without a key.
        """
        config = self.config
        if config.max_positions is not None and tokens.shape[1] > config.max_positions:
            raise UserError(
                f"decoder: sequences of {tokens.shape[1]} tokens exceed the model's "
                f"{config.max_positions} positions; shorten them, or raise max_positions"
            )
        keys = self._keys(key)
        at = jnp.arange(tokens.shape[1]) if positions is None else positions
        x, rope = self.embed(tokens), None
        if self.positions is not None:
            x = x + self.positions(at)
        else:
            rope = self._rope(at)
        x = shard(dropped(x, config.dropout, keys[0]), ROWS, _SEQUENCE, None)
        x = self.blocks(x, rope, segments, key=keys[1])
        return self.final_norm(x)

    def head_kernel(self) -> jax.Array:
        """[D, V], as stored; the tied one is the transposed embedding."""
        if self.head is None:
            return self.embed.embedding[...].T
        return self.head.kernel[...]

    def __call__(
        self,
        tokens: jax.Array,
        *,
        segments: jax.Array | None = None,
        positions: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Logits [B, T, V] in promote_types(dtype, f32); arguments as in `hidden`.

        For training take `hidden` and `head_kernel` to `ops.cross_entropy`, which never holds them.
        """
        x = self.hidden(tokens, segments=segments, positions=positions, key=key)
        x = shard(x, ROWS, "context", None)
        logits = jnp.einsum(
            "btd,dv->btv",
            x,
            self.head_kernel().astype(x.dtype),
            preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
        )
        return shard(logits, ROWS, "context", "tensor")

    def _keys(self, key: jax.Array | None) -> tuple[jax.Array | None, jax.Array | None]:
        """Keys of the embedding's dropout and of the layers'; None for none."""
        if self.deterministic or not self.config.has_dropout:
            return None, None
        if key is None:
            raise UserError(
                "decoder: dropout needs a key in training; give `key`, or evaluate with "
                "nnx.view(model, deterministic=True)"
            )
        first, second = jax.random.split(key)
        return first, second

    def _rope(self, positions: jax.Array) -> Rope:
        config, kept = self.config, jnp.promote_types(self.dtype, jnp.float32)
        frequency = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        angle = positions[..., None, None].astype(kept) * jnp.asarray(frequency, kept)
        return Rope(jnp.cos(angle), jnp.sin(angle))


def _remat(name: str | None) -> Any:
    """A policy for the stack, which knows nothing of attention's result."""
    attended = jax.checkpoint_policies.save_only_these_names(attentions.NAME)
    if name == "attention":
        return attended
    if name == "dots_no_batch":
        dots = stack.remat_policy(name)
        return jax.checkpoint_policies.save_from_both_policies(dots, attended)
    return name


def _kept(config: DecoderConfig, dtype: jax.typing.DTypeLike) -> jax.typing.DTypeLike:
    """What base parameters are stored in: trained ones in at least f32, frozen ones as computed."""
    return dtype if config.lora is not None else jnp.promote_types(dtype, jnp.float32)


def _linear(
    inputs,
    outputs,
    config,
    dtype,
    *,
    used: tuple[Axes, Axes] | None = None,
    std: float | None = None,
    rngs,
) -> nnx.Linear:
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=config.bias,
        dtype=dtype,
        param_dtype=_kept(config, dtype),
        kernel_init=nnx.initializers.normal(config.init_std if std is None else std),
        dot_general=dense.dot_general if used is None else functools.partial(_product, used),
        rngs=rngs,
    )


def _product(used: tuple[Axes, Axes], x: jax.Array, kernel: jax.Array, *how, **more) -> jax.Array:
    """`dense.dot_general` with a kernel [I, O]; on TPUs laid out as it is used, gathered over fsdp.

    Left to choose, XLA:TPU cuts a product with a kernel split over fsdp into one turn of a loop per
    piece, each of which reads and writes the whole result; by its own cost model Llama 3.1 8B's step
    over fsdp=32 then takes more than twice as long. Other compilers gather without being told.
    """
    kernel = shard(kernel, *used) if platform() == "tpu" else kernel
    return dense.dot_general(x, kernel, *how, **more)


_COLUMNS: tuple[Axes, Axes] = (None, "tensor")
_INPUTS: tuple[Axes, Axes] = ("tensor", None)


def _column_split(inputs, outputs, config, dtype, *, rngs) -> nnx.Linear | QuantisedLinear:
    """A projection that begins a residual branch, its outputs split over `tensor`."""
    linear = _linear(inputs, outputs, config, dtype, used=_COLUMNS, rngs=rngs)
    return QuantisedLinear(linear, _COLUMNS) if config.quantised else linear


def _row_split(inputs, outputs, config, dtype, *, rngs) -> nnx.Linear | QuantisedLinear:
    """A projection that ends a residual branch, its inputs split over `tensor`."""
    std = config.output_std
    linear = _linear(inputs, outputs, config, dtype, used=_INPUTS, std=std, rngs=rngs)
    return QuantisedLinear(linear, _INPUTS) if config.quantised else linear
