"""A run killed at any instant and resumed ends as an undisturbed one does."""

import json
import pathlib
import subprocess
import sys

import jax
import more_toys
import optax
import pytest
import toys

from mlperf_jax.core.benchmark import Target
from mlperf_jax.errors import UserError
from mlperf_jax.results import compliance, log as logs
from mlperf_jax.results.runs import RunFolder

pytestmark = pytest.mark.usefixtures("compiled_quickly")
SCRIPT = pathlib.Path(__file__).parent.parent / "toy_run.py"
CORE = "mlperf_jax.core"
# what is killed, at which call, and how often the run then counts as resumed. The toy evaluates and
# saves after steps 10, 20 and 30, where it ends.
KILLS = {
    "before run_start": ([f"{CORE}.run:Run.begin_run", 1, "before"], 0),
    "right after run_start": ([f"{CORE}.run:Run.begin_run", 1, "after"], 1),
    "before the first checkpoint": ([f"{CORE}.profiling:Trace.step", 6, "before"], 1),
    "while the first checkpoint is written": (
        [f"{CORE}.checkpoints.arrays:start_writing", 1, "after"],
        1,
    ),
    "while the second checkpoint is completed": (
        [f"{CORE}.checkpoints:Checkpoints._complete", 2, "before"],
        1,
    ),
    "right after a checkpoint": ([f"{CORE}.checkpoints.folder:Folder.commit", 2, "after"], 1),
    "between two checkpoints": ([f"{CORE}.profiling:Trace.step", 26, "before"], 1),
    "in an evaluation": ([f"{CORE}.evaluation:Evaluator.result", 2, "before"], 1),
    "right after run_stop": ([f"{CORE}.run:Run.finish", 1, "before"], 1),
    "before result.json": (["mlperf_jax.results.runs:RunFolder.save_result", 1, "before"], 1),
}


OTHERS = ["Packed", "Growing", "Planned", "Routed", "Partial"]
OFTEN = {"checkpoint_every": 4}
THEIR_STEPS = (3, 8)  # before which they are killed: before the first checkpoint, and between two

ONE = {"mesh": "data=1"}  # whose programs may come from the compile cache


def run(benchmark, output, **more):
    return toys.run(benchmark, output, **{**ONE, **more})


def task(folder, kill, toy="Toy", **options):
    return {"toy": toy, "kill": kill, "options": {"output": str(folder), **ONE, **options}}


def before_step(number):
    return [f"{CORE}.profiling:Trace.step", number, "before"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return run(toys.Toy(), folder), folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of all killed runs: for each of `KILLS` by its number, for others by the toy's name."""
    folder = tmp_path_factory.mktemp("killed")
    tasks = [task(folder / str(i), kill) for i, (kill, _) in enumerate(KILLS.values())]
    tasks += [
        task(folder / toy / str(number), before_step(number), f"more_toys:{toy}", **OFTEN)
        for toy in OTHERS
        for number in THEIR_STEPS
    ]
    tasks += [task(folder / "Featured", before_step(14), "Featured")]
    tasks += [task(folder / "thrice", before_step(5))]
    tasks += [task(folder / "thrice", before_step(13), resume=True)] * 2
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), "apart", json.dumps(tasks)], capture_output=True, text=True
    )
    found = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    assert len(found) == len(tasks), ended.stderr
    for given, end in zip(tasks, found, strict=True):
        assert end == {"status": -9, "said": ""}, (given, end["said"])
    return folder


@pytest.mark.parametrize("name", KILLS)
def test_killed_and_resumed_ends_equal(name, killed, undisturbed):
    folder = killed / str(list(KILLS).index(name))
    result = run(toys.Toy(), folder, resume=True)
    whole, other = undisturbed
    assert result.parameters_sha256 == whole.parameters_sha256
    assert result.quality == whole.quality and result.samples == whole.samples
    assert result.resumed == KILLS[name][1]
    assert toys.keys(folder) == toys.keys(other), "each line once, in order"
    assert toys.scalar_steps(folder) == toys.scalar_steps(other)
    assert compliance.check(folder).success
    with pytest.raises(UserError, match="no unfinished run"):
        run(toys.Toy(), folder, resume=True)


@pytest.mark.parametrize("toy", OTHERS)
def test_other_toys_killed_and_resumed_end_equal(toy, killed, tmp_path):
    benchmark = getattr(more_toys, toy)()
    whole = run(benchmark, tmp_path, **OFTEN)
    for number in THEIR_STEPS:
        folder = killed / toy / str(number)
        result = run(benchmark, folder, resume=True, **OFTEN)
        assert result.parameters_sha256 == whole.parameters_sha256
        assert (result.quality, result.samples) == (whole.quality, whole.samples)
        assert toys.keys(folder) == toys.keys(tmp_path)


def test_every_resumption_is_counted(killed, undisturbed):
    result = run(toys.Toy(), killed / "thrice", resume=True)
    assert result.resumed == 3
    assert result.parameters_sha256 == undisturbed[0].parameters_sha256


# -- what is refused, and what is mended -----------------------------------------------------------


def broken_off(folder, cls=toys.Toy, at=25, fields=None, **more):
    """A run that failed at this step, with whole checkpoints before it."""
    with toys.failing(cls, at), pytest.raises(UserError, match="damaged"):
        run(cls(**(fields or {})), folder, **more)


@pytest.mark.parametrize(("toy", "mesh"), [(toys.Plain, "data=1"), (toys.Beside, "data=4,fsdp=2")])
def test_an_optimizer_that_draws_random_numbers_goes_on_with_them(toy, mesh, tmp_path):
    noisy = optax.noisy_sgd(0.1, eta=0.1, gamma=0.5, key=jax.random.key(0))
    given = {"optimizer": noisy, "mesh": mesh, "max_samples": 32 * 25}
    fields = {"nonfinite": "skip", "poisoned": (3, 22), "targets": toys.Hopeless.targets}
    whole = run(toy(**fields), tmp_path / "whole", **given)
    broken_off(tmp_path / "broken", toy, at=23, fields=fields, **given)
    result = run(toy(**fields), tmp_path / "broken", resume=True, **given)
    assert result.resumed == 1 and result.parameters_sha256 == whole.parameters_sha256


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, undisturbed):
    broken_off(tmp_path)
    checkpoints = sorted((tmp_path / "run_0" / "checkpoints").glob("step_*"))
    assert [path.name for path in checkpoints] == ["step_00000010", "step_00000020"]
    data = checkpoints[1] / "small_00000"  # all that a toy has
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    result = run(toys.Toy(), tmp_path, resume=True)
    assert result.parameters_sha256 == undisturbed[0].parameters_sha256
    assert toys.keys(tmp_path) == toys.keys(undisturbed[1])
    assert toys.scalar_steps(tmp_path) == toys.scalar_steps(undisturbed[1])


def test_averages_and_frozen_start_weights_survive(tmp_path):
    whole = run(toys.Started(), tmp_path / "whole")
    broken_off(tmp_path / "broken", toys.Started, at=14)
    result = run(toys.Started(), tmp_path / "broken", resume=True)
    assert result.parameters_sha256 == whole.parameters_sha256
    # quality comes from the averaged weights, which the start's must not replace
    values = [
        [
            line.value
            for line in logs.read(tmp_path / name / "result_0.txt")
            if "accuracy" in line.key
        ]
        for name in ("whole", "broken")
    ]
    assert values[0] == values[1]


def test_untrained_tables_are_read_again_and_are_in_no_checkpoint(killed, tmp_path):
    whole = run(toys.Featured(), tmp_path)
    result = run(toys.Featured(), killed / "Featured", resume=True)
    assert result.resumed == 1 and result.reached
    assert result.parameters_sha256 == whole.parameters_sha256
    assert result.quality == whole.quality
    files = (killed / "Featured" / "run_0" / "checkpoints").rglob("*")
    held = b"".join(path.read_bytes() for path in files if path.is_file())
    assert b"items" in held and b"features" not in held


def test_another_configuration_is_refused(tmp_path):
    broken_off(tmp_path, at=3)
    with pytest.raises(UserError, match=r"rate was 0\.2 and is now 0\.1"):
        run(toys.Toy(rate=0.1), tmp_path, resume=True)
    with pytest.raises(UserError, match="configuration"):
        run(toys.Toy(), tmp_path, resume=True, optimizer=optax.sgd(0.1))
    with pytest.raises(UserError, match="has seed 1, not 5"):
        run(toys.Toy(), tmp_path, resume=True, seed=5)
    assert RunFolder(tmp_path, 0).path.exists()


def test_another_optimizer_of_the_same_name_is_refused(tmp_path):
    broken_off(tmp_path, at=12, optimizer=optax.adam(1e-2))
    with pytest.raises(UserError, match="optimizer was"):
        run(toys.Toy(), tmp_path, resume=True, optimizer=optax.adam(1e-3))
    assert run(toys.Toy(), tmp_path, resume=True, optimizer=optax.adam(1e-2)).resumed == 1


@pytest.mark.parametrize(
    "optimizer", ["lamb:1e-2", "muon:1e-2", optax.contrib.schedule_free_adamw(1e-2)]
)
def test_optimizers_with_nested_state_are_resumed(optimizer, tmp_path):
    short = dict(max_samples=32 * 15, optimizer=optimizer, mesh="data=2,fsdp=4")
    endless = {"targets": (Target("accuracy", above=1.0),)}
    benchmark = toys.Layered(**endless)
    whole = run(benchmark, tmp_path / "whole", **short)
    broken_off(tmp_path / "broken", toys.Layered, at=12, fields=endless, **short)
    result = run(benchmark, tmp_path / "broken", resume=True, **short)
    assert result.parameters_sha256 == whole.parameters_sha256


def test_resuming_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="no unfinished run"):
        run(toys.Toy(), tmp_path / "none", resume=True)


def test_a_run_may_go_on_on_another_mesh(tmp_path):
    broken_off(tmp_path, mesh="data=8")
    result = run(toys.Toy(), tmp_path, resume=True, mesh="data=2,fsdp=2")
    assert result.reached and result.mesh["fsdp"] == 2
