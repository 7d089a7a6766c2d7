"""BERT: an encoder of post-norm layers, a masked-token head and a next-sentence head.

A row holds one sequence or several, packed: each has its own number in `segments` and positions from 0 on,
and tokens of other sequences, padding among them, are not seen.

Reference: mlcommons/training, retired_benchmarks/bert (TF1).

B batch · T tokens · D width · F feed-forward width · V vocabulary rows · N heads · H head dimension ·
P masked tokens of a row at most · S sequences of a row at most · C next-sentence classes, 2
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from mlperf_jax.errors import UserError
from mlperf_jax.models.bert_config import EPSILON, BertConfig
from mlperf_jax.ops import attention as attentions, dense, stack
from mlperf_jax.ops.dropout import dropped
from mlperf_jax.ops.norm import layer_norm
from mlperf_jax.ops.shard import ROWS, shard

__all__ = ["RULES", "Bert", "BertConfig"]

# Where parameters live, by path, for one layer, as in models/decoder.py: matrices over fsdp along D and over
# tensor along heads or F. V is split by nothing: 30,522 is twice an odd number.
RULES = (
    (r"(words|positions|types)/embedding", P(None, ("tensor", "fsdp"))),
    (r".*/(query|key|value|up)/kernel", P("fsdp", "tensor")),
    (r".*/(out|down)/kernel", P("tensor", "fsdp")),
    (r".*/(query|key|value|up)/bias", P("tensor")),
    (r".*/(transform|pooler)/kernel", P("fsdp", "tensor")),
    (r".*/classifier/kernel", P()),
    (r".*/(bias|scale)", P()),
)

_SEQUENCE = ("context", "tensor")  # norms and residuals are split over tensor too, along T


# -- parts -----------------------------------------------------------------------------------------


class Embedding(nnx.Module):
    """A table of vectors, looked up and added in its own precision, as is its gradient."""

    def __init__(self, rows: int, config: BertConfig, dtype: jax.typing.DTypeLike, *, rngs):
        init = nnx.initializers.truncated_normal(config.init_std)
        self.embedding = nnx.Param(init(rngs.params(), (rows, config.width), _kept(dtype)))

    def __call__(self, index: jax.Array) -> jax.Array:
        """Rows of the table; one that it lacks gives NaN, which ends a run where a clamp would not."""
        # every device looks up its own tokens; split along the rows, all devices' would be gathered
        table = shard(self.embedding[...], None, "tensor")
        found = jnp.take(table, shard(index, ROWS, "context"), axis=0, mode="fill")
        return shard(found, ROWS, "context", "tensor")


class Attention(nnx.Module):
    """[B, T, D] -> [B, T, D]: every token sees all of its own segment."""

    def __init__(self, config: BertConfig, dtype: jax.typing.DTypeLike, *, rngs: nnx.Rngs):
        width = config.width
        self.query = _linear(width, width, config, dtype, rngs=rngs)
        self.key = _linear(width, width, config, dtype, rngs=rngs)
        self.value = _linear(width, width, config, dtype, rngs=rngs)
        self.out = _linear(width, width, config, dtype, rngs=rngs)
        self.heads = config.heads
        self.dropout = config.dropout
        self.backend = config.attention

    def __call__(self, x: jax.Array, segments: jax.Array, key: jax.Array | None) -> jax.Array:
        parts = (layer(x) for layer in (self.query, self.key, self.value))
        q, k, v = (y.reshape(*y.shape[:2], self.heads, -1) for y in parts)  # [B, T, N, H]
        y = attentions.attention(
            shard(q, ROWS, "context", "tensor"),
            k,
            v,
            causal=False,
            segments=segments,
            dropout_rate=self.dropout,
            dropout_key=key,
            backend=self.backend,
        )
        return self.out(shard(y.reshape(x.shape), ROWS, "context", "tensor"))


class FeedForward(nnx.Module):
    """[B, T, D] -> [B, T, D]: down(gelu(up(x)))."""

    def __init__(self, config: BertConfig, dtype: jax.typing.DTypeLike, *, rngs: nnx.Rngs):
        self.up = _linear(config.width, config.hidden, config, dtype, rngs=rngs)
        self.down = _linear(config.hidden, config.width, config, dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(shard(_gelu(self.up(x)), ROWS, "context", "tensor"))


class Layer(nnx.Module):
    """norm(x + attention(x)), then norm(x + feed_forward(x))."""

    def __init__(self, config: BertConfig, dtype: jax.typing.DTypeLike, *, rngs: nnx.Rngs):
        self.attention = Attention(config, dtype, rngs=rngs)
        self.attention_norm = layer_norm(config.width, EPSILON, dtype, rngs=rngs)
        self.feed_forward = FeedForward(config, dtype, rngs=rngs)
        self.feed_forward_norm = layer_norm(config.width, EPSILON, dtype, rngs=rngs)
        self.dropout = config.dropout

    def __call__(
        self, x: jax.Array, segments: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        keys = (None, None, None) if key is None else jax.random.split(key, 3)
        y = self.attention(shard(x, ROWS, "context"), segments, keys[0])
        x = self.attention_norm(x + dropped(_reduced(y), self.dropout, keys[1]))
        y = self.feed_forward(shard(x, ROWS, "context"))
        return self.feed_forward_norm(x + dropped(_reduced(y), self.dropout, keys[2]))


class MaskedHead(nnx.Module):
    """Logits over the vocabulary, its matrix the table of words."""

    def __init__(self, config: BertConfig, dtype: jax.typing.DTypeLike, *, rngs: nnx.Rngs):
        self.transform = _linear(config.width, config.width, config, dtype, rngs=rngs)
        self.norm = layer_norm(config.width, EPSILON, dtype, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(config.vocab, _kept(dtype)))

    def __call__(self, x: jax.Array, words: jax.Array) -> jax.Array:
        """[B, P, D] and the table [V, D] -> [B, P, V] in at least f32."""
        x = self.norm(_gelu(self.transform(x)))
        wide = jnp.promote_types(x.dtype, jnp.float32)
        table = words.astype(x.dtype)
        logits = jnp.einsum("bpd,vd->bpv", x, table, preferred_element_type=wide)
        return shard(logits + self.bias[...], ROWS)


class NextHead(nnx.Module):
    """[B, S, D] -> [B, S, C] in at least f32: whether the second part follows the first (class 0)."""

    def __init__(self, config: BertConfig, dtype: jax.typing.DTypeLike, *, rngs: nnx.Rngs):
        self.pooler = _linear(config.width, config.width, config, dtype, rngs=rngs)
        self.classifier = _linear(config.width, 2, config, _kept(dtype), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.classifier(jnp.tanh(self.pooler(x)))


# -- the model -------------------------------------------------------------------------------------


class Bert(nnx.Module):
    """Tokens to logits of the masked ones, and of whether a sequence's two parts belong together.

    >>> zeros = jnp.zeros([3, 512], jnp.int32)
    >>> def logits():
    ...     model = Bert(BertConfig(dropout=0), jnp.float32, rngs=nnx.Rngs(0))
    ...     hidden = model.hidden(zeros, zeros, segments=zeros)
    ...     return model.masked_logits(hidden, zeros[:, :76]), model.next_logits(hidden, zeros[:, :1])
    >>> [x.shape for x in jax.eval_shape(logits)]
    [(3, 76, 30522), (3, 1, 2)]
    """

    def __init__(self, config: BertConfig, dtype: jax.typing.DTypeLike, *, rngs: nnx.Rngs):
        """Makes the model.

        Args:
          config: sizes.
          dtype: of the computation. Parameters, norms, softmax and logits are in promote_types(dtype, f32).
          rngs: keys.
        """
        self.config = config
        self.deterministic = False
        self.words = Embedding(config.vocab, config, dtype, rngs=rngs)
        self.positions = Embedding(config.max_positions, config, dtype, rngs=rngs)
        self.types = Embedding(config.types, config, dtype, rngs=rngs)
        self.embed_norm = layer_norm(config.width, EPSILON, dtype, rngs=rngs)
        self.blocks = stack.Stack(
            lambda rngs: Layer(config, dtype, rngs=rngs),
            config.layers,
            remat=config.remat,
            rngs=rngs,
        )
        self.masked = MaskedHead(config, dtype, rngs=rngs)
        self.next = NextHead(config, dtype, rngs=rngs)

    def hidden(
        self,
        tokens: jax.Array,
        types: jax.Array,
        *,
        segments: jax.Array,
        positions: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """What both heads read.

        Args:
          tokens: [B, T] int, in 0 ... V - 1.
          types: [B, T] int, the part of its sequence that a token is in: 0 or 1.
          segments: [B, T] int, one number for each sequence of a row and another for padding.
          positions: [B, T] int, from 0 in each sequence; None: 0 ... T - 1 in every row.
          key: draws dropout; needed in training if the model has any.

        Returns:
          [B, T, D] in `dtype`.

        Raises:
          UserError: sequences longer than `max_positions`, or dropout without a key.
        """
        if positions is None:
            if tokens.shape[1] > self.config.max_positions:
                raise UserError(
                    f"bert: sequences of {tokens.shape[1]} tokens exceed the model's "
                    f"{self.config.max_positions} positions; shorten them, or raise max_positions"
                )
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        of_embedding, of_layers = self._keys(key)
        x = self.words(tokens) + self.positions(positions) + self.types(types)
        x = dropped(self.embed_norm(x), self.config.dropout, of_embedding)
        x = self.blocks(shard(x, ROWS, _SEQUENCE), segments, key=of_layers)
        return shard(x, ROWS)

    def masked_logits(self, hidden: jax.Array, at: jax.Array) -> jax.Array:
        """Logits [B, P, V] at positions `at` [B, P] of a row, in promote_types(dtype, f32)."""
        return self.masked(_picked(hidden, at), self.words.embedding[...])

    def next_logits(self, hidden: jax.Array, at: jax.Array) -> jax.Array:
        """Logits [B, S, C] of the sequences whose first tokens stand at `at` [B, S], likewise."""
        return self.next(_picked(hidden, at))

    def set_view(self, deterministic: bool | None = None):
        """Switches dropout off and on; called by `nnx.view`."""
        if deterministic is not None:
            self.deterministic = deterministic

    def _keys(self, key: jax.Array | None) -> tuple[jax.Array | None, jax.Array | None]:
        if self.deterministic or not self.config.dropout:
            return None, None
        if key is None:
            raise UserError(
                "bert: dropout needs a key in training; give `key`, or evaluate with "
                "nnx.view(model, deterministic=True)"
            )
        of_embedding, of_layers = jax.random.split(key)
        return of_embedding, of_layers


# -- pieces ----------------------------------------------------------------------------------------


def _kept(dtype: jax.typing.DTypeLike) -> Any:
    """What parameters are stored in."""
    return jnp.promote_types(dtype, jnp.float32)


def _linear(inputs: int, outputs: int, config: BertConfig, dtype, *, rngs) -> nnx.Linear:
    return nnx.Linear(
        inputs,
        outputs,
        dtype=dtype,
        param_dtype=_kept(dtype),
        kernel_init=nnx.initializers.truncated_normal(config.init_std),
        dot_general=dense.dot_general,
        rngs=rngs,
    )


def _gelu(x: jax.Array) -> jax.Array:
    """The tanh approximation, keeping for the backward pass x alone and none of its own steps."""
    return jax.checkpoint(jax.nn.gelu, prevent_cse=False)(x)


def _reduced(y: jax.Array) -> jax.Array:
    """A row-split product summed over `tensor` and split along T over it, in the decoder's two steps."""
    return shard(shard(y, ROWS, "context"), ROWS, _SEQUENCE)


def _picked(hidden: jax.Array, at: jax.Array) -> jax.Array:
    """Rows `at` [B, P] of hidden [B, T, D]; NaN for one that is not there."""
    return jnp.take_along_axis(hidden, at[..., None], axis=1, mode="fill")
