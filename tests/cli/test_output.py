"""Where findings go: the output, a file of JSON, or both."""

import json
from types import SimpleNamespace

import pytest

from mlperf_jax.cli import output
from mlperf_jax.errors import UserError

REPORT = SimpleNamespace(to_dict=lambda: {"seconds": 1.5})


def test_json_alone_or_beside_the_text(capsys, tmp_path):
    output.say(REPORT, "-")
    assert json.loads(capsys.readouterr().out) == {"seconds": 1.5}
    output.say(REPORT, None)
    output.say(REPORT, str(tmp_path / "found.json"))
    assert capsys.readouterr().out == f"{REPORT}\n" * 2
    written = json.loads((tmp_path / "found.json").read_text())
    assert written == {"generator": "made by mlperf_jax", "seconds": 1.5}


def test_the_target_leaves_the_options(tmp_path):
    given = {"json": "-", "seed": 1}
    assert (output.json_target(given), given) == ("-", {"seed": 1})
    assert output.json_target(given) is None
    for bad, said in (
        (tmp_path, "is a folder"),
        (tmp_path / "no" / "found.json", "there is no folder"),
    ):
        with pytest.raises(UserError, match=said):
            output.json_target({"json": str(bad)})
