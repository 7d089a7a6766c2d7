"""Training samples a second of our embedding bags beside PyTorch's, on the same ids, turn by turn.

One table, bags of equal size, a loss on the sums, and Adagrad on the rows looked up: ours (`ops/embedding`)
against `torch.nn.EmbeddingBag(mode="sum", sparse=True)` with `torch.optim.Adagrad`. The loss is steep where
the sums are, as Adagrad's first step has the gradient's sign, which rounding must not choose. Needs torch.

    python scripts/bench_dlrm.py --cores 1              # 2 M rows of 128, batch 8,192, bags of 8 and 27
    python scripts/bench_dlrm.py --cores 1 --bag 100
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator

import measuring

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
        grads = jax.grad(lambda bags: jnp.mean(jnp.square(bags[:, 0] @ weight - 1)))(bags)
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
        torch.mean(torch.square(bags(torch.from_numpy(ids)) @ weight - 1)).backward()
        optimizer.step()
        return bags.weight.detach()[:100].numpy().copy()

    return run


def main() -> None:
    parser = measuring.parser(__doc__, rounds=7)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--bag", type=int, nargs="+", default=[8, 27])
    given = parser.parse_args()
    generator = np.random.default_rng(0)
    table = generator.uniform(-1, 1, (given.rows, given.width)).astype(np.float32)
    table *= given.rows**-0.5
    head = generator.normal(size=given.width).astype(np.float32)
    print(f"{measuring.header()}\n{given.rows:,} rows of {given.width}, batch {given.batch:,}")

    def batches(bag: int) -> Iterator[np.ndarray]:
        ids = np.random.default_rng(1)
        for _ in itertools.count():
            yield ids.integers(0, given.rows, (given.batch, bag)).astype(np.int32)

    for bag in given.bag:
        ends: dict[str, list[np.ndarray]] = {"torch": [], "ours": []}

        def side(name: str, run: Callable, bag: int = bag, ends: dict = ends) -> Callable[[], None]:
            ids = batches(bag)
            return lambda: ends[name].append(run(next(ids)))

        sides = {
            "torch": side("torch", theirs(table, bag, head)),
            "ours": side("ours", ours(table, bag, head)),
        }
        spent = measuring.in_turns(sides, given.rounds, 0)  # as many steps of each
        for one, other in zip(ends["ours"], ends["torch"], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)
        print(f"bags of {bag}, equal weights after each step:")
        measuring.report(spent, "torch", "a sample", given.batch)


if __name__ == "__main__":
    main()
