"""Data that the model makes itself: dealt out over the devices, sealed part by part, alike after a kill."""

import dataclasses
import itertools
import json
import pathlib
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import playing_toys
import pytest
import toys

from mlperf_jax.core import evaluation, generation, state as states
from mlperf_jax.core.benchmark import Parts, Target
from mlperf_jax.errors import Interrupted, UserError
from mlperf_jax.results import compliance, log as logs

pytestmark = pytest.mark.usefixtures("compiled_quickly")
SCRIPT = pathlib.Path(__file__).parent.parent / "toy_run.py"
HARD = (Target("accuracy", above=1.0),)
# one device, whose programs may come from the compile cache
OPTIONS = {"max_samples": 32 * 22, "checkpoint_every": 3, "mesh": "data=1"}
GENERATION = "mlperf_jax.core.generation"
# `Prompted` writes five times a generation: each of its two parts, the same with rewards, the whole.
# All but the last two kills come in generation 1.
KILLS = {
    "while its first part is written": [f"{GENERATION}:write_records", 6, "after"],
    "while the host rewards a part": [f"{GENERATION}:write_records", 7, "after"],
    "right after a part was sealed": [f"{GENERATION}:Generator._seal", 3, "after"],
    "before its last part is rewarded": [f"{GENERATION}:write_records", 9, "before"],
    "before parts become a generation": [f"{GENERATION}:Generator._merge", 2, "before"],
    "while parts become a generation": [f"{GENERATION}:write_records", 10, "after"],
    "right after it was made": [f"{GENERATION}:Generator._merge", 2, "after"],
    "in the steps that read it": ["mlperf_jax.core.profiling:Trace.step", 10, "before"],
    "after the evaluation at its end": ["mlperf_jax.core.evaluation:Evaluator.quality", 2, "after"],
}
LEFT = {  # the parts of generation 1 that are still to be played; those of later ones always are
    "while its first part is written": [0, 1],
    "while the host rewards a part": [0, 1],
    "right after a part was sealed": [1],
    "before its last part is rewarded": [1],
}


@pytest.fixture
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def folders(output):
    return sorted((output / "run_0" / "generated").glob("*"))


def made(output):
    return [generation.read_records(path) for path in folders(output)]


def assert_same(some, others):
    for one, two in zip(some, others, strict=True):
        assert one.keys() == two.keys()
        for name, rows in one.items():
            np.testing.assert_array_equal(rows, two[name])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(result, folder) of a run with prompts, rewards and games of any length."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return toys.run(playing_toys.Prompted(), folder, **OPTIONS), folder


# -- what is made ----------------------------------------------------------------------------------


def games_of_records(number):
    """The game of each record of a generation: each has as many as its own key says."""
    key = jax.random.fold_in(states.stream(1, "generation"), number)
    lengths = [int(jax.random.randint(jax.random.fold_in(key, n), (), 0, 5)) for n in range(96)]
    return np.repeat(np.arange(96), lengths)


def test_only_real_records_are_kept_in_the_games_order(undisturbed):
    for number, records in enumerate(made(undisturbed[1])):
        games = games_of_records(number)
        np.testing.assert_array_equal(records["ids"][:, 0], games % toys.ROWS)
        np.testing.assert_array_equal(records["ids"][:, 1], (games + number) % toys.ROWS)
        assert records["x"].shape == (len(games), toys.FEATURES)


def test_the_host_rewards_what_was_played(undisturbed):
    records = made(undisturbed[1])[0]
    np.testing.assert_array_equal(records["label"], (records["x"] @ toys.TRUTH).argmax(-1))


def test_part_p_of_generation_g_is_given_batch_g_times_parts_plus_p(undisturbed):
    """Inputs lie around the points of their own games."""
    batches = playing_toys.PointBatches(48, 1, lambda rows: (0, rows))
    for number, records in enumerate(made(undisturbed[1])):
        points = np.concatenate([batches[number * 2 + part]["point"] for part in (0, 1)])
        own, games = records["x"], games_of_records(number)
        right, wrong = (own - p[games] for p in (points, np.roll(points, 1, 0)))
        assert np.mean(right**2) < 1.2 and np.mean(wrong**2) > 2, "the noise has a variance of 1"


def test_records_depend_on_weights_and_generation(tmp_path):
    toys.run(toys.Endless(), tmp_path, max_samples=32 * 4)
    first, second = made(tmp_path)
    assert not np.array_equal(first["x"], second["x"])
    assert len(first["x"]) == len(second["x"]) == 96, "one record per game"


def test_generations_learn(tmp_path):
    assert toys.run(toys.SelfMade(targets=(Target("accuracy", at_least=0.6),)), tmp_path).reached


def test_records_are_sealed_before_the_first_step_that_reads_them(tmp_path):
    seen = []

    class Watched(toys.SelfMade):
        def generated_data(self, generations):
            seen.append((len(generations), [path.name for path in folders(tmp_path)]))
            assert all(isinstance(rows, np.memmap) for rows in generations[-1].values())
            return super().generated_data(generations)

    toys.run(Watched(targets=HARD), tmp_path, max_samples=32 * 10)
    assert seen == [(n, [f"{i:06d}" for i in range(n)]) for n in (1, 2, 3)]


# -- over the devices ------------------------------------------------------------------------------

COLLECTIVES = r"(all-reduce|all-gather|all-to-all|collective-\w+|reduce-scatter)[\w-]*\("


def program(benchmark, mesh):
    """(assembly, compiled program, its FLOPs on one device, the collectives in it)."""
    assembly = toys.prepared(benchmark, mesh)
    compiled = generation.compile_generate(assembly)
    costs = compiled.cost_analysis()
    costs = costs[0] if isinstance(costs, list) else costs
    return assembly, compiled, costs["flops"], re.findall(COLLECTIVES, compiled.as_text())


@pytest.mark.parametrize("mesh", ["data=8", "data=2,fsdp=4"])
def test_each_device_plays_its_share_alone(mesh):
    alone, shared = (program(playing_toys.Prompted(), m) for m in ("data=1", mesh))
    assert shared[3] == []
    assert shared[2] < alone[2] / 7.5, "an eighth of the work each"
    one, eighth = (p[1].memory_analysis().output_size_in_bytes for p in (alone, shared))
    padded = 48 * 4 * (4 * (toys.FEATURES + 2) + 1)  # four records a game and its length: a part's
    assert padded <= one < 1.2 * padded and eighth < padded / 7


@dataclasses.dataclass(frozen=True, kw_only=True)
class Large(toys.Layered, toys.Endless):
    """Its weights are split over fsdp."""

    def generate(self, model, games):
        x = jax.vmap(lambda key: jax.random.normal(key, (toys.FEATURES,)))(games.keys)
        return {"x": x, "y": model(x)}


def played(benchmark, mesh):
    """The records of part 1 of generation 0, from seed 3."""
    assembly, compiled, *_ = program(benchmark, mesh)
    view = assembly.eval_view(assembly.create(0))
    found = compiled(view, np.int32(0), np.int32(1), jax.random.key(3), {})
    ((first, end, shares),) = generation.own_records(*found)
    assert (first, end) == (0, 48) and len(shares) == assembly.mesh.shape[
        "data"
    ] * assembly.mesh.shape["fsdp"]
    return {name: np.concatenate([share[name] for share in shares]) for name in shares[0]}


def test_weights_that_are_split_are_gathered_and_games_still_dealt_out(x64):
    one, split = program(Large(), "data=1"), program(Large(), "data=2,fsdp=4")
    assert set(split[3]) == {"all-gather"} and split[2] < one[2] / 7
    wanted = played(Large(dtype="float64"), "data=1")
    for mesh in ("data=2,fsdp=4", "data=2,tensor=2", "fsdp=8"):
        assert toys.distance(wanted, played(Large(dtype="float64"), mesh)) < 1e-12


def test_one_device_and_eight_and_any_parts_end_equal(x64, tmp_path):
    """Records and weights are the same numbers, whoever plays the games and in how many parts."""
    cases = {"one": ("data=1", 2), "eight": ("data=8", 2), "parts": ("data=2,fsdp=2", 4)}
    for name, (mesh, count) in cases.items():
        benchmark = toys.Endless(dtype="float64", count=count, games=96 // count)
        toys.run(benchmark, tmp_path / name, mesh=mesh, max_samples=32 * 11)
    one, *others = (made(tmp_path / name) for name in cases)
    for other in others:
        assert len(other) == 3
        for first, second in zip(one, other, strict=True):
            assert toys.distance(first, second) < 1e-12


# -- killed, stopped, resumed ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder that holds a killed run for each of `KILLS`, by its number."""
    folder = tmp_path_factory.mktemp("killed")
    tasks = [
        {
            "toy": "playing_toys:Prompted",
            "options": {"output": str(folder / str(i)), **OPTIONS},
            "kill": kill,
        }
        for i, kill in enumerate(KILLS.values())
    ]
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), "apart", json.dumps(tasks)], capture_output=True, text=True
    )
    found = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    assert found == [{"status": -9, "said": ""}] * len(tasks), ended.stdout + ended.stderr
    return folder


@pytest.mark.parametrize("name", KILLS)
def test_killed_and_resumed_ends_equal(name, killed, undisturbed, monkeypatch):
    folder, parts = killed / str(list(KILLS).index(name)), []
    play = generation.Generator._play

    def noted(self, view, number, part):
        parts.append((number, part))
        play(self, view, number, part)

    monkeypatch.setattr(generation.Generator, "_play", noted)
    result = toys.run(playing_toys.Prompted(), folder, resume=True, **OPTIONS)
    whole, other = undisturbed
    assert result.parameters_sha256 == whole.parameters_sha256
    assert [path.name for path in folders(folder)] == [path.name for path in folders(other)]
    assert_same(made(folder), made(other))
    assert toys.keys(folder) == toys.keys(other)
    assert [part for number, part in parts if number == 1] == LEFT.get(name, [])


def test_a_signal_between_parts_stops_and_loses_none(undisturbed, tmp_path, monkeypatch):
    play, parts = generation.Generator._play, []

    def asked_to_stop(self, view, number, part):
        parts.append((number, part))
        play(self, view, number, part)
        if (number, part) == (1, 0):
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(generation.Generator, "_play", asked_to_stop)
    with pytest.raises(Interrupted, match="--resume takes the run up again"):
        toys.run(playing_toys.Prompted(), tmp_path, **OPTIONS)
    assert parts == [(0, 0), (0, 1), (1, 0)]
    result = toys.run(playing_toys.Prompted(), tmp_path, resume=True, **OPTIONS)
    assert result.parameters_sha256 == undisturbed[0].parameters_sha256
    assert parts[3:5] == [(1, 1), (2, 0)], "what was played is not played again"


# -- evaluation at the end of a generation ---------------------------------------------------------


def lines(output, key):
    return [line for line in logs.read(output / "result_0.txt") if line.key == key]


def test_generations_are_the_epochs_of_an_evaluation_at_their_ends(undisturbed):
    _, folder = undisturbed
    rows = [len(records["label"]) for records in made(folder)]
    windows = [rows[0], *(a + b for a, b in itertools.pairwise(rows))]
    ends = np.cumsum([count // 32 for count in windows])
    found = lines(folder, "eval_accuracy")
    assert [line.metadata["samples_count"] for line in found] == [32 * end for end in ends[:-1]]
    assert [line.metadata["epoch_num"] for line in found] == [1, 2]
    assert [line.metadata["first_epoch_num"] for line in lines(folder, "block_start")] == [1, 2, 3]
    (stop,) = lines(folder, "run_stop")
    assert 2 < stop.metadata["epoch_num"] < 3, "the limit ends the run within a generation"
    report = compliance.check(folder)
    assert report.success, report


class Noted:
    """Notes what happens in which order: a generation, an evaluation."""

    def __init__(self, monkeypatch):
        self.found = []
        for owner, name, word in (
            (generation.Generator, "run_generation", "generation"),
            (evaluation.Evaluator, "outputs", "evaluation"),
        ):
            monkeypatch.setattr(owner, name, self.noting(getattr(owner, name), word))

    def noting(self, method, word):
        def noted(*args, **kwargs):
            self.found.append(word)
            return method(*args, **kwargs)

        return noted


def test_an_evaluation_by_steps_may_fall_on_the_end_of_a_generation(tmp_path, monkeypatch):
    order = Noted(monkeypatch)
    toys.run(toys.Endless(eval_every=3), tmp_path, max_samples=32 * 10)
    # generations end after steps 3, 9, 15
    assert order.found == [
        "generation", "evaluation", "generation", "evaluation", "evaluation", "generation",
    ]  # fmt: skip
    block = ["block_start", "block_stop", "eval_start", "eval_accuracy", "eval_stop"]
    assert toys.keys(tmp_path)[3:] == [*block * 3, "block_start", "block_stop", "run_stop"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptedBeside(playing_toys.Prompted, toys.Beside):
    metric = toys.Slow()


def test_an_evaluation_that_is_due_comes_before_the_next_generation(tmp_path, monkeypatch):
    """The checkpoint at a generation's end is taken before its evaluation, and the run breaks off there."""
    order, outputs, calls = Noted(monkeypatch), evaluation.Evaluator.outputs, []

    def broken(self, *args):
        calls.append(1)
        if len(calls) == 2:
            raise OSError("the device is gone")
        return outputs(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation.Evaluator, "outputs", broken)
        with pytest.raises(OSError, match="device is gone"):
            toys.run(PromptedBeside(), tmp_path / "a", **OPTIONS)
    order.found.clear()
    result = toys.run(PromptedBeside(), tmp_path / "a", resume=True, **OPTIONS)
    assert order.found == ["evaluation", "generation"]
    whole = toys.run(PromptedBeside(), tmp_path / "b", **OPTIONS)
    assert result.parameters_sha256 == whole.parameters_sha256
    assert toys.keys(tmp_path / "a") == toys.keys(tmp_path / "b")
    assert [line.metadata for line in lines(tmp_path / "a", "eval_accuracy")] == [
        line.metadata for line in lines(tmp_path / "b", "eval_accuracy")
    ]


# -- what is refused -------------------------------------------------------------------------------


def test_too_few_records_are_refused(tmp_path):
    with pytest.raises(UserError, match="generation 0 has fewer records than one batch of 32"):
        toys.run(toys.SelfMade(count=1, games=24), tmp_path)


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        ({"x": np.zeros((5, 2))}, r"gives 'x' of shape \[5, 1, 2\] for 6 games"),
        (({"x": np.zeros((6, 3)), "y": np.zeros((6, 4))}, np.zeros(6, int)), r"'y' of shape \[6, 4\]"),
        (({"x": np.zeros((6, 3))}, np.zeros(5, int)), r"'lengths' of shape \[5\] for 6 games"),
        ({"x": np.zeros(6, jax.numpy.bfloat16)}, "gives 'x' as bfloat16"),
        ({}, "gives no records"),
    ],
)  # fmt: skip
def test_records_of_another_shape_are_refused(made, sentence):
    class Wrong(toys.Endless):
        def generate(self, model, games):
            return made

    with pytest.raises(UserError, match=sentence):
        generation.compile_generate(toys.prepared(Wrong(), "data=8"))


def test_lengths_beyond_the_records_are_refused(tmp_path):
    class Boasting(toys.Endless):
        def generate(self, model, games):
            records = super().generate(model, games)
            return {name: rows[:, None] for name, rows in records.items()}, games.numbers % 2 + 1

    with pytest.raises(UserError, match="gives 1 records of a game and says 2 are real"):
        toys.run(Boasting(), tmp_path)


@pytest.mark.parametrize(
    ("label", "sentence"),
    [
        (
            lambda records: records["x"][1:, 0],
            "reward must return arrays of numbers, a row per record",
        ),
        (lambda records: [None] * len(records["x"]), r"a row per record, not .*'label' object\["),
        (
            lambda records: records["x"][:, 0].astype("f4" if 0 in records["ids"] else "f2"),
            "records of .* and another of .*",
        ),
    ],
)
def test_rewards_that_are_not_arrays_of_one_kind_are_refused(label, sentence, tmp_path):
    class Wrong(playing_toys.Prompted):
        def reward(self, records):
            return {**records, "label": label(records)}

    with pytest.raises(UserError, match=sentence):
        toys.run(Wrong(games=16), tmp_path)  # its second part is of the games 16 to 31


@pytest.mark.parametrize(("count", "games"), [(0, 8), (1, 0), (1.5, 8), (1, True)])
def test_parts_are_whole_numbers(count, games):
    with pytest.raises(UserError, match="must be"):
        Parts(count, games)


def test_a_part_that_lacks_games_is_named(tmp_path):
    part = tmp_path / "0000.part"
    for name in ("00000000-00000004", "00000008-00000012"):
        (part / name).mkdir(parents=True)
    with pytest.raises(UserError, match="lacks records of game 4: every process must see"):
        generation._pieces(part, 12)


def test_missing_and_damaged_records_are_named(undisturbed, tmp_path):
    with pytest.raises(UserError, match="holds no generated records"):
        generation.read_records(tmp_path / "000007")
    source = folders(undisturbed[1])[0] / "x.npy"
    (tmp_path / "x.npy").write_bytes(source.read_bytes()[:500])
    with pytest.raises(UserError, match="cannot be read"):
        generation.read_records(tmp_path)
