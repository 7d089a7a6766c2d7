"""Which optimizers run here: everything public in optax and in `mlperf_jax.optimizers`, tried; docs/optimizers.md.

    python scripts/optimizer_table.py > docs/optimizers.md

Each is made as the table shows, traced as a run traces it on a small model with a stack of layers, and takes
three compiled steps there. A test traces them again and compares the page.
"""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mlperf_jax import optimizers
from mlperf_jax.core import optimizer_trace
from mlperf_jax.core.optimizer_argument import SHORT
from mlperf_jax.errors import UserError
from mlperf_jax.optimizers import schedule_free, tree as trees

PAGE = """\
# Optimizers

Any optax object can replace a recipe's optimizer (`optimizer=` or `--optimizer`, division open), and so can a
function of the `ParamTree` that returns one. Before a run makes a folder, `init` and `update` are traced on
the benchmark's parameters; what cannot train is refused in one sentence, and what takes a stack of layers for
one tensor is named with the remedy. This table, of `python scripts/optimizer_table.py`, shows all that is
public in optax {version} and here. Made as written in the second column, each was traced on a small model with
a stack of three layers and, where accepted, took three compiled steps. [ten_steps.md](ten_steps.md) tells of ten
steps of benchmarks with some of them.

* *works*: as it is.
* *works, said:* a run begins with this note. By short name (`--optimizer lamb:1e-3`) the remedy is applied.
* *refused:* the sentence that a run ends with.

`S` below is a schedule, `O` an optimizer (`optax.sgd(0.1)`), `M` a mask (`tree.matrices.mask`), `T` the `ParamTree`.

| name | made as | short | |
| --- | --- | --- | --- |
"""

S = optax.constant_schedule(0.1)
O = optax.sgd(0.1)  # noqa: E741 (the page's name)
MADE = {
    "MultiSteps": "(O, 2)",
    "adaptive_grad_clip": "(0.1)",
    "add_decayed_weights": "(0.1)",
    "add_noise": "(0.1, 0.5, key=0)",
    "apply_if_finite": "(O, 3)",
    "chain": "(optax.clip(1.0), O)",
    "clip": "(1.0)",
    "clip_by_block_rms": "(1.0)",
    "clip_by_global_norm": "(1.0)",
    "clip_by_global_norm (mlperf_jax)": "(1.0)",
    "conditionally_mask": "(O, lambda step: step < 9)",
    "conditionally_transform": "(O, lambda step: step < 9)",
    "differentially_private_aggregate": "(1.0, 0.1, key=0)",
    "dpsgd": "(0.1, 1.0, 0.1, 0)",
    "ema": "(0.9)",
    "flatten": "(O)",
    "freeze": "(M)",
    "galore": "(0.1, rank=2)",
    "inject_hyperparams": "(optax.adam)(0.1)",
    "inject_stateful_hyperparams": "(optax.adam)(0.1)",
    "lars (mlperf_jax)": "(0.1)",
    "lookahead": "(O, 5, 0.5)",
    "masked": "(O, M)",
    "measure_with_ema": "(optax.global_norm, 0.9)",
    "mechanize": "(O)",
    "monitor": "({'norm': optax.global_norm})",
    "multi_transform": "({True: O, False: optax.adam(0.1)}, M)",
    "named_chain": "(('clip', optax.clip(1.0)), ('sgd', O))",
    "noisy_sgd": "(0.1, key=0)",
    "partition": "({True: O, False: optax.adam(0.1)}, M)",
    "per_layer (mlperf_jax)": "(optax.lamb(0.1))",
    "sam": "(O, optax.sgd(0.05), opaque_mode=True)",
    "scale": "(-0.1)",
    "scale_by_backtracking_linesearch": "(15)",
    "scale_by_learning_rate": "(0.1)",
    "scale_by_schedule": "(S)",
    "scale_by_zoom_linesearch": "(15)",
    "schedule_free": "(O, 0.1)",
    "selective_transform": "(O, freeze_mask=M)",
    "sgd (mlperf_jax)": "(0.1, 0.9)",
    "snapshot": "('norm', optax.global_norm)",
    "split_real_and_imaginary": "(O)",
    "stateless": "(lambda g, p: g)",
    "stateless_with_tree_map": "(lambda g, p: g)",
    "trace": "(0.9)",
    "with_extra_args_support": "(O)",
}


def names() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Public makers of transformations, by the name that the page has for them."""
    rooms = [(optax, "{}"), (optax.contrib, "contrib.{}"), (optimizers, "{} (mlperf_jax)")]
    for room, title in rooms:
        public = optimizers.__all__ if room is optimizers else sorted(vars(room))
        for name in public:
            maker = getattr(room, name)
            if callable(maker) and not name.startswith("_") and _makes(maker):
                yield title.format(name), maker


def _makes(maker: Callable[..., Any]) -> bool:
    if maker is optax.MultiSteps:
        return True
    if not inspect.isfunction(maker):
        return False
    annotation = str(inspect.signature(maker).return_annotation)
    return "GradientTransformation" in annotation or maker.__name__ == "scale_by_factored_rms"


def arguments(title: str, maker: Callable[..., Any]) -> str:
    """How the page makes it."""
    known = MADE.get(title) or MADE.get(title.removeprefix("contrib."))
    if known:
        return known
    parameters = inspect.signature(maker).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    if needed in ([], ["learning_rate"]):
        return "(0.1)" if needed else "()"
    raise SystemExit(f"{title} needs {', '.join(needed)}: say in MADE how it is made")


@functools.cache
def params() -> Any:
    """A model with a stack of three layers, its shapes."""

    def f32(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    return {
        "layers": {"fc": {"kernel": f32(3, 8, 6), "bias": f32(3, 6)}, "norm": {"scale": f32(3, 8)}},
        "head": {"kernel": f32(6, 4)},
    }


def verdict(title: str, maker: Callable[..., Any], *, steps: int = 0) -> str:
    """What a run says of it; with steps, it has also taken them."""
    tree = trees.ParamTree.from_params(params())
    scope = {"make": maker, "optax": optax, "S": S, "O": O, "M": tree.matrices.mask, "T": tree}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tx = eval(f"make{arguments(title, maker)}", scope)
            traced = optimizer_trace.trace(tx, params(), tree)
            schedule_free.evaluated(jax.eval_shape(tx.init, params()), params())
            _step(tx, traced, steps)
    except UserError as error:
        return f"refused: {error}"
    notes = " ".join(note.removeprefix("note: ") for note in traced.notes)
    return f"works, said: {notes}" if notes else "works"


def _step(tx: Any, traced: optimizer_trace.Traced, steps: int) -> None:
    weights = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), params())

    def loss(given: Any, *_: Any) -> jax.Array:
        return sum(((leaf - 0.5) ** 2).sum() for leaf in jax.tree.leaves(given))  # pyright: ignore[reportReturnType]

    @jax.jit
    def step(weights: Any, state: Any) -> tuple[Any, Any]:
        value, grads = jax.value_and_grad(loss)(weights)
        updates, state = tx.update(grads, state, weights, **traced.given(value, grads, loss))
        return optax.apply_updates(weights, updates), state

    state = tx.init(weights) if steps else None
    for _ in range(steps):
        weights, state = step(weights, state)
    if not all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(weights)):
        raise SystemExit(f"{tx} gives weights that are not finite")


def row(title: str, maker: Callable[..., Any], *, steps: int = 0) -> str:
    """A line of the page."""
    own = maker.__module__.startswith("mlperf_jax")
    name = title.removeprefix("contrib.")
    short = f"`{name}:0.1`" if name in SHORT and not own else ""
    made = arguments(title, maker).replace("|", "\\|")
    return f"| {title} | `{made}` | {short} | {verdict(title, maker, steps=steps)} |"


def main() -> None:
    """Writes the page."""
    print(PAGE.format(version=optax.__version__), end="")
    for title, maker in names():
        print(f"{title} …", file=sys.stderr)
        print(row(title, maker, steps=3))


if __name__ == "__main__":
    main()
