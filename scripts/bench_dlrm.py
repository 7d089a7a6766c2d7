"""Training samples a second of our embedding bags beside PyTorch's, on the same ids, turn by turn.

One table, bags of equal size, a loss on the sums, and Adagrad on the rows looked up: ours (`ops/embedding`)
against `torch.nn.EmbeddingBag(mode="sum", sparse=True)` with `torch.optim.Adagrad`. Both use all cores.
Needs torch.

    python scripts/bench_dlrm.py                        # 2 M rows of 128, batch 8,192, bags of 8 and 27
    python scripts/bench_dlrm.py --bag 100 --rounds 3
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import torch

from mlperf_jax.ops import embedding
from mlperf_jax.ops.embedding_plan import Bag, make_plan
from mlperf_jax.optimizers import rows

RATE, EPSILON = 0.004, 1e-8


def ours(table: np.ndarray, bag: int, head: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A step of ours: ids [B, bag] -> the table's first rows."""
    (store,) = make_plan(
        [Bag("table", len(table), bag)], width=table.shape[1], bins=1, way="rows"
    ).stores.values()
    optimizer = rows.adagrad(RATE, EPSILON)
    weight = jnp.asarray(head)

    def step(state: dict[str, jax.Array], ids: jax.Array) -> dict[str, jax.Array]:
        bags = embedding.pool(store, state["rows"], ids)
        grads = jax.grad(lambda bags: jnp.mean(jnp.square(bags[:, 0] @ weight)))(bags)
        return embedding.update(store, state, ids, grads, optimizer.step, jnp.int32(0))

    program = jax.jit(step, donate_argnums=0)
    state = {"rows": jnp.asarray(table)}
    state |= optimizer.init(state["rows"])

    def run(ids: np.ndarray) -> np.ndarray:
        nonlocal state
        state = jax.block_until_ready(program(state, ids))
        return np.asarray(state["rows"][:100])

    return run


def theirs(table: np.ndarray, bag: int, head: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The same in PyTorch."""
    bags = torch.nn.EmbeddingBag(*table.shape, mode="sum", sparse=True)
    with torch.no_grad():
        bags.weight.copy_(torch.from_numpy(table))
    optimizer = torch.optim.Adagrad(bags.parameters(), lr=RATE, eps=EPSILON)
    weight = torch.from_numpy(head)

    def run(ids: np.ndarray) -> np.ndarray:
        optimizer.zero_grad()
        torch.mean(torch.square(bags(torch.from_numpy(ids)) @ weight)).backward()
        optimizer.step()
        return bags.weight.detach()[:100].numpy().copy()

    return run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--bag", type=int, nargs="+", default=[8, 27])
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    generator = np.random.default_rng(0)
    table = generator.uniform(-1, 1, (given.rows, given.width)).astype(np.float32)
    table *= given.rows**-0.5
    head = generator.normal(size=given.width).astype(np.float32)
    print(
        f"{given.rows:,} rows of {given.width}, batch {given.batch:,}, {os.cpu_count()} cores, "
        f"jax {jax.__version__}, torch {torch.__version__}"
    )
    for bag in given.bag:
        sides = {"ours": ours(table, bag, head), "torch": theirs(table, bag, head)}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(given.rounds + 1):  # the first compiles
            ids = generator.integers(0, given.rows, (given.batch, bag)).astype(np.int32)
            ends = {}
            for name, run in sides.items():
                start = time.perf_counter()
                ends[name] = run(ids)
                seconds[name].append(time.perf_counter() - start)
            np.testing.assert_allclose(ends["ours"], ends["torch"], rtol=1e-3, atol=1e-6)
        best = {name: given.batch / min(times[1:]) for name, times in seconds.items()}
        middle = {n: given.batch / float(np.median(t[1:])) for n, t in seconds.items()}
        print(
            f"bag {bag:3}: ours {middle['ours']:9,.0f} samples/s, torch {middle['torch']:9,.0f}, "
            f"{middle['ours'] / middle['torch']:.1f} times (of the best rounds "
            f"{best['ours'] / best['torch']:.1f}); equal weights after each step"
        )


if __name__ == "__main__":
    main()
