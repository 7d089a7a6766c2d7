"""Which benchmarks there are: those of this library and those of your own, by name, as classes and configurations."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import keyword
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from mlperf_jax.core import python_file
from mlperf_jax.core.fields import check
from mlperf_jax.core.levers import Levers
from mlperf_jax.core.options import RunOptions
from mlperf_jax.errors import UserError, did_you_mean
from mlperf_jax.results import rules

if TYPE_CHECKING:
    from mlperf_jax.core.benchmark import Benchmark

    # what stands for a benchmark: a name, "my_file.py:Wine", a class, or a configuration of one
    Named = str | type[Benchmark] | Benchmark

PACKAGE = __name__.rpartition(".")[0]

# name -> "module:class"; a string, so that listing imports no model
_BENCHMARKS = {
    "resnet": "resnet:ResNet50",
    "unet3d": "unet3d:UNet3D",
    "retinanet": "retinanet:RetinaNet",
    "gpt3": "gpt3:Gpt3",
    "llama2_70b_lora": "llama2_70b_lora:Llama2Lora",
    "llama31_405b": "llama31_405b:Llama31_405B",
    "llama31_8b": "llama31_8b:Llama31_8B",
    "bert": "bert:Bert",
    "dlrm_dcnv2": "dlrm_dcnv2:DlrmDcnV2",
    "stable_diffusion": "stable_diffusion:StableDiffusion",
    "rgat": "rgat:RGat",
}


# those that `register` was given
_REGISTERED: dict[str, type[Benchmark]] = {}

# words of the commands that no field may be called by, beside those of `RunOptions`
RESERVED = frozenset(
    "name tiny steps warmup input json optimizers tune parallel save say all names seconds evaluation fit memory "
    "compile_only minutes twins variants jobs".split()
)

B = TypeVar("B", bound="Benchmark")


def names() -> tuple[str, ...]:
    """The benchmarks of this library, as the official logs spell them, and those registered."""
    return (*_BENCHMARKS, *_REGISTERED)


def register(cls: type[B]) -> type[B]:
    """Makes a benchmark of your own known by its name; may stand above its class as `@register`.

    Every function here and `mlperf-jax` take "my_file.py:Wine" or the class itself too, and register it.
    Given again, under the same name, the class replaces the one before.

    Raises:
        UserError: it is no benchmark, or what it states cannot be used: its name is taken, a field has no
            value, …
    """
    from mlperf_jax.core.benchmark import Benchmark

    if not (isinstance(cls, type) and issubclass(cls, Benchmark)):
        raise UserError(
            f"{cls!r} is no benchmark: give a class that inherits from mlperf_jax.benchmarks.Benchmark"
        )
    if cls.__module__.startswith(f"{PACKAGE}."):
        return cls
    if complaint := _complaint(cls):
        raise UserError(f"{cls.__name__} {complaint}")
    _REGISTERED[cls.name] = cls
    cls.own_code = python_file.code(cls)
    return cls


def _complaint(cls: type[Benchmark]) -> str | None:
    """What keeps a benchmark of somebody's own from being known by its name; None if nothing does."""
    name = getattr(cls, "name", None)
    undecorated = "__dataclass_fields__" not in vars(cls) and inspect.get_annotations(cls)
    fields = dataclasses.fields(cls)
    options = {field.name for field in dataclasses.fields(RunOptions)} | RESERVED
    taken = [f.name for f in fields if f.name in options]
    unset = [f.name for f in fields if dataclasses.MISSING is f.default is f.default_factory]
    if not (isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name)):
        return f'has the name {name!r}: state one of letters, digits and "_", such as name = "wine"'
    if name in _BENCHMARKS:
        return f"has the name {name!r}, which is a benchmark of this library: state another"
    if name in rules.entries() and not cls.ruleset:
        return f"has the name {name!r} of an official benchmark: state its ruleset, or another name"
    if name not in rules.entries() and cls.ruleset:
        return f'states the ruleset {cls.ruleset}, but no round had {name!r}: write ruleset = ""'
    if undecorated:
        return "is no frozen dataclass: write @dataclass(frozen=True, kw_only=True) above it"
    if unset:
        return f"gives no value to {', '.join(unset)}: every field needs one"
    if taken:
        return f"has a field {', '.join(taken)}, as a run has an option: call it something else"
    return None


def benchmark_class(name: Named) -> type[Benchmark]:
    """The class of a benchmark; one of your own is registered by this.

    Args:
        name: as `names()` spells it, "my_file.py:Wine" or "package.module:Wine", a class, or an object.

    Raises:
        UserError: for an unknown name, with the nearest known one; as `register` for your own.
    """
    if not isinstance(name, str):
        from mlperf_jax.core.benchmark import Benchmark

        return register(type(name) if isinstance(name, Benchmark) else name)
    if ":" in name or name.endswith(".py"):
        return register(python_file.load(name, "benchmark", "Wine"))
    if name in _REGISTERED:
        return _REGISTERED[name]
    if name not in _BENCHMARKS:
        hint = did_you_mean(name, names())
        own = "" if hint.endswith("?") else "; or give one of your own: my_file.py:Wine"
        raise UserError(f"no benchmark {name!r}{hint}{own}")
    module, _, attribute = _BENCHMARKS[name].partition(":")
    return getattr(importlib.import_module(f"{PACKAGE}.{module}"), attribute)


def get(name: Named, *, tiny: bool = False, **fields: Any) -> Benchmark:
    """A benchmark's configuration.

    A `batch_size` with an official recipe brings that recipe's other hyperparameters; any other batch
    size keeps those of the nearest recipe below it (`recipe_note` says so).

    Args:
        name: as `benchmark_class` takes it; an object keeps its fields where no others are given.
        tiny: the small stand-in that runs anywhere, see `Benchmark.tiny`.
        **fields: any of the benchmark's fields.

    Raises:
        UserError: for an unknown name or field, or a value the benchmark refuses.
    """
    cls = benchmark_class(name)
    tiny = check("tiny", tiny, bool)
    if "size" in fields:
        raise UserError("size is no setting of its own: say tiny=True for the small stand-in")
    given = None if isinstance(name, str | type) else name
    benchmark = given or cls()  # type: ignore[call-arg]
    if tiny:
        small = benchmark if benchmark.is_tiny else benchmark.tiny()
        if type(small) is not type(benchmark) or not small.is_tiny:
            raise UserError(f'{cls.__name__}.tiny() must give a {cls.__name__} of size "tiny"')
        return small.replace(**fields)
    recipes, batch_size = cls.recipes(), fields.get("batch_size")
    if recipes and batch_size is not None and not given:
        benchmark = recipes[_official_below(recipes, batch_size)]
    return benchmark.replace(**fields)


def _official_below(recipes: Collection[int], batch_size: int) -> int:
    """The largest official batch size that is at most this one, else the smallest."""
    return max((size for size in recipes if size <= batch_size), default=min(recipes))


def recipe_note(benchmark: Benchmark) -> str | None:
    """A sentence when the batch size has no official recipe, else None."""
    recipes = type(benchmark).recipes()
    if benchmark.is_tiny or not recipes or benchmark.batch_size in recipes:
        return None
    return (
        f"batch size {benchmark.batch_size} has no reference convergence point; its hyperparameters are "
        f"those of {_official_below(recipes, benchmark.batch_size)} where you gave no other"
    )


def divided(
    command: str, name: Named, settings: Mapping[str, Any], known: Collection[str]
) -> tuple[RunOptions, dict[str, Any]]:
    """The run options among some settings, and the benchmark's fields.

    Args:
        command: whose settings they are.
        name: as `benchmark_class` takes it.
        settings: by name.
        known: the options that the command takes.

    Raises:
        UserError: one is neither, or an option has no such value.
    """
    options = RunOptions(**{k: v for k, v in settings.items() if k in known})
    fields = {k: v for k, v in settings.items() if k not in known}
    mine = [field.name for field in dataclasses.fields(benchmark_class(name))]
    for field in fields:
        if field not in mine:
            hint = did_you_mean(field, sorted({*mine, *known}))
            raise UserError(f"{command} has no setting {field!r}{hint}")
    levers = Levers.of(fields.get("levers"))
    if levers.transform is not None:
        if options.transform is not None:
            raise UserError(
                "a transform is given twice: leave it out of the levers, or leave transform out"
            )
        options = dataclasses.replace(options, transform=levers.transform)
        fields["levers"] = levers.without("transform")
    return options, fields


def from_config(config: Mapping[str, Any], place: str | None = None) -> Benchmark:
    """The benchmark that the `config` of a run's config.json describes.

    Args:
        config: the benchmark's name and fields.
        place: where its class is found, if it is of the user's own and not registered.

    Raises:
        UserError: it is of a benchmark or of a version that has other fields, or its class is not found.
    """
    name = config["benchmark"]
    try:
        cls = benchmark_class(place if place and name not in names() else name)
        if cls.name != name:
            raise UserError(f"{place} has the name {cls.name!r} now")
    except UserError as error:
        if "code" not in config:
            raise
        raise UserError(
            f"the run is of {name!r}, whose class is not found: {error}; put its file back, or register the "
            "class first (mlperf_jax.benchmarks.register)"
        ) from error
    return cls.from_config(config)
