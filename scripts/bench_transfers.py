"""Bytes a second from the host to a device: an array as NumPy has it, by way of pinned memory, and from memory already pinned.

    python scripts/bench_transfers.py [--mib 256] [--pieces 1 8]      # under a minute on a GPU

`pageable` is `jax.device_put` of a NumPy array, as the feed does it; `by way of pinned` puts it into the device's pinned
host memory first, and from there onto the device; `pinned` is the second half alone. Several pieces are arrays in
flight at once. By the clock: a transfer takes no processor time. It is worth feeding by way of pinned memory where that
is faster than pageable on the card at hand.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import measuring

# isort: split

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding


def timed(put: Callable[[], Any], rounds: int) -> list[float]:
    """Seconds of each of so many calls, each waited for; one more warms up."""
    seconds = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        jax.block_until_ready(put())
        seconds.append(time.perf_counter() - begin)
    return seconds[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--mib", type=int, default=256, help="of all pieces together")
    parser.add_argument("--pieces", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    device = SingleDeviceSharding(jax.devices()[0])
    pinned = device.with_memory_kind("pinned_host")
    where = measuring.header().rpartition("; ")[0]
    print(f"{where}, {jax.devices()[0].device_kind}; by the clock, median (least … most)")
    for count in arguments.pieces:
        length = arguments.mib * 2**20 // count
        arrays = [np.full(length, number, np.uint8) for number in range(count)]
        ready = jax.device_put(arrays, pinned)
        ways = {
            "pageable": lambda arrays=arrays: jax.device_put(arrays, device),
            "by way of pinned": lambda arrays=arrays: jax.device_put(
                jax.device_put(arrays, pinned), device
            ),
            "pinned": lambda ready=ready: jax.device_put(ready, device),
        }
        for name, put in ways.items():
            rates = [count * length / 1e9 / seconds for seconds in timed(put, arguments.rounds)]
            each = measuring.spread(rates)
            print(f"  {name:18} {count} x {length / 2**20:.0f} MiB: {each} GB/s")


if __name__ == "__main__":
    main()
