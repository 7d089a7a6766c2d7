"""What a submission folder says about its runs, and that hostile values stay text in it."""

import json
import os
import subprocess

import pytest
from submission_sets import CONFIG, command_of, files

from mlperf_jax.errors import UserError

pytest.importorskip("mlperf_logging")


def test_the_scripts_repeat_the_runs(rehearsal, unjudged, tmp_path):
    options = {"mesh": "data=8", "coordinator": "host0:1", "processes": 2, "process": 0}
    unjudged(rehearsal(options=options), machine={}, url="https://example.org/code.git")
    how = tmp_path / "out/Acme/benchmarks/resnet/v5e-8"
    for script in how.glob("*.sh"):
        subprocess.run(["bash", "-n", script], check=True)
        assert os.access(script, os.X_OK)
    command = command_of(how / "run_and_time.sh")
    assert command[:3] == ["mlperf-jax", "run", "resnet"]
    line = " ".join(command)
    for option in (
        "--runs 5",
        "--division closed",
        "--mesh data=8",
        "--org Acme",
        "--dtype bfloat16",
        "--batch-size 3264",
        "--clip-norm none",
        "--no-flip",
        "--stages 3 4 6 3",
        "--targets accuracy>=0.759",
        "--coordinator $COORDINATOR --processes 2 --process $PROCESS",
        "--output $OUTPUT --data-dir $DATA_DIR",
    ):
        assert option in line
    assert "--seed" not in line and "/home/me" not in "".join(map(str, files(how).values()))
    setup = (how / "setup.sh").read_text()
    assert "'jax[tpu]==0.10.2'" in setup
    assert f"git+https://example.org/code.git@{'0' * 40}" in setup
    assert json.loads((how / "config.json").read_text())["config"]["batch_size"] == 3264
    system = json.loads((how.parents[2] / "systems/v5e-8.json").read_text())
    assert (system["number_of_nodes"], system["accelerators_per_node"]) == ("2", "4")
    assert system["framework"] == "JAX 0.10.2"


def test_the_command_is_read_back_by_the_command_line(rehearsal, unjudged, tmp_path):
    from mlperf_jax import benchmarks
    from mlperf_jax.cli import named

    config = json.loads(json.dumps(benchmarks.get("resnet", batch_size=4096).config()))
    config.pop("benchmark")
    unjudged(rehearsal(division="open", config=config))
    command = command_of(tmp_path / "out/Acme/benchmarks/resnet/v5e-8/run_and_time.sh")
    given = named.parse("run", "runs it", command[2:], named.run_options())
    benchmark, options, _ = named.made(given)
    assert benchmark == benchmarks.get("resnet", batch_size=4096)
    assert (options.runs, options.division, options.org, options.status) == (
        5,
        "open",
        "Acme",
        "onprem",
    )


def test_hostile_values_stay_text(rehearsal, unjudged, tmp_path):
    bait = tmp_path / "bait"
    hostile = f"x'; touch {bait}; echo '$(touch {bait}) `touch {bait}` <script>"
    config = CONFIG | {"note": hostile, "words": ["--x", hostile], f"k; touch {bait}": 1}
    made = unjudged(rehearsal(config=config, options={"mesh": hostile}), submitter="A <b> $(id)")
    how = tmp_path / "out/Acme/benchmarks/resnet/v5e-8"
    bin = tmp_path / "bin"
    bin.mkdir()
    for name in ("mlperf-jax", "python"):
        (bin / name).write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        (bin / name).chmod(0o755)
    env = {"PATH": f"{bin}:{os.environ['PATH']}", "DATA_DIR": "d", "SOURCE": "s", "REPOSITORY": "r"}
    outputs = [
        subprocess.run(["bash", script], env=env, capture_output=True, text=True).stdout
        for script in how.glob("*.sh")
    ]
    assert not bait.exists()
    assert any("resnet" in output for output in outputs)
    assert any("words" in text and "run_and_time.sh" in text for text in made.to_fill)
    assert "<b>" not in made._repr_html_().replace(f"<b>{made.path}", "")


def test_code_is_copied_and_hidden_files_are_not(rehearsal, unjudged, tmp_path):
    code = tmp_path / "code"
    (code / "src").mkdir(parents=True)
    (code / "src/a.py").write_text("a = 1\n")
    (code / ".git").mkdir()
    (code / ".git/config").write_text("secret")
    made = unjudged(rehearsal(), code=code, commit=None)
    assert made.success, str(made)
    implementation = tmp_path / "out/Acme/benchmarks/resnet/implementations/mlperf_jax"
    assert set(files(implementation)) == {"README.md", "source.json", "code/src/a.py"}
    assert not any("README" in text for text in made.to_fill)
    assert (
        "implementations/mlperf_jax/code"
        in (tmp_path / "out/Acme/benchmarks/resnet/v5e-8/setup.sh").read_text()
    )
    (code / "link.py").symlink_to(code / "src/a.py")
    with pytest.raises(UserError, match="is a link"):
        unjudged(rehearsal(), code=code, system="other")
    (code / "link.py").unlink()
    (code / "a b.py").write_text("")
    with pytest.raises(UserError, match="has a space"):
        unjudged(rehearsal(), code=code, system="other")
