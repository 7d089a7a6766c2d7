"""What the commands that take the name of a benchmark share: its options and those of the run, both read."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

from mlperf_jax.cli import options, stand_ins
from mlperf_jax.cli.options import PROG, Option

TINY = Option("tiny", bool, help="the small stand-in: no data to fetch, a minute on two CPU cores")
METAVARS = {
    "data_dir": "DIR",
    "output": "DIR",
    "mesh": "AXIS=N,...",
    "optimizer": "FILE.py:MAKE",
    "transform": "FILE.py:MAKE",
    "coordinator": "HOST:PORT",
}


def run_options(only: Sequence[str] = ()) -> list[Option]:
    """The fields of `RunOptions` as options: all of them, or those named."""
    from mlperf_jax.core.options import RunOptions

    return [
        dataclasses.replace(option, metavar=METAVARS.get(option.name, ""))
        for option in options.options_of(RunOptions)
        if not only or option.name in only
    ]


def parse(
    command: str, about: str, words: Sequence[str], own: Sequence[Option], *, fields: bool = True
) -> dict[str, Any]:
    """The typed options of a command that takes NAME and --tiny; `fields` adds the benchmark's own.

    The benchmark's file is read when a word may be about its fields, and no sooner: it imports JAX and its models,
    unless all that is wanted is help.

    Raises:
        UserError: as `options.parse`; an unknown benchmark before all else.
    """
    from mlperf_jax import benchmarks

    own = [TINY, *own]
    free, typed = options.split(words, own)
    more: dict[str, Sequence[Option]] = {}
    if free and free[0] not in benchmarks.names():
        benchmarks.benchmark_class(free[0])
    if free and fields and not typed.keys() <= {option.flag for option in own}:
        name, shown = _fields(free[0], "--tiny" in typed, options.wants_help(words))
        more[name] = shown
    if fields and not free:
        about += f". {PROG} {command} NAME --help shows the benchmark's own options too"
    known = f"the name of a benchmark ({', '.join(benchmarks.names())}), or my_file.py:Wine"
    name = Option("name", help=known)
    return options.parse(command, about, words, [name], own, more, _whose)


def _fields(name: str, tiny: bool, helps: bool) -> tuple[str, list[Option]]:
    """A benchmark's name, and its fields as options with their values."""
    from mlperf_jax import benchmarks

    with stand_ins.for_what_trains() if helps else contextlib.nullcontext() as stood_in:
        if stood_in:
            _forgive(benchmarks.benchmark_class(name))
        instance = benchmarks.get(name, tiny=tiny)
        return instance.name, options.options_of(type(instance), instance, leave_out=("size",))


def _forgive(cls: Any) -> None:
    """Lets checks of fields fail: nothing was typed, and what some of them compute with is not there."""
    check = cls.__post_init__

    def checked(self: Any) -> None:
        with contextlib.suppress(Exception):
            check(self)

    cls.__post_init__ = checked


def _whose(flag: str) -> str:
    """ ", which is unet3d's": the benchmarks that have a field of this name."""
    from mlperf_jax import benchmarks

    field = flag.removeprefix("--").replace("-", "_")
    with stand_ins.for_what_trains():
        every = map(benchmarks.benchmark_class, benchmarks.names())
        have = [cls.name for cls in every if field in {f.name for f in dataclasses.fields(cls)}]
    return f", which is {' and '.join(have)}'s" if have else ""


def made(given: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """The benchmark and the `RunOptions` that typed options describe, and what belongs to neither."""
    from mlperf_jax import benchmarks

    given = dict(given)
    name, tiny = given.pop("name"), given.pop("tiny", False)
    mine = {f.name for f in dataclasses.fields(benchmarks.benchmark_class(name))}
    where = {f.name for f in dataclasses.fields(benchmarks.RunOptions)}
    fields = {key: given.pop(key) for key in list(given) if key in mine}
    settings = {key: given.pop(key) for key in list(given) if key in where}
    return benchmarks.get(name, tiny=tiny, **fields), benchmarks.RunOptions(**settings), given
