"""Tokenizers that a benchmark's data are made with."""

from mlperf_jax.input_pipelines.tokenizers.clip_bpe import ClipBpe
from mlperf_jax.input_pipelines.tokenizers.wordpiece import WordPiece

__all__ = ["ClipBpe", "WordPiece"]
