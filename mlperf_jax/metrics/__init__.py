"""Quality as the rules define it."""

from mlperf_jax.metrics.auc import Auc, AucHistogram
from mlperf_jax.metrics.fid import FidClip
from mlperf_jax.metrics.metric import Mean
from mlperf_jax.metrics.perplexity import LogPerplexity
from mlperf_jax.metrics.weighted_accuracy import WeightedAccuracy

__all__ = ["Auc", "AucHistogram", "FidClip", "LogPerplexity", "Mean", "WeightedAccuracy"]
