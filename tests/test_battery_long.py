"""The battery's other half: what trains a tiny benchmark to its end, or compiles it in other ways.

`make test` runs it for what a change can have touched (selection.py says which), `make test-all` for all.
"""

from __future__ import annotations

import itertools
import json
import pathlib
import re
from typing import Any

import battery
import jax
import numpy as np
import pytest

from mlperf_jax import benchmarks
from mlperf_jax.core import mesh as meshes, state, step
from mlperf_jax.errors import UserError
from mlperf_jax.results import compliance, log as logs, runs
from mlperf_jax.testing import checks, runs as harness

pytestmark = [pytest.mark.parametrize("name", benchmarks.names()), pytest.mark.long]


def test_tiny_run_reaches_its_target(name: str, tiny_runs: Any) -> None:
    result, _ = tiny_runs(name)
    assert result.reached
    assert result.status == "success"
    assert result.tiny
    assert re.fullmatch(r"[0-9a-f]{64}", result.parameters_sha256)


def test_log_passes_the_official_checker(name: str, tiny_runs: Any) -> None:
    """What an open rule set holds against tiny sizes is listed in open_findings.txt, and only that."""
    _, output = tiny_runs(name)
    if "ruleset" in benchmarks.benchmark_class(name).absent:
        with pytest.raises(UserError, match="no official checker"):
            compliance.check(output / "result_0.txt", benchmarks.get(name).ruleset)
        return
    report = compliance.check(output / "result_0.txt", benchmarks.get(name).ruleset)
    listed = (battery.HERE / "open_findings.txt").read_text().splitlines()
    allowed = {line.partition(" ")[2] for line in listed if line.partition(" ")[0] == name}
    found = {finding.key for finding in report.findings if not finding.warning}
    # a set of one run is fewer than a score takes; the checker of single logs does not mind
    assert found - allowed == set(), str(report)
    assert report.success or allowed


def test_every_evaluation_line_says_epoch_and_samples(name: str, tiny_runs: Any) -> None:
    _, output = tiny_runs(name)
    lines = [line for line in logs.read(output / "result_0.txt") if line.key == "eval_accuracy"]
    assert lines
    for line in lines:
        assert {"epoch_num", "samples_count"} <= set(line.metadata)


def test_result_is_saved_and_says_what_it_is(name: str, tiny_runs: Any) -> None:
    result, output = tiny_runs(name)
    saved = json.loads((output / "run_0" / "result.json").read_text())
    assert saved["parameters_sha256"] == result.parameters_sha256
    assert saved["versions"]["jax"] == jax.__version__
    assert "unverified" in repr(result)
    assert "(tiny)" in str(result)


def test_loaded_weights_give_the_logged_quality_again(name: str, tiny_runs: Any) -> None:
    result, output = tiny_runs(name)
    trained = benchmarks.load(output)
    assert trained.benchmark.samples(trained.step) == result.samples
    assert trained.quality == result.quality
    assert trained.evaluate() == result.quality


def test_pictures_of_the_run(name: str, tiny_runs: Any) -> None:
    """What it found is drawn beside the truth, for those that can be drawn."""
    _, output = tiny_runs(name)
    if "pictures" in benchmarks.benchmark_class(name).absent:
        with pytest.raises(UserError, match=f"no pictures of {name}"):
            benchmarks.show(name, run=output)
        return
    for split in ("eval", "train"):
        picture = benchmarks.show(name, run=output, split=split, samples=2)
        assert min(picture.size) > 100


def test_killed_and_resumed_run_equals_the_undisturbed(
    name: str, data_dir: str, tmp_path: pathlib.Path, compile_cache: str
) -> None:
    """Thirty steps, SIGKILL at six points, checkpoint writes among them: the same bits and scalars.

    As the two runs are of different processes, it shows too that two equal runs end equal.
    """
    benchmark, every, steps = benchmarks.get(name, tiny=True), 7, 30
    offline = benchmark.metric.mode == "offline"
    chance = np.random.default_rng()
    kills: list[dict[str, int]] = [
        {"kill_before_step": 0},
        {"kill_before_step": int(chance.integers(1, every))},
        {"kill_in_save": 1},
        {"kill_before_step": int(chance.integers(every + 1, 2 * every))},
        {"kill_in_save": 1},
        {"kill_before_step": int(chance.integers(2 * every + 1, 3 * every))},
    ]
    print("killed at", kills)
    more = {"checkpoint_every": every, "max_samples": benchmark.samples(steps), "log_every": 1}
    if offline:  # such a run needs two checkpoints
        more["eval_every"] = benchmark.samples(steps // 2)
    undisturbed, killed = (
        harness.settings(data_dir, tmp_path / output, **more) for output in ("whole", "killed")
    )
    lives = [{**killed, "resume": number > 0} for number in range(len(kills) + 1)]
    tasks = [{"settings": undisturbed}]
    tasks += [{"settings": life, **kill} for life, kill in zip(lives, [*kills, {}])]
    wanted, *_, found = harness.one_after_another(compile_cache, name, tasks)
    if offline:
        wanted, found = (battery.scored(tmp_path / output) for output in ("whole", "killed"))
    assert wanted and found
    assert found["parameters_sha256"] == wanted["parameters_sha256"]
    assert found["quality"] == wanted["quality"]
    assert found["resumed"] == len(kills)
    logged = [tmp_path / output / "result_0.txt" for output in ("whole", "killed")]
    checks.log_is_whole(logged[1])
    assert battery.accuracies(logged[0]) == battery.accuracies(logged[1])
    scalars = [runs.Scalars.read(log.parent / "run_0" / "scalars.jsonl") for log in logged]
    assert scalars[0] == scalars[1]
    assert len(scalars[0]) == steps


def test_two_processes_train_as_one(
    name: str, few_steps: Any, tiny_data: Any, tmp_path: pathlib.Path, compile_cache: str
) -> None:
    """Two processes of four fake devices, the batch over all eight, in float64 against one device."""
    found = harness.weights(battery.two_processes(compile_cache, name, tiny_data(name), tmp_path))
    assert harness.distance(found, harness.weights(few_steps(name) / "one.npz")) < 1e-12


def test_learns_in_bfloat16_on_eight_devices(name: str, data_dir: str) -> None:
    """Five batches over and over: how each one's loss falls tells more than losses of different batches."""
    benchmark = benchmarks.get(name, tiny=True, dtype="bfloat16")
    assembly = state.assemble(benchmark, meshes.make_mesh("data=8"))
    losses = np.array(some_losses(assembly, data_dir, batches=5, rounds=8))
    assert np.isfinite(losses).all()
    falls = losses[0] - losses[-1]
    assert np.mean(falls) > 3 * np.std(falls) / np.sqrt(len(falls))


def some_losses(assembly: Any, data_dir: str, *, batches: int, rounds: int) -> list[list[float]]:
    """Each round's loss of each of the first batches, trained on from the start weights if there are any."""
    size, sharding = assembly.benchmark.rows, meshes.batch_sharding(assembly.mesh)
    stream = assembly.benchmark.data().train(data_dir).batched(size, seed=harness.SEED).stream()
    placed = [jax.device_put(batch, sharding) for batch in itertools.islice(stream, batches)]
    stream.close()
    train, key = step.jit_train_step(assembly), jax.random.key(harness.SEED)
    current, losses = assembly.begun(harness.SEED, data_dir), []
    with jax.set_mesh(assembly.mesh):
        for batch in placed * rounds:
            current, metrics = train(current, batch, key)
            losses.append(float(metrics["loss"]))
    return np.reshape(losses, (rounds, batches)).tolist()
