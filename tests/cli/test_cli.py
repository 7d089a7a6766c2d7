"""The command line as a whole: help, what is refused in one sentence, and the exit codes."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

import mlperf_jax
from mlperf_jax import benchmarks, cli
from mlperf_jax.errors import Interrupted, UserError


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


# -- jax is not waited for ---------------------------------------------------------------------

HELP_OF_ONE = [
    *(f"run {name} {size}--help" for name in benchmarks.names() for size in ("", "--tiny ")),
    *(f"{command} unet3d --help" for command in ("bench", "plan", "show", "data check")),
]
HELP_OF_COMMANDS = [f"{command} --help" for command in cli.COMMANDS]
WITHOUT_JAX = [
    *HELP_OF_ONE,
    *("", "--help", "--version", "rum", "data", "data --help", "data resnet"),
    *HELP_OF_COMMANDS,
    *(f"{command} --bogus 1" for command in cli.COMMANDS),
    *("list --json", "list resnt", "new", "new bert", "check", "check . --division ajar"),
    *("run", "run resnt --tiny", "run resnt --help", "run resnet --seed", "run resnet --seed x"),
    *(
        "run resnet --seed 1 --seed 2",
        "run resnet --runs 0",
        "run resnet --tiny=yes",
        "run resnet x",
    ),
    *("bench", "bench resnt", "bench resnet --input loud", "bench resnet --json no/such/folder"),
    *("plan", "plan resnt", "plan resnet", "plan resnet --on v5p:2x2x2 --price-per-chip-hour -1"),
    *("data fetch", "data fetch resnet", "data fetch bert --list", "data fetch resnt"),
    *("data build", "data build resnet --help", "data build resnet --bogus 1", "data check resnt"),
    *("show", "show resnt", "show resnet --samples 0", "show resnet --split test"),
    *("evaluate", "evaluate . --bisekt", "doctor --bogus", "score", "score --offical", "report"),
    *("package", "package .", "package . --org A --system b --status great"),
]

# each line in a process of its own
EACH_LINE = """
import importlib.machinery, io, json, os, sys
found, execute = [], importlib.machinery.SourceFileLoader.exec_module
importlib.machinery.SourceFileLoader.exec_module = lambda loader, module: (
    found.append(module.__name__), execute(loader, module)
)
from mlperf_jax import cli
for line in sys.stdin.read().split("\\n"):
    if not (child := os.fork()):
        try:
            sys.stdout = sys.stderr = io.StringIO()
            cli.main(line.split())
        finally:
            print(json.dumps([found, sys.stdout.getvalue()]), file=sys.__stdout__, flush=True)
            os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def told():
    """Whose files each line executes, and what it says."""
    command = [sys.executable, "-c", EACH_LINE]
    lines = "\n".join(WITHOUT_JAX)
    environment = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run(
        command, input=lines, env=environment, capture_output=True, text=True, check=True
    )
    return dict(zip(WITHOUT_JAX, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("line", WITHOUT_JAX)
def test_help_and_mistyped_words_do_not_wait_for_jax(told, line):
    """Nor for what comes with it. Only typed fields of a benchmark do: they stand beside its model."""
    assert not {"jax", "flax", "optax", "numpy", "asyncio"} & {*told[line][0]}


@pytest.mark.parametrize("line", [*HELP_OF_COMMANDS, *HELP_OF_ONE])
def test_help_imports_little(told, line):
    """A file costs a third of a millisecond and more; NumPy has 150, JAX with all that trains 2,000."""
    files = told[line][0]
    own = [name for name in files if name.partition(".")[0] == "mlperf_jax"]
    of_one = line in HELP_OF_ONE  # besides, the benchmark and its data set
    assert len(own) <= (70 if of_one else 45), own
    assert len(files) <= (200 if of_one else 150), files


@pytest.mark.parametrize("line", HELP_OF_ONE)
def test_help_without_jax_says_what_it_says_with_it(told, line, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert cli.main(line.split()) == 0
    assert told[line][1] == capsys.readouterr().out


def test_after_help_nothing_is_stood_in_for():
    """A process may go on when it has shown help."""
    code = """
from mlperf_jax import benchmarks, cli
cli.main(["run", "resnet", "--help"])
from flax import nnx
from mlperf_jax.core import benchmark
from mlperf_jax.models import resnet
assert issubclass(resnet.ResNet, nnx.Module)
assert issubclass(benchmarks.benchmark_class("resnet"), benchmark.Benchmark)
"""
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)


# -- what is refused ---------------------------------------------------------------------------

REFUSED = [
    ("rum resnet", "no command 'rum': did you mean 'run'?"),
    ("data resnet", "no command 'data resnet'"),
    ("data", "data needs a verb: write mlperf-jax and one of data fetch, data build, data check"),
    ("data fetch", "data fetch needs the name of a benchmark"),
    ("data fetch resnet --tiny", "tiny data are built, not fetched: write mlperf-jax data build"),
    ("data fetch resnet --data-dir d --only tset", "the data of resnet have no part 'tset'"),
    ("data fetch resnet --connections 0", "--connections must be"),
    ("data --tiny", "no command 'data --tiny': did you mean 'data "),
    ("plan resnet", "plan needs --on, devices such as v5p:8x8x16"),
    ("plan resnet", ": write mlperf-jax plan NAME --on DEVICES [options]"),
    (
        "package .",
        "package needs --org, the organisation (names a folder): write mlperf-jax package DIR --org ORG",
    ),
    ("package . --org A", "package needs --system"),
    (
        "report",
        "report needs a folder of runs or submissions: write mlperf-jax report DIR... [options]",
    ),
    ("report --bogus 1", "report has no option --bogus: did you mean '--out'?"),
    (
        "score",
        "score needs a set's folder, or any folder of sets: write mlperf-jax score DIR [options]",
    ),
    ("score . --scaling x", "--scaling must be auto, rcp, file or none, not 'x'"),
    ("check . --division x", "--division must be closed or open, not 'x'"),
    ("bench resnet --input x", "--input must be synthetic, real or input-only, not 'x'"),
    ("show resnet --split x", "--split must be train or eval, not 'x'"),
    ("show resnet --samples 0", "--samples must be a whole number, at least 1, not 0"),
    (
        "plan resnet --on v5p:2x2x2 --price-per-chip-hour -1",
        "--price-per-chip-hour must be a number, at least 0, not -1.0",
    ),
    ("list nothing", "no benchmark 'nothing'; known: bert, dlrm_dcnv2, "),
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
    (
        "run resnet --data-dir=",
        "--data-dir must be a path, one that this system can look up, or None, not ''",
    ),
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
    (
        "run llama31_8b --remat dost",
        "--remat must be auto, full, dots, dots_no_batch, attention or None",
    ),
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
def test_refused_in_one_sentence(line, words, refused):
    assert words in refused(line.split())


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
