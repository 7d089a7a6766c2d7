"""Every benchmark's tiny run for ten steps with twenty-two optimizers; two of them on eight devices too.

    python scripts/try_optimizers.py --keep tried.jsonl [BENCHMARK …] > docs/ten_steps.md

What was tried is kept in a file of JSON lines, so that a second call goes on; the page goes to stdout.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

PAGE = """\
# Ten steps with other optimizers

Tiny runs of the benchmarks below, seed 1, for ten steps with {count} optimizers of {families} families by their short names
(`--optimizer lion:1e-4 --division open`), and with two of them on eight devices: the loss of the first and of the tenth
step. Rates were not chosen for any benchmark, so a loss that rises says nothing against an optimizer. Made on
{date} by `python scripts/try_optimizers.py`; [optimizers.md](optimizers.md) has all that are known.

"""

FAMILIES = {
    "plain and momentum": ["sgd:0.01", "noisy_sgd:0.01"],
    "sign": ["lion:1e-4", "sign_sgd:1e-4"],
    "adaptive": ["adamw:1e-3", "radam:1e-3", "yogi:1e-3", "adan:1e-3"],
    "root mean squares": ["rmsprop:1e-3", "adagrad:1e-2"],
    "factored": ["adafactor:1e-3", "sm3:1e-2"],
    "by layer": ["lamb:1e-3", "lars:1e-2", "novograd:1e-3"],
    "orthogonal": ["muon:1e-2"],
    "without a rate": ["prodigy:1", "dadapt_adamw:1"],
    "averaging": ["schedule_free_adamw:1e-3"],
    "by the loss": ["polyak_sgd:0.1", "momo_adam:1e-3"],
    "line search": ["lbfgs:1"],
}
OPTIMIZERS = [name for names in FAMILIES.values() for name in names]
ON_EIGHT = ("adamw:1e-3", "muon:1e-2")
STEPS = 10


def cases(names: list[str]) -> Iterator[tuple[str, str, int]]:
    """Benchmark, optimizer, devices."""
    for name in names:
        yield from ((name, optimizer, 1) for optimizer in OPTIMIZERS)
        yield from ((name, optimizer, 8) for optimizer in ON_EIGHT)


def tried(name: str, optimizer: str) -> dict[str, Any]:
    """What ten steps end with."""
    from mlperf_jax import benchmarks
    from mlperf_jax.results.runs import Scalars

    benchmark = benchmarks.get(name, tiny=True)
    with tempfile.TemporaryDirectory() as folder:
        samples = benchmark.samples(STEPS)
        given = dict(optimizer=optimizer, output=folder, max_samples=samples, seed=1, log_every=1)
        result = benchmarks.run(name, tiny=True, show="none", **given)
        lines = Scalars.read(pathlib.Path(folder) / "run_0" / "scalars.jsonl")
    losses = [line["loss"] for line in lines]
    return {"samples": result.samples, "wanted": samples, "losses": losses}


def in_a_process(name: str, todo: list[tuple[str, str, int]], devices: int, keep: str) -> None:
    """Tries some optimizers on one benchmark, in a process that has so many devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    given = json.dumps([optimizer for _, optimizer, _ in todo])
    command = [sys.executable, __file__, "--child", given, "--keep", keep, name]
    subprocess.run(command, env={**os.environ, "XLA_FLAGS": flags}, check=False)


def child(name: str, optimizers: list[str], keep: str) -> None:
    """The process that tries."""
    import jax

    from mlperf_jax.errors import UserError

    for optimizer in optimizers:
        try:
            found = tried(name, optimizer)
        except UserError as error:
            found = {"error": str(error)}
        line = {"benchmark": name, "optimizer": optimizer, "devices": jax.device_count(), **found}
        with open(keep, "a") as file:
            file.write(json.dumps(line) + "\n")


def table(lines: list[dict[str, Any]], names: list[str]) -> str:
    """Which benchmarks took their ten steps with which optimizer, with the first and the last loss."""
    rows = ["| optimizer | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    found = {(x["benchmark"], x["optimizer"], x["devices"]): x for x in lines}
    pairs = [(optimizer, 1) for optimizer in OPTIMIZERS] + [(o, 8) for o in ON_EIGHT]
    for optimizer, devices in pairs:
        cells = [_cell(found.get((name, optimizer, devices))) for name in names]
        where = f"`{optimizer}`" + (" on 8 devices" if devices == 8 else "")
        rows.append(f"| {where} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _cell(line: dict[str, Any] | None) -> str:
    if line is None:
        return "not tried"
    if "error" in line:
        return line["error"]
    first, last = line["losses"][0], line["losses"][-1]
    if line["samples"] != line["wanted"] or None in (first, last):
        return f"stopped after {line['samples']:,} samples"
    return f"{first:.3g} → {last:.3g}"


def main() -> None:
    """Tries what is left and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--keep", required=True, help="file of what was tried")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.names[0], json.loads(given.child), given.keep)
        return
    from mlperf_jax import benchmarks

    names = given.names or list(benchmarks.names())
    kept = pathlib.Path(given.keep)

    def read() -> list[dict[str, Any]]:
        return [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []

    done = {(x["benchmark"], x["optimizer"], x["devices"]) for x in read()}
    todo = [case for case in cases(names) if case not in done]
    for name in names:
        for devices in (1, 8):
            mine = [case for case in todo if case[0] == name and case[2] == devices]
            if mine:
                in_a_process(name, mine, devices, given.keep)
    page = PAGE.format(count=len(OPTIMIZERS), families=len(FAMILIES), date=datetime.date.today())
    print(page + table(read(), names))


if __name__ == "__main__":
    main()
