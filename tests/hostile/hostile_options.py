"""Entries about words of the command line, of every benchmark."""

import dataclasses
import math
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any

from hostile_entry import Entry, fifo, folder, link, written

from mlperf_jax import benchmarks
from mlperf_jax.cli.options import options_of, readable
from mlperf_jax.core.fields import Range
from mlperf_jax.core.options import RunOptions

LONG = "x" * 300
NO_PATH = "must be a path, one|must be one or more paths, each one that this system can look up"

# of `run NAME --tiny`, in every benchmark: refused before data are made
OF_RUN = [
    ("--mesh rows=2", "names axis 'rows'; the axes are data, fsdp, tensor, expert, context"),
    ("--mesh data=0", "write data=N with N at least 1"),
    ("--mesh data=2,data=2", "names axis 'data' twice"),
    ("--mesh data", "write data=N"),
    ("--mesh data=64", "needs 64 devices and this machine has 8"),
    ("--seeds 1,2,2", "seeds has 2 twice"),
    ("--seeds 1,x", "--seeds must be one or more whole numbers"),
    ("--seed -1", "--seed must be a whole number, from 0"),
    ("--seed 1.5", "--seed must be a whole number"),
    ("--seed 99999999999", "--seed must be a whole number, from 0 to 4,294,967,295"),
    ("--runs 0", "--runs must be a whole number, at least 1"),
    ("--runs 2 --seed 1", "runs of one set need seeds of their own"),
    ("--max-samples 0", "--max-samples must be a whole number of samples, at least 1"),
    ("--checkpoint-every 0", "--checkpoint-every must be a whole number, at least 1"),
    ("--keep-checkpoints nan", "--keep-checkpoints must be a whole number"),
    ("--threads 0", "--threads must be a whole number, at least 1"),
    ("--workers -1", "--workers must be a whole number, at least 0"),
    ("--optimizer adafacter:1e-3", "did you mean 'adafactor'"),
    ("--optimizer adamw", "needs a learning rate"),
    ("--optimizer adamw:fast", "learning rate"),
    ("--optimizer no_such.py:make", "no_such.py"),
    ("--transform no_such.py:make", "no_such.py"),
    ("--division ajar", "--division must be closed, open or None"),
    ("--division closed", "a tiny run is open division"),
    ("--new-optimizer", "add --resume"),
    ("--processes 2 --process 0", "give --coordinator"),
    ("--coordinator localhost", "give --processes N --process I"),
    ("--coordinator localhost --processes 2 --process 1", "give the host and a free port"),
    ("--coordinator localhost:1 --processes 2 --process 2", "they are numbered from 0"),
    ("--show loud", "--show must be auto, plain or none"),
    ("--batch-size 0", "--batch-size must be a whole number of samples, at least 1"),
    ("--dtype float8", "--dtype must be auto, float32, bfloat16 or float64"),
    ("--targets x", "--targets must be"),
    ("--targets nosuch>=0.5", "no 'nosuch'"),
    ("--batch-sise 3", "did you mean '--batch-size'"),
    ("--seed", "--seed needs a value"),
    ("--tiny=yes", "--tiny is given twice"),
    ("--resume=yes", "--resume takes no value"),
    ("--tensorboard=yes", "--tensorboard takes no value"),
    ("--seed 1 --seed 2", "--seed is given twice"),
    ("--levers sam", "'sam' is no lever: write NAME=VALUE"),
    ("--levers sam=0", "sam must be a number, above 0"),
    ("--levers smoothing=0.1", "no lever 'smoothing'"),
    ("more words", "'more' belongs to no option"),
    (f"--output {LONG}", NO_PATH),
    (f"--data-dir {LONG}", NO_PATH),
    ("--output=", NO_PATH),
    ("--output ~no_such_user/runs", NO_PATH),
]


def of_every_benchmark() -> Iterator[Entry]:
    for name in benchmarks.names():
        for words, says in OF_RUN:
            yield Entry(f"run {name} --tiny {words}", says)
        yield from of_fields(name)
        yield Entry(f"run {name}", f"{name} needs its data")
        yield Entry(
            f"run {name} --data-dir data",
            "data is a file",
            damage=written("data", "x"),
            name="a file",
        )
        yield Entry(f"run {name} --data-dir no/such/folder", "no/such/folder")
        yield Entry(f"run {name} --data-dir empty", "empty", damage=folder("empty"))
        yield Entry(f"data check {name}", "--data-dir")
        yield Entry(f"data build {name}", "--data-dir")
        yield Entry(f"data check {name} --data-dir empty", "empty", damage=folder("empty"))
        yield Entry(f"bench {name} --tiny --steps 0", "--steps must be a whole number, at least 1")
        yield Entry(f"bench {name} --tiny --json no/x.json", "there is no folder")
        yield Entry(f"plan {name}", "plan needs --on")
        yield Entry(f"plan {name} --on abacus:4", "abacus")


def of_fields(name: str) -> Iterator[Entry]:
    """For each field of numbers a value out of its range, or of another kind."""
    cls = benchmarks.benchmark_class(name)
    taken = {field.name for field in dataclasses.fields(RunOptions)} | {"batch_size", "targets"}
    for option in options_of(cls, leave_out=("size", *taken)):
        kind, ranges = _number(option.hint)
        if kind is None:
            continue
        below = [r for r in ranges if math.isfinite(max(r.least, r.above))]
        word = str(int(max(below[0].least, below[0].above)) - 1) if below else "nan"
        yield Entry(f"run {name} --tiny {option.flag}={word}", f"{option.flag} must be ")


def _number(hint: Any) -> tuple[type | None, list[Range]]:
    """int or float, and what they are limited to, of a hint that is one number or none."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = [m for m in typing.get_args(hint) if m is not types.NoneType]
        return _number(members[0]) if len(members) == 1 else (None, [])
    if typing.get_origin(hint) is Annotated:
        kind, ranges = _number(typing.get_args(hint)[0])
        return kind, [*ranges, *(r for r in hint.__metadata__ if isinstance(r, Range))]
    return (hint, []) if hint in (int, float) and readable(hint) else (None, [])


COMMANDS = [
    Entry("", "Trains the benchmarks of MLPerf", code=0),
    Entry("--version", r"mlperf-jax \d", code=0),
    Entry("runn resnet", "no command 'runn': did you mean 'run'"),
    Entry("data", "data needs a verb"),
    Entry("data bild resnet", "did you mean 'data build'"),
    Entry("run", "run needs"),
    Entry("run resnett --tiny", "no benchmark 'resnett': did you mean 'resnet'"),
    Entry("run my_file.py:Wine", r"my_file\.py"),
    Entry(
        "run my_file.py:Wine", "my_file", damage=written("my_file.py", "x = ("), name="no Python"
    ),
    Entry("run my_file.py:Wine", "Wine", damage=written("my_file.py", "x = 1"), name="no class"),
    Entry("run my_file.py:Wine", "my_file", damage=folder("my_file.py"), name="a folder"),
    Entry("check", "needs a log or the output folder"),
    Entry("check no/such/log", "no/such/log does not exist"),
    Entry("score", "needs a set's folder"),
    Entry("score no/such", "no/such does not exist"),
    Entry("score empty", "no result_", damage=folder("empty")),
    Entry("score a", "is a file", damage=written("a", "x")),
    Entry("report", "needs a folder of runs"),
    Entry("report no/such", "no/such"),
    Entry("report empty", "empty", damage=folder("empty")),
    Entry("tensorboard", "needs the folder of a run"),
    Entry("tensorboard no/such", "no/such is not the folder of a run"),
    Entry("tensorboard empty", "empty is not the folder of a run", damage=folder("empty")),
    Entry("evaluate", "needs the output folder"),
    Entry("evaluate no/such/run", "no/such/run"),
    Entry("package runs", "package needs --org"),
    Entry("package no/such --org a --system b", "no/such"),
    Entry("package runs --org ../a --system b", "org"),
    Entry("show", "show needs"),
    Entry("show no_such", "no benchmark 'no_such'"),
    Entry("show dlrm_dcnv2 --tiny", "there are no pictures of dlrm_dcnv2"),
    Entry("show resnet --tiny --output a.jpg", "must end in .png"),
    Entry("show resnet --tiny --output no/a.png", "there is no folder"),
    Entry("show resnet --step 3 --tiny", "step is that of a run's checkpoint"),
    Entry("compared", "compared needs"),
    Entry("compared no/such", "no/such holds no comparison"),
    Entry("compared empty", "empty holds no comparison", damage=folder("empty")),
    Entry("compared empty --save a.doc", "a.doc must end in"),
    Entry("compare", "compare needs"),
    *(
        Entry(f"compare resnet --tiny {words}", says)
        for words, says in (
            ("", "compare needs --optimizers"),
            ("--optimizers sgd:0.5", "two optimizers or more"),
            ("--optimizers sgd:0.5 sgd:0.5", "'sgd:0.5' is there twice"),
            ("--optimizers sgd:0.5 sgdd:1", "no optimizer 'sgdd'"),
            ("--optimizers sgd:0.5 adamw", "needs a learning rate"),
            ("--optimizers sgd:0.5 recipe:nosuch=1", "no field nosuch"),
            ("--optimizers sgd:0.5 recipe:batch_size=128", "is no setting of the optimizer"),
            ("--optimizers sgd:0.1..1 recipe", "a range for learning_rate"),
            ("--optimizers sgd:1..0.1 recipe --tune 2", "1..0.1"),
            ("--optimizers sgd:0.5 no.py:make", "no.py"),
            ("--optimizers sgd:0.5 recipe --seeds 0", "seeds must be"),
            ("--optimizers sgd:0.5 recipe --seeds 1,1", "seeds has 1 twice"),
            ("--optimizers sgd:0.5 recipe --tune -1", "--tune must be a whole number, at least 0"),
            ("--optimizers sgd:0.5 recipe --save a.doc", "a.doc must end in"),
            ("--optimizers sgd:0.5 recipe --save no/a.csv", "there is no folder"),
            ("--optimizers sgd:0.5 recipe --output gs://x/y", "a local folder"),
            ("--optimizers sgd:0.5 recipe+sam=0", "sam must be a number, above 0"),
            ("--optimizers sgd:0.5 recipe+smooth=1", "no lever 'smooth'"),
            ("--optimizers sgd:0.5 recipe+batch_ramp=48:100", "not a multiple of bn_span"),
            ("--optimizers sgd:0.5 recipe+transform=no.py:make", "no.py"),
            ("--optimizers sgd:0.5 recipe --runs 3", "compare has no option --runs"),
        )
    ),
    Entry(
        "compare resnet --tiny --optimizers sgd:0.5 recipe --output full",
        "full holds something else than a comparison",
        damage=written("full/mine", "x"),
    ),
    Entry("run resnet --levers sam=0.1 --data-dir empty", "lever", damage=folder("empty")),
    Entry("run resnet --tiny --levers size_ramp=32:9", "32 is no smaller than image_size 32"),
    Entry("run resnet --tiny --levers batch_ramp=64:9,64:3", "must grow"),
    Entry("run dlrm_dcnv2 --tiny --levers size_ramp=3:9", "has no size_ramp"),
    Entry("run unet3d --tiny --levers label_smoothing=0.1", "has no label_smoothing"),
    Entry("run resnet --tiny --levers transform=no.py:make", "no.py"),
    Entry("plan resnet --on v5p:2x2x1 --levers size_ramp=112:9000", "leave the ramps out"),
    Entry("bench resnet --tiny --levers size_ramp=16:9", "leave the ramps out"),
    Entry("new", "new needs"),
    Entry("new resnet", "is an official benchmark"),
    Entry("new 3x", "names no module"),
    Entry("new json", "is a module that Python has"),
    Entry("new wine --out x", "new has no option --out, as there are none"),
    Entry("new wine", "is not overwritten", damage=written("wine.py", "mine")),
    Entry("data fetch no_such", "no benchmark 'no_such'"),
    Entry("doctor more", "'more' belongs to no option"),
    *(
        Entry(f"{line} {LONG}", NO_PATH)
        for line in ("score", "report", "check", "evaluate", "package --org a --system b")
    ),
    Entry(f"show resnet --tiny --output {LONG}.png", NO_PATH),
    Entry("score loop/x", NO_PATH, damage=link("loop", "loop")),
    Entry("run resnet --tiny --output loop/x", NO_PATH, damage=link("loop", "loop")),
    Entry("check pipe", "pipe", damage=fifo("pipe")),
    Entry("run resnet --tiny --output runs", "runs", damage=written("runs", "x"), notes=True),
    Entry("run resnet --tiny --output /proc/x", "/proc", notes=True),
    Entry("run resnet --tiny --output /dev/null/x", "/dev/null", notes=True),
    Entry("run llama31_8b --tiny --mesh context=3", r"--mesh context=3 splits", seconds=60),
    Entry("run llama31_8b --tiny --mesh fsdp=4,tensor=2", r"--mesh tensor=2 splits", seconds=60),
    Entry("run resnet --tiny --mesh data=3", "not divided by the mesh"),
    Entry("run resnet --tiny --gradient-accumulation-steps 3", "gradient_accumulation_steps"),
    Entry("run resnet --tiny --classes 5", "give at least 10"),
    Entry("run resnet --tiny --train-samples 1000", "1,437 train samples"),
    Entry(
        "run resnet --tiny --oversampling 0.3", "has no option --oversampling, which is unet3d's"
    ),
]

ENTRIES = [*COMMANDS, *of_every_benchmark()]
