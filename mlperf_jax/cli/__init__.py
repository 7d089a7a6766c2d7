"""The `mlperf-jax` command.

Exit codes: 0 done · 1 the target was not reached, or the checker found something · 2 something the user
can mend, told in one sentence · 128 + n stopped by signal n. Nothing is imported before a command needs
it, so that `--help` and `list` answer at once.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence

import mlperf_jax
from mlperf_jax.cli import (
    comparing,
    data,
    environment,
    listing,
    new,
    planning,
    results,
    show,
    streams,
    training,
)
from mlperf_jax.cli.options import PROG
from mlperf_jax.errors import Interrupted, UserError, did_you_mean, is_out_of_memory, printable

# name -> what runs it, given the words behind it, and what it does, which is the first argument
COMMANDS: dict[str, tuple[Callable[[str, Sequence[str]], int], str]] = {
    "list": (listing.table, "list the benchmarks: model, data, target, rounds, status"),
    "new": (new.begin, "write a benchmark of your own to begin with, and its test"),
    "run": (training.run, "train a benchmark to its quality target"),
    "compare": (
        comparing.compare,
        "train a benchmark with several optimizers, same seeds and samples, and tell them apart",
    ),
    "compared": (comparing.compared, "tables, curves and profiles of comparisons that were made"),
    "data fetch": (data.fetch, "fetch a benchmark's data, or say where they come from"),
    "data build": (data.build, "prepare a benchmark's data"),
    "data check": (data.check, "read samples of prepared data and say what is wrong"),
    "check": (results.check, "ask the official compliance checker about a log"),
    "bench": (training.bench, "measure a benchmark's speed, without training it"),
    "plan": (
        planning.plan,
        "say whether a benchmark fits devices that are not here, how long it takes, what it costs",
    ),
    "doctor": (planning.doctor, "say what is installed, what is missing, and what mends it"),
    "show": (show.draw, "draw samples with their labels and a run's predictions beside them"),
    "evaluate": (training.evaluate, "score sealed checkpoints of a run evaluated after training"),
    "score": (results.score, "score sets of runs: unverified minutes, samples to target, RCP test"),
    "package": (results.package, "build the official submission folder of a set"),
    "report": (results.report, "write one self-contained page about runs and submissions"),
    "tensorboard": (
        results.tensorboard,
        "write event files of runs for TensorBoard; `run --tensorboard` does while it trains",
    ),
}
ON_DEVICES = ("run", "compare", "bench", "plan", "evaluate", "show")  # commands that begin XLA
# of a path that the system or its administrator does not let us use, which no code of ours can help
_OF_A_PATH = (
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.ESTALE,
    errno.EMFILE,
    errno.ENFILE,
)
_OF_THE_OUTPUT = (errno.ENOSPC, errno.EIO, errno.EBADF)  # of an error that names no file
OUT_OF_MEMORY = (
    "out of memory: lower --batch-size, compute it in parts with --gradient-accumulation-steps, or "
    "spread the weights over more devices with --mesh fsdp=N"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code.

    Args:
        argv: the words behind `mlperf-jax`; those of the process by default.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:  # the process is ours
        streams.open_standard()
    try:
        if argv is None and words[:1] and words[0] in ON_DEVICES:
            environment.check_flags()
        code = dispatch(words)
        sys.stdout.flush()
        return code
    except UserError as error:
        return fail(error)
    except Interrupted as stop:
        return fail(stop, 128 + stop.signal)
    except MemoryError:
        return fail(OUT_OF_MEMORY)
    except KeyboardInterrupt:
        return fail("interrupted", 130)
    except BrokenPipeError:  # the reader, `head` perhaps, has seen enough
        _drop_output()
        return 141
    except OSError as error:
        if error.filename is not None and error.errno in _OF_A_PATH:
            return fail(f"{error.filename}: {error.strerror}; mend that, or give another path")
        if error.filename is not None or error.errno not in _OF_THE_OUTPUT:
            raise
        _drop_output()
        return fail(f"the output cannot be written ({error.strerror}): give it another place")
    except SystemExit as stop:  # after --help
        return stop.code if isinstance(stop.code, int) else 2
    except Exception as error:
        if is_out_of_memory(error):
            return fail(OUT_OF_MEMORY)
        raise
    finally:
        if argv is None:  # the work is done: what the interpreter still does may be cut short
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _drop_output() -> None:
    """What is left of the output goes nowhere: Python would try to write it once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(error: object, code: int = 2) -> int:
    """The sentence on stderr, and the exit code."""
    print(printable(f"{PROG}: {error}", keep="\n"), file=sys.stderr, flush=True)
    if "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized():
        sys.stdout.flush()
        os._exit(code)  # the runtime's own goodbye would wait for the other processes, then abort
    return code


def dispatch(words: list[str]) -> int:
    """Runs the command that the first word names, or of `data` the first two."""
    asked = words[1:] if words[:1] == ["data"] else words
    if not words or asked[:1] in (["-h"], ["--help"], ["help"]):
        print(overview())
        return 0
    if words[0] in ("--version", "version"):
        print(f"{PROG} {mlperf_jax.__version__}")
        return 0
    taken = 2 if words[0] == "data" else 1
    command = " ".join(words[:taken])
    if command == "data":
        verbs = ", ".join(name for name in COMMANDS if name.startswith("data "))
        raise UserError(f"data needs a verb: write {PROG} and one of {verbs}, and a NAME")
    if command not in COMMANDS:
        raise UserError(f"no command {command!r}{did_you_mean(command, COMMANDS)}")
    run, about = COMMANDS[command]
    if command != "list":
        environment.check_directory()
    return run(about, words[taken:])


def overview() -> str:
    """What `mlperf-jax --help` prints."""
    width = max(map(len, COMMANDS)) + 2
    lines = "\n".join(f"  {name:{width}}{about}" for name, (_, about) in COMMANDS.items())
    return f"""Trains the benchmarks of MLPerf® Training to their quality targets, in JAX.

{lines}

  {PROG} COMMAND --help shows a command's options; run NAME --help also the benchmark's.
  First try: {PROG} run resnet --tiny"""
