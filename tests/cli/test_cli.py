"""The command line: what is passed on, what is refused in one sentence, and the exit codes."""

import dataclasses
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

import mlperf_jax
from mlperf_jax import benchmarks, cli
from mlperf_jax.cli import options, results as result_commands
from mlperf_jax.cli.options import Option
from mlperf_jax.core import bench
from mlperf_jax.core.benchmark import Target
from mlperf_jax.core.options import RunOptions
from mlperf_jax.core.preemption import Interrupted
from mlperf_jax.errors import UserError
from mlperf_jax.results import log as logs, rules


@pytest.fixture(scope="module")
def tiny_data(tmp_path_factory):
    """The folder of resnet's tiny data, built by the command line."""
    folder = tmp_path_factory.mktemp("data")
    assert cli.main(["data", "build", "resnet", "--tiny", "--data-dir", str(folder)]) == 0
    return str(folder)


@pytest.fixture
def ran(monkeypatch):
    """What `run` was called with, instead of a training run."""
    calls = []

    def record(**settings):
        calls.append(settings)
        return SimpleNamespace(reached=True, log="a log")

    monkeypatch.setattr(benchmarks, "run", record)
    return calls


def sentence(capsys, argv, code=2):
    """What a command that must fail says: one line, no traceback, no box."""
    assert cli.main([str(word) for word in argv]) == code
    said = capsys.readouterr().err
    assert said.startswith("mlperf-jax: ")
    assert said.count("\n") == 1, said
    assert not set(said) & set("╭│╰"), said
    return said


# -- list and help -----------------------------------------------------------------------------


def test_list_is_aligned_text_in_a_pipe(capsys):
    assert cli.main(["list"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["benchmark", "model", "data", "target", "rounds", "status"]
    assert len(rows) == len(rules.entries())
    column = header.index("status")
    assert {row[column:] for row in rows} == {"tiny, full", "planned"}
    assert rows[0].split()[0] == "resnet"
    assert "accuracy at least 0.759" in rows[0]
    assert "0.5-4.0" in rows[0]


def test_list_as_json(capsys):
    assert cli.main(["list", "--json"]) == 0
    rows = {row["benchmark"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["resnet"]["status"] == "tiny, full"
    assert rows["resnet"]["targets"] == [{"name": "accuracy", "at_least": 0.759}]
    assert rows["bert"]["status"] == "planned"


def test_list_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "160")
    assert cli.main(["list"]) == 0
    assert "ResNet-50 v1.5" in capsys.readouterr().out


def test_every_benchmark_of_ours_is_in_the_table():
    assert set(benchmarks.names()) <= set(rules.entries())


def test_rounds_are_spans():
    every = ("0.5", "0.6", "0.7", "1.0", "1.1")
    assert result_commands.rounds(every, every, "training") == "0.5-1.1"
    assert result_commands.rounds(("0.5", "0.7", "1.0"), every, "training") == "0.5, 0.7-1.0"
    assert result_commands.rounds(("1.1",), every, "hpc") == "HPC 1.1"


def test_help_and_version(capsys):
    for argv in ([], ["--help"], ["data", "--help"]):
        assert cli.main(argv) == 0
        out = capsys.readouterr().out
        assert all(command in out for command in cli.COMMANDS)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"mlperf-jax {mlperf_jax.__version__}\n"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(command, capsys):
    assert cli.main([*command.split(), "--help"]) == 0
    assert f"usage: mlperf-jax {command}" in capsys.readouterr().out


def test_help_of_run_shows_the_fields_with_their_values(capsys):
    assert cli.main(["run", "resnet", "--tiny", "--help"]) == 0
    out = capsys.readouterr().out
    for field in dataclasses.fields(RunOptions):
        assert "--" + field.name.replace("_", "-") in out
    tiny = benchmarks.get("resnet", tiny=True)
    assert f"(default: {tiny.batch_size}; samples, at least 1)" in out
    flowing = " ".join(out.replace("│", " ").split())
    for shown in (
        "--base-lr X (default: 2.5; at least 0)",
        "--momentum X (default: 0.9; at least 0 and below 1)",
        "--image-size N (default: 32; pixels, at least 1)",
        "--stages N ... (default: 1 1 1 1; at least 1)",
        "--opt-name {lars,sgd} (default: lars)",
        "--clip-norm X (above 0)",
        "--division {closed,open}",
        "(default: 30; seconds, at least 1)",
    ):
        assert shown in flowing
    assert "warm-up included" in out  # the comment behind the field
    assert "take up the unfinished run" in out  # the line under Attributes:


def test_help_and_mistyped_words_do_not_wait_for_jax():
    """Only the help of a named benchmark does: its fields stand beside its model."""
    lines = ["--help", *(f"{command} --help" for command in cli.COMMANDS)]
    lines += ["rum", "run", "run resnt --tiny", "bench resnt", "plan", "score --offical", "data"]
    code = f"import sys, mlperf_jax.cli as c; [c.main(line.split()) for line in {lines}]"
    code += "; sys.exit('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "did you mean 'resnet'?" in done.stderr


# -- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", benchmarks.names())
def test_no_field_is_named_like_a_run_option(name):
    fields = {f.name for f in dataclasses.fields(benchmarks.benchmark_class(name))}
    assert not fields & {f.name for f in dataclasses.fields(RunOptions)}
    assert not fields & benchmarks.RESERVED


@pytest.mark.parametrize("name", benchmarks.names())
def test_every_field_can_be_typed(name):
    for cls in (RunOptions, benchmarks.benchmark_class(name)):
        offered = {option.name for option in options.options_of(cls)}
        assert offered == {field.name for field in dataclasses.fields(cls)}


def test_only_what_was_typed_is_passed_on(ran):
    argv = "run resnet --batch-size 4096 --no-flip --stages 1 2 3 4 --base-lr=1e-3 --mesh data=8"
    assert cli.main(argv.split()) == 0
    assert ran == [
        {
            "name": "resnet",
            "batch_size": 4096,
            "flip": False,
            "stages": (1, 2, 3, 4),
            "base_lr": 1e-3,
            "mesh": "data=8",
        }
    ]


def test_switches_targets_and_none(ran):
    argv = "run --tiny resnet --resume --optimizer adamw:1e-3 --clip-norm none".split()
    assert cli.main([*argv, "--targets", "accuracy>=0.9", "accuracy > 0.5"]) == 0
    assert ran == [
        {
            "name": "resnet",
            "tiny": True,
            "resume": True,
            "optimizer": "adamw:1e-3",
            "clip_norm": None,
            "targets": (Target("accuracy", at_least=0.9), Target("accuracy", above=0.5)),
        }
    ]


def test_a_typed_batch_size_brings_its_recipe():
    given = {"name": "resnet", "batch_size": 4096, "seed": 3}
    benchmark, settings, rest = cli.made(given)
    assert benchmark == benchmarks.get("resnet", batch_size=4096)
    assert benchmark.bn_span == 64
    assert settings == RunOptions(seed=3)
    assert rest == {}


def test_underscores_and_equals_are_accepted(ran):
    assert cli.main(["run", "resnet", "--data_dir=some=where", "--batch_size", "1632"]) == 0
    assert ran[0]["data_dir"] == "some=where"
    assert ran[0]["batch_size"] == 1632


@pytest.mark.parametrize(
    ("word", "target"),
    [
        ("accuracy>=0.95", Target("accuracy", at_least=0.95)),
        ("FID <= 90", Target("FID", at_most=90)),
        ("pass_at_4>0.69", Target("pass_at_4", above=0.69)),
    ],
)
def test_targets_are_read(word, target):
    assert options.read_target(word) == target


@pytest.mark.parametrize("word", ["accuracy", "accuracy=0.9", ">=0.9", "accuracy>=much", "a>=nan"])
def test_a_target_that_cannot_be_read(word):
    with pytest.raises(ValueError):  # noqa: PT011 - its text is not shown
        options.read_target(word)


def test_fields_of_other_types_are_not_offered():
    @dataclasses.dataclass
    class Odd:
        table: dict | None = None
        pair: tuple[int, str] = (1, "a")
        either: int | str = 1
        fine: float | None = None

    assert [option.name for option in options.options_of(Odd)] == ["fine"]


def test_words_without_an_option_are_free():
    known = [Option("tiny", bool), Option("stages", tuple[int, ...]), Option("seed", int)]
    free, taken = options.split(["--tiny", "resnet", "--stages", "1", "-2", "--seed", "3"], known)
    assert free == ["resnet"]
    assert taken == {"--tiny": [], "--stages": ["1", "-2"], "--seed": ["3"]}
    assert options.split(["--json", "-", "x"], [Option("json")]) == (["x"], {"--json": ["-"]})


# -- bad input ---------------------------------------------------------------------------------

REFUSED = [
    ("rum resnet", "no command 'rum': did you mean 'run'?"),
    ("data resnet", "no command 'data resnet'"),
    ("data", "data needs a verb"),
    ("run", "needs the name of a benchmark (resnet, "),
    ("run resnt --tiny", "no benchmark 'resnt': did you mean 'resnet'?"),
    ("bench resnt", "no benchmark 'resnt': did you mean 'resnet'?"),
    ("data check resnt", "no benchmark 'resnt': did you mean 'resnet'?"),
    ("run resnet --batchsize 64", "no option --batchsize: did you mean '--batch-size'?"),
    ("run resnet -x", "no option -x"),
    ("run resnet --no-resume", "no option --no-resume"),
    ("run resnet --size tiny", "no option --size"),
    (
        "run resnet --batch-size lots",
        "--batch-size must be a whole number of samples, at least 1, not 'lots'",
    ),
    ("run resnet --base-lr nan", "--base-lr must be a number, at least 0, not nan"),
    (
        "run resnet --stages 1 x",
        "--stages must be one or more whole numbers, each at least 1, not 'x'",
    ),
    ("run resnet --data-dir=", "--data-dir must be some text or None, not ''"),
    (
        "run resnet --targets good",
        "--targets must be one or more Targets such as 'accuracy>=0.95', not 'good'",
    ),
    ("run resnet --seed", "--seed needs a value"),
    ("run resnet --stages --tiny", "--stages needs a value"),
    ("run resnet --tiny=yes", "--tiny takes no value"),
    ("run resnet --seed 1 --seed 2", "--seed is given twice"),
    ("run resnet --seed 1 2", "'2' belongs to no option"),
    ("run resnet --seed -1", "--seed must be a whole number, from 0 to 4,294,967,295"),
    ("run resnet --runs 0", "--runs must be a whole number, at least 1, not 0"),
    ("run resnet --batch-size 0", "--batch-size must be a whole number of samples, at least 1"),
    ("run resnet --base-lr -1", "--base-lr must be a number, at least 0, not -1.0"),
    (
        "run resnet --label-smoothing 1.5",
        "--label-smoothing must be a number, at least 0 and below 1",
    ),
    ("run resnet --momentum 1.5", "--momentum must be a number, at least 0 and below 1, not 1.5"),
    ("run resnet --min-crop-area 2", "--min-crop-area must be a number, above 0 and at most 1"),
    (
        "run resnet --image-size 0",
        "--image-size must be a whole number of pixels, at least 1, not 0",
    ),
    ("run resnet --eval-every 0", "--eval-every must be a whole number of epochs, at least 1"),
    ("run resnet --bn-span 0", "--bn-span must be a whole number of images, at least 1"),
    ("run unet3d --classes 4", "--classes must be 3, not '4'"),
    (
        "run unet3d --eval-shape 32 32",
        "--eval-shape must be 3 whole numbers of voxels, each at least 1",
    ),
    (
        "run retinanet --trainable-stages 6",
        "--trainable-stages must be a whole number, from 0 to 5",
    ),
    ("run llama2_70b_lora --base-bits 4", "--base-bits must be 8 or None, not '4'"),
    ("run llama31_8b --remat dost", "--remat must be full, dots, dots_no_batch, attention or None"),
    (
        "run resnet --targets accuracy>=2",
        "targets: accuracy >= 2 cannot be: accuracy is from 0 to 1",
    ),
    ("run resnet --targets accurancy>=.5", "no 'accurancy': did you mean 'accuracy'?"),
    ("run llama31_8b --targets log_perplexity<=-1", "log_perplexity is at least 0"),
    ("run resnet --sample-limit 1", "sample_limit 1 is less than one batch of 3264"),
    ("bench resnet --tiny --steps 0", "--steps must be a whole number, at least 1, not 0"),
    ("run resnet --batch-size 100", "not a multiple of bn_span"),
    ("run resnet --opt-name adam", "--opt-name must be lars or sgd, not 'adam'"),
    ("run resnet --dtype float8", "--dtype must be auto, float32, bfloat16 or float64"),
    ("run resnet --division ajar", "--division must be closed, open or None, not 'ajar'"),
    ("run resnet --show loud", "--show must be auto, plain or none, not 'loud'"),
    ("run resnet", "resnet needs its data"),
    ("data build resnet", "--data-dir"),
    ("data check resnet", "--data-dir"),
    ("check", "needs a log or the output folder of a run"),
    ("check no/such/log", "no/such/log does not exist"),
    ("evaluate no/such/run", "no/such/run"),
]


@pytest.mark.parametrize(("line", "words"), REFUSED, ids=[line for line, _ in REFUSED])
def test_refused_in_one_sentence(line, words, capsys):
    assert words in sentence(capsys, line.split())


TINY_REFUSED = [
    ("--mesh data=16", "16"),
    ("--mesh rows=2", "names axis 'rows'"),
    ("--mesh data=0", "at least 1"),
    ("--mesh data=3", "not divided by the mesh"),
    ("--gradient-accumulation-steps 3", "gradient_accumulation_steps"),
    ("--max-samples 10", "less than one batch"),
    ("--division closed", "a tiny run is open division"),
    ("--optimizer adafacter:1e-3", "did you mean 'adafactor'?"),
    ("--optimizer adamw", "needs a learning rate"),
    ("--optimizer no_such.py:make", "no_such.py"),
    ("--runs 2 --seed 1", "seeds of their own"),
    ("--train-samples 1000", "1,437 train samples"),
    ("--classes 5", "holds samples of 10 classes: give at least 10"),
    ("--resume", "no unfinished run"),
    ("--processes 2 --process 0", "coordinator"),
]


@pytest.mark.parametrize(("line", "words"), TINY_REFUSED, ids=[line for line, _ in TINY_REFUSED])
def test_refused_before_anything_is_written(line, words, capsys, tiny_data, tmp_path):
    output = tmp_path / "out"
    argv = ["run", "resnet", "--tiny", "--data-dir", tiny_data, "--output", output, *line.split()]
    capsys.readouterr()
    assert words in sentence(capsys, argv)
    assert not list(output.glob("result_*.txt")) if output.exists() else True


def test_full_size_refusals(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    run = ["run", "resnet", "--output", tmp_path / "out", "--data-dir"]
    closed = sentence(capsys, [*run, empty, "--optimizer", "adamw:1e-3", "--division", "closed"])
    assert "not allowed in the closed division" in closed
    assert "lars_opt_momentum" in sentence(capsys, [*run, empty, "--momentum", "0.5"])
    for folder in (empty, tmp_path / "missing"):
        assert str(folder) in sentence(capsys, [*run, folder])
        assert str(folder) in sentence(capsys, ["data", "check", "resnet", "--data-dir", folder])
    assert not (tmp_path / "out").exists()


# -- exit codes --------------------------------------------------------------------------------


def test_exit_codes_of_run(monkeypatch, capsys):
    run = ["run", "resnet", "--tiny"]

    def outcome(result):
        def fake(**settings):
            if isinstance(result, BaseException):
                raise result
            return result

        monkeypatch.setattr(benchmarks, "run", fake)
        return cli.main(run)

    good, bad = (SimpleNamespace(reached=r, log="result_0.txt") for r in (True, False))
    assert outcome(good) == 0
    assert "log: result_0.txt" in capsys.readouterr().out
    assert outcome(bad) == 1
    assert outcome([good, bad]) == 1
    assert outcome(None) == 0  # a process other than 0
    assert outcome(UserError("a disk is full")) == 2
    assert outcome(Interrupted("stopped", 15)) == 143
    assert outcome(KeyboardInterrupt()) == 130
    for error in (MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying …")):
        capsys.readouterr()
        assert outcome(error) == 2
        said = capsys.readouterr().err
        assert all(o in said for o in ("--batch-size", "--gradient-accumulation-steps", "--mesh"))
    with pytest.raises(RuntimeError, match="a defect of ours"):
        outcome(RuntimeError("a defect of ours"))


# -- data, check, bench, evaluate ----------------------------------------------------------------


def test_data_check_of_good_data(tiny_data, capsys):
    assert cli.main(["data", "check", "resnet", "--tiny", "--data-dir", tiny_data]) == 0
    assert "can be trained on" in capsys.readouterr().out


def test_data_check_fails_on_a_damaged_record(tmp_path, capsys):
    benchmarks.build_data(benchmarks.get("resnet", tiny=True), str(tmp_path))
    shard = next(tmp_path.rglob("*train.array_record*"))
    content = bytearray(shard.read_bytes())
    content[300:3000] = bytes(2700)
    shard.write_bytes(content)
    said = sentence(capsys, ["data", "check", "resnet", "--tiny", "--data-dir", tmp_path])
    assert "record 0" in said
    assert shard.name in said


def test_data_check_counts(tiny_data, capsys):
    argv = ["data", "check", "resnet", "--tiny", "--data-dir", tiny_data, "--train-samples", "99"]
    assert "expects 99" in sentence(capsys, argv)


def test_check_repeats_the_findings(tmp_path, capsys):
    path = tmp_path / "result_0.txt"
    with_log = logs.Log(path)
    with_log.event("submission_benchmark", "resnet")
    with_log.event("seed", 1)
    with_log.close()
    assert cli.main(["check", str(path)]) == 1
    out = capsys.readouterr().out
    assert "does not pass the official checker (resnet, ruleset 4.0.0)" in out
    assert "run_start" in out
    assert "no ruleset '9.9'" in sentence(capsys, ["check", path, "--ruleset", "9.9"])


@pytest.fixture
def benched(monkeypatch):
    calls = []

    class Report:
        def __str__(self):
            return "a table"

        def to_dict(self):
            return {"examples_per_second": 1.5}

    def record(benchmark, settings, **rest):
        calls.append((benchmark, settings, rest))
        return Report()

    monkeypatch.setattr(bench, "bench", record)
    return calls


def test_bench_passes_its_options_on(benched, capsys, tiny_data):
    line = "bench resnet --tiny --steps 3 --mesh data=2 --batch-size 128"
    assert cli.main(line.split()) == 0
    assert capsys.readouterr().out == "a table\n"
    (benchmark, settings, rest), *_ = benched
    assert benchmark == benchmarks.get("resnet", tiny=True, batch_size=128)
    assert settings == RunOptions(mesh="data=2")
    assert rest == {"steps": 3, "data_dir": None}
    argv = ["bench", "resnet", "--tiny", "--input", "real", "--data-dir", tiny_data]
    assert cli.main(argv) == 0
    assert benched[1][2] == {"input": "real", "data_dir": tiny_data}


def test_bench_writes_json(benched, capsys, tmp_path):
    target = tmp_path / "figures.json"
    assert cli.main(["bench", "resnet", "--tiny", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == {"examples_per_second": 1.5}
    assert cli.main(["bench", "resnet", "--tiny", "--json", str(target)]) == 0
    assert json.loads(target.read_text()) == {"examples_per_second": 1.5}
    capsys.readouterr()
    measured = len(benched)
    for bad in (tmp_path / "no" / "x", tmp_path):
        said = sentence(capsys, ["bench", "resnet", "--tiny", "--json", bad])
        assert f"cannot write {bad}" in said
    assert len(benched) == measured, "the answer comes before the work"


def test_evaluate_says_whether_the_target_was_reached(monkeypatch, capsys):
    for reached in (True, False):
        result = SimpleNamespace(reached=reached, log="a log")
        monkeypatch.setattr(benchmarks, "evaluate", lambda path, r=result: r)
        assert cli.main(["evaluate", "a_run"]) == (0 if reached else 1)
    monkeypatch.setattr(benchmarks, "evaluate", lambda path, bisect: result if bisect else None)
    assert cli.main(["evaluate", "--bisect", "a_run"]) == 1
    assert "log: a log" in capsys.readouterr().out
