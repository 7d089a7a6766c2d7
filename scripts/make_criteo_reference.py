"""Draws all 26 bag matrices of DLRM-DCNv2, prints their check values, and keeps three states of the generator.

    python scripts/make_criteo_reference.py        # five minutes, little memory

The stream of table 23 begins after 5.8 G draws, which no test can wait for; the states after tables 0, 9 and
21 let the tests begin near the tables they look at. The script compares every matrix with the md5 of the
fact sheet before it writes `tests/input_pipelines/data/criteo_states.npz`.
"""

from __future__ import annotations

import hashlib
import pathlib

import numpy as np

from mlperf_jax.input_pipelines import criteo
from mlperf_jax.input_pipelines.criteo import multi_hot

TARGET = pathlib.Path(__file__).parent.parent / "tests/input_pipelines/data/criteo_states.npz"
KEPT = (0, 9, 21)
MD5 = {
    0: "99e13cb2e1af617fc5dc4d6b8d1650cd",
    1: "32f9e04d86d4abdf8c39d0ddd24baba0",
    3: "be7864445e8c816604e91b50c80eb376",
    4: "5f6bbe756479d3e7d81f59f506a63add",
    9: "9dbe835e786f49ff96fd3a493cbae695",
    10: "9394d69053f83fd7069df14b1b30a2ea",
    11: "a90cbbe0ccad5dbf434cedee461c49df",
    13: "cad281f7edc0933562471c3fc15f03d5",
    14: "fe7969471bbbfacee5b2ce02365a45d8",
    15: "aefa1373c6d0632b33b5a3f279a18e64",
    19: "56e3646b07960cfdc45fb93cfdf382c6",
    20: "c4bc02281afd5034a73e1714c7962715",
    21: "efae54d96ce5de7523cbd51a5ae8f485",
    22: "9b17fe3973dddf053378844b292cea7e",
    23: "06ca161d2fd4e2cc53b1f4cdb12d37ec",
}


def main() -> None:
    random = np.random.RandomState(0)
    states = {}
    for table, (rows, size) in enumerate(zip(criteo.ROWS, criteo.BAGS)):
        digest, total = hashlib.md5(), 0
        for first, last in multi_hot.pieces(rows, size):
            bags = np.empty((last - first, size), np.int32)
            multi_hot.draw_bags(random, rows, first, bags)
            digest.update(bags.data)
            total += int(bags.sum(dtype=np.int64))
        found = digest.hexdigest()
        print(table, found, total, bags[-1, -1], flush=True)  # pyright: ignore
        if found != MD5.get(table, found):
            raise SystemExit(f"table {table}: md5 should be {MD5[table]}")
        if table in KEPT:
            state = random.get_state(legacy=False)["state"]  # pyright: ignore
            states |= {f"key_{table}": state["key"], f"position_{table}": state["pos"]}
    np.savez_compressed(TARGET, **states)


if __name__ == "__main__":
    main()
