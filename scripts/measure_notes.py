"""The speeds that comments and docstrings of the package speak of, each beside what it is compared with.

    python scripts/measure_notes.py --cores 1               # all; three minutes
    python scripts/measure_notes.py --cores 1 dense orders

Each note names the file that it stands in; its first side is what the others are compared with.
"""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import measuring

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Sides = dict[str, Callable[[], Any]]


def compiled(function: Callable, *arguments: Any) -> Callable[[], Any]:
    program = jax.jit(function).lower(*arguments).compile()
    return lambda: jax.block_until_ready(program(*arguments))


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape).astype(np.float32))


def dense(_: pathlib.Path) -> Sides:
    """ops/dense.py: the gradient of a kernel [128, 384] for 16 x 128 rows."""
    from mlperf_jax.ops import dense

    x, kernel, slope = normal(16, 128, 128), normal(128, 384), normal(16, 128, 384)

    def gradient(product: Callable) -> Callable[[], Any]:
        def loss(kernel: jax.Array, x: jax.Array, slope: jax.Array) -> jax.Array:
            return jnp.sum(product(x, kernel, (((2,), (0,)), ((), ()))) * slope)

        return compiled(jax.grad(loss), kernel, x, slope)

    return {"JAX's rule": gradient(lax.dot_general), "ours": gradient(dense.dot_general)}


def bags(_: pathlib.Path) -> Sides:
    """ops/embedding_rows.py: sums of 27 rows of 128, for 8,192 samples."""
    from mlperf_jax.ops import embedding_rows

    rows = normal(200_000, 128)
    ids = jnp.asarray(np.random.default_rng(0).integers(0, len(rows), (8192, 1, 27)), jnp.int32)
    return {
        "gather, then sum": compiled(lambda rows, ids: rows.at[ids].get().sum(2), rows, ids),
        "ours": compiled(embedding_rows._bags, rows, ids),
    }


def groups(_: pathlib.Path) -> Sides:
    """ops/conv.py: gradients of a 3x3 at 128 channels in 32 groups, 4 x 28 x 28."""
    from mlperf_jax.ops import conv

    x, kernel = normal(4, 28, 28, 128), normal(3, 3, 4, 128)

    def gradients(convolve: Callable) -> Callable[[], Any]:
        return compiled(jax.grad(lambda x, k: jnp.sum(convolve(x, k) ** 2), (0, 1)), x, kernel)

    return {
        "grouped": gradients(
            lambda x, k: lax.conv_general_dilated(
                x,
                k,
                (1, 1),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=32,
            )
        ),
        "ours": gradients(lambda x, k: conv.conv2d(x, k, groups=32)),
    }


def pool(_: pathlib.Path) -> Sides:
    """ops/conv.py: gradient of a maximum over 3x3 with stride 2, 8 x 112 x 112 x 64."""
    from mlperf_jax.ops import conv

    x = normal(8, 112, 112, 64)

    def gradient(pooled: Callable) -> Callable[[], Any]:
        return compiled(jax.grad(lambda x: jnp.sum(pooled(x) ** 2)), x)

    def windowed(x: jax.Array) -> jax.Array:
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")

    return {
        "windowed maximum": gradient(windowed),
        "ours": gradient(lambda x: conv.max_pool(x, 3, stride=2)),
    }


def initialise(_: pathlib.Path) -> Sides:
    """core/state.py: compiling and running the tiny ResNet's initialisation, traced too, by LLVM's level."""
    from mlperf_jax import benchmarks
    from mlperf_jax.core import mesh, state

    assembly = state.assemble(
        benchmarks.get("resnet", tiny=True, dtype="float32"), mesh.make_mesh("data=1")
    )

    def at(level: int | None) -> Callable[[], Any]:
        options = None if level is None else {"xla_backend_optimization_level": level}
        key = jax.random.key(0)

        def run() -> None:  # a new function each time, which nothing has compiled yet
            program = jax.jit(lambda key: assembly.initial(key)).lower(key).compile(options)
            jax.block_until_ready(program(key))

        return run

    return {"as usual": at(None), "level 0": at(0)}


def traces(_: pathlib.Path) -> Sides:
    """core/optimizer_trace.py: three traces of AdamW on the parameters of each benchmark at full size."""
    import optax
    from flax import nnx

    from mlperf_jax import benchmarks
    from mlperf_jax.core import optimizer_trace, state
    from mlperf_jax.optimizers.tree import ParamTree

    def of(name: str) -> Callable[[], Any]:
        benchmark = benchmarks.get(name, dtype="bfloat16")

        def shapes(key: jax.Array) -> Any:
            return state.split(benchmark.model(nnx.Rngs(key)), benchmark.frozen)[1]["params"]

        params = jax.eval_shape(shapes, jax.eval_shape(lambda: jax.random.key(0)))
        tree = ParamTree.from_params(params)
        return lambda: optimizer_trace.trace(optax.adamw(1e-3), params, tree)

    return {name: of(name) for name in benchmarks.names()}


def masks(_: pathlib.Path) -> Sides:
    """ops/dropout.py: a mask of [4, 16, 512, 512], from JAX's bernoulli and from 16 bits an element."""
    from mlperf_jax.ops import dropout

    key, shape = jax.random.key(0), (4, 16, 512, 512)
    return {
        "bernoulli": compiled(lambda key: jax.random.bernoulli(key, 0.9, shape), key),
        "ours": compiled(lambda key: dropout.kept(key, 0.1, shape), key),
    }


def orders(_: pathlib.Path) -> Sides:
    """input_pipelines/orders.py: 20 rows of Grain's order by the number of records, and a whole table of ours."""

    from mlperf_jax.input_pipelines import orders as table

    def shuffled(records: int) -> Callable[[], Any]:
        data = grain.MapDataset.range(records).shuffle(seed=1)
        index = itertools.count()
        return lambda: [data[next(index) % records] for _ in range(20)]

    return {
        "Grain, 1,281,167 records": shuffled(1_281_167),
        "Grain, 1,000 records": shuffled(1000),
        "Grain, 5 records": shuffled(5),
        "a table of 1,281,167": lambda: table._permutation(1_281_167, 0, 0),
    }


def rows(_: pathlib.Path) -> Sides:
    """input_pipelines/sources.py: windows of 8,192 tokens copied, or through one of Grain's maps each."""
    tokens = np.zeros((64, 8193), np.int32)
    out = np.empty_like(tokens)
    data = grain.MapDataset.source(list(tokens)).map(lambda row: row)
    iterator = iter(data.repeat().to_iter_dataset(grain.ReadOptions(0, 0)))
    return {
        "64 copied": lambda: [np.copyto(out[i], tokens[i]) for i in range(64)],
        "64 through Grain": lambda: [next(iterator) for _ in range(64)],
    }


def records(folder: pathlib.Path) -> Sides:
    """input_pipelines/records.py: 64 of ImageNet's records as bytes."""
    import bench_decode
    import tensorflow_datasets as tfds

    from mlperf_jax.input_pipelines import records

    rng = np.random.default_rng(0)
    bench_decode.write([bench_decode.photograph(rng) for _ in range(64)], str(folder))
    (info,) = folder.glob("prepared/**/dataset_info.json")
    source = tfds.builder_from_directory(info.parent).as_data_source(
        "train", decoders={"image": tfds.decode.SkipDecoding()}
    )
    found = records.prepared(str(info.parent))
    assert found is not None
    ours = records.Records(found.splits["train"])
    return {
        "tensorflow-datasets": lambda: [source[i] for i in range(64)],
        "ours": lambda: [records.parse_example(ours[i]) for i in range(64)],
    }


def raw_logs(_: pathlib.Path) -> Sides:
    """input_pipelines/criteo/raw_logs.py: a piece of the raw logs."""
    from mlperf_jax.input_pipelines.criteo import raw_logs

    rng = np.random.default_rng(0)
    lines = []
    while sum(map(len, lines)) < raw_logs.PIECE:
        words = [b"%d" % n for n in rng.integers(0, 1000, 1 + raw_logs.DENSE)]
        words[0] = b"1"
        words += [b"%08x" % n for n in rng.integers(0, 1 << 32, raw_logs.SPARSE)]
        lines.append(b"\t".join(words) + b"\n")
    data = b"".join(lines)

    def plain() -> list[list[int]]:
        found = [line.split(b"\t") for line in data.splitlines()]
        return [[int(w) for w in f[:14]] + [int(w, 16) for w in f[14:]] for f in found]

    return {"Python's int": plain, "ours": lambda: raw_logs.parse(data)}


def log_lines(_: pathlib.Path) -> Sides:
    """results/logset.py: a line of a log that says nothing of interest."""
    from mlperf_jax.results import logset

    entry = {"namespace": "", "time_ms": 1732266005123, "event_type": "POINT_IN_TIME"}
    entry |= {"key": "train_loss", "value": 2.345, "metadata": {"file": "a.py", "lineno": 7}}
    line = json.dumps(entry).encode()
    return {
        "parsed": lambda: [json.loads(line) for _ in range(1000)],
        "looked at": lambda: [logset._looks_whole(line) for _ in range(1000)],
    }


def compression(folder: pathlib.Path) -> Sides:
    """core/checkpoints/arrays.py: 64 MB of float32 written; sizes are printed."""
    import orbax.checkpoint as ocp

    tree = {"weights": np.random.default_rng(0).normal(size=(4096, 4096)).astype(np.float32)}
    number = iter(range(10**6))

    def written(compressed: bool) -> Callable[[], Any]:
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_compression=compressed)
        saver = ocp.Checkpointer(handler)

        def save() -> pathlib.Path:
            path = folder / f"{compressed}_{next(number)}"
            saver.save(path, args=ocp.args.PyTreeSave(tree))
            return path

        size = sum(file.stat().st_size for file in save().rglob("*") if file.is_file())
        print(f"  {size / 1e6:.1f} MB {'with' if compressed else 'without'} compression")
        return save

    return {"with compression": written(True), "without": written(False)}


NOTES = (
    dense,
    bags,
    groups,
    pool,
    initialise,
    traces,
    masks,
    orders,
    rows,
    records,
    raw_logs,
    log_lines,
    compression,
)


def chosen(names: list[str]) -> Iterator[Callable[[pathlib.Path], Sides]]:
    yield from (note for note in NOTES if not names or note.__name__ in names)


def main() -> None:
    parser = measuring.parser(__doc__, seconds=0.5)
    parser.add_argument(
        "notes", nargs="*", choices=[*(note.__name__ for note in NOTES), []], default=[]
    )
    options = parser.parse_args()
    print(measuring.header())
    for note in chosen(options.notes):
        print(note.__doc__)
        with tempfile.TemporaryDirectory() as folder:
            sides = note(pathlib.Path(folder))
            seconds = 0 if note is initialise else options.seconds
            spent = measuring.in_turns(
                sides, options.rounds, seconds, settle=note is not initialise
            )
        long = note in (orders, rows, log_lines)
        measuring.report(spent, next(iter(sides)), "a call", long=long)


if __name__ == "__main__":
    main()
