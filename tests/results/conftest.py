"""A small, complete resnet log, written with our own writer, to be spoilt line by line."""

import json
import pathlib

import pytest

from mlperf_jax.results import rules
from mlperf_jax.results.log import Log, read
from mlperf_jax.results.opening import header

VALUES = json.loads((pathlib.Path(__file__).parent / "resnet_values.json").read_text())


@pytest.fixture
def resnet_log(tmp_path):
    """Returns a function that writes a log and returns its path.

    `spoil` gets each line's (method, key, value, metadata) and returns it, changed or as it is, or
    None to leave the line out.
    """

    def write(name="result_0.txt", *, division="open", optimizer="lars", spoil=None, seed=7):
        spoil = spoil or (lambda *line: line)
        path = tmp_path / name
        path.unlink(missing_ok=True)
        with Log(tmp_path / "header.txt") as log:
            header(
                log,
                rules.resolve("resnet"),
                division=division,
                org="a lab",
                platform="1 x cpu",
                status="research",
                seed=seed,
            )
        lines = [("event", line.key, line.value, {}) for line in read(tmp_path / "header.txt")]
        (tmp_path / "header.txt").unlink()
        lines += [("start", "init_start", None, {})]
        lines += [
            ("event", key, value, {})
            for key, value in (VALUES["sizes"] | VALUES[optimizer]).items()
        ]
        lines += [("stop", "init_stop", None, {}), ("start", "run_start", None, {})]
        for epoch, accuracy in ((3, 0.41), (7, 0.7591)):
            block = {"first_epoch_num": max(1, epoch - 3), "epoch_count": 4}
            lines += [
                ("start", "block_start", None, block),
                ("stop", "block_stop", None, {"first_epoch_num": block["first_epoch_num"]}),
                ("start", "eval_start", None, {"epoch_num": epoch}),
                ("event", "eval_accuracy", accuracy, {"epoch_num": epoch}),
                ("stop", "eval_stop", None, {"epoch_num": epoch}),
            ]
        lines += [("stop", "run_stop", None, {"status": "success"})]
        with Log(path) as log:
            for line in lines:
                changed = spoil(*line)
                if changed is not None:
                    method, key, value, metadata = changed
                    getattr(log, method)(key, value, **metadata)
        return path

    return write
