"""What optax lacks: MLPerf's LARS, LAMB and SGD, the benchmarks' schedules, `ParamTree` and `per_layer`."""

from mlperf_jax.optimizers.clipping import clip_by_global_norm, global_norm
from mlperf_jax.optimizers.lamb import LambState, lamb
from mlperf_jax.optimizers.lars import LarsState, lars
from mlperf_jax.optimizers.per_layer import PerLayerState, per_layer
from mlperf_jax.optimizers.schedules import (
    at_epochs,
    by_epoch,
    every_epochs,
    every_samples,
    every_steps,
    linear_decay,
    poly_decay,
    step_decay,
    steps_per_epoch,
    warmup_constant,
    warmup_cosine,
)
from mlperf_jax.optimizers.sgd import SgdState, sgd
from mlperf_jax.optimizers.tree import (
    Leaf,
    Matrices,
    ParamTree,
    Paths,
    flatten_paths,
    map_with_path,
    stack_of,
    unflatten,
)

__all__ = [
    "LambState",
    "LarsState",
    "Leaf",
    "Matrices",
    "ParamTree",
    "Paths",
    "PerLayerState",
    "SgdState",
    "at_epochs",
    "by_epoch",
    "clip_by_global_norm",
    "every_epochs",
    "every_samples",
    "every_steps",
    "flatten_paths",
    "global_norm",
    "lamb",
    "lars",
    "linear_decay",
    "map_with_path",
    "per_layer",
    "poly_decay",
    "sgd",
    "stack_of",
    "step_decay",
    "steps_per_epoch",
    "unflatten",
    "warmup_constant",
    "warmup_cosine",
]
