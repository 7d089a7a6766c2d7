"""What a field may hold: every field of every benchmark and of the run's options, from its annotation."""

import dataclasses
import json
import math
import pathlib
import types
import typing
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import toys

from mlperf_jax import benchmarks
from mlperf_jax.core import fields
from mlperf_jax.core.benchmark import Target
from mlperf_jax.core.fields import Count, Positive, Range, Rate, Samples, Several
from mlperf_jax.core.levers import Levers
from mlperf_jax.core.options import RunOptions
from mlperf_jax.errors import UserError

CLASSES = {
    "RunOptions": RunOptions,
    **{name: benchmarks.benchmark_class(name) for name in benchmarks.names()},
}
FIELDS = [(name, f.name) for name, cls in CLASSES.items() for f in dataclasses.fields(cls)]
BAD = (-1, 0, math.nan, math.inf, -math.inf, "x", "", None, True, [], [None], {}, b"x", 1j)


# -- every field -----------------------------------------------------------------------------------


def allows(hint: Any, value: Any) -> bool:
    """What an annotation says about one of the values above, read independently of what checks it."""
    if hint is Any:
        return True
    if hint is Levers:  # these mean none
        return value in (None, "", {})
    args = typing.get_args(hint)
    if value is None:
        return types.NoneType in args
    if type(value) is bool:
        return hint is bool
    if type(value) is int:
        ranges = [rule for rule in leaf(hint) if isinstance(rule, Range)]
        return bool(ranges) and all(rule.least <= value and rule.above < value for rule in ranges)
    if type(value) is str:
        return value == "x" and hint in (str, str | None, fields.Path | None)
    return value == [] and typing.get_origin(hint) is tuple and ... in args


def leaf(hint: Any) -> tuple[Any, ...]:
    """The arguments of the one Annotated in a hint that is no tuple: the type and its rules."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (member for member in typing.get_args(hint) if member is not types.NoneType)
    return typing.get_args(hint) if typing.get_origin(hint) is Annotated else ()


@pytest.mark.parametrize(("name", "field"), FIELDS, ids=[f"{n}-{f}" for n, f in FIELDS])
def test_every_field_refuses_what_its_annotation_does_not_allow(name, field):
    cls, hint = CLASSES[name], fields.hints_of(CLASSES[name])[field]
    refused = [value for value in BAD if not allows(hint, value)]
    assert len(refused) >= 5 or hint is Any
    for value in refused:
        with pytest.raises(UserError) as error:
            cls(**{field: value})
        said = str(error.value)
        if hint is Levers and value == "x":
            assert said.startswith("'x' is no lever: write NAME=VALUE")
            continue
        assert said == f"{field} must be {fields.allowed(hint)}, not {value!r}"
    for value in BAD:
        if allows(hint, value):  # where the field is one of many, others may object
            fields.check(field, value, hint)


@pytest.mark.parametrize(("name", "field"), FIELDS, ids=[f"{n}-{f}" for n, f in FIELDS])
def test_every_number_has_a_range(name, field):
    def ranges_of(hint: Any, rules: tuple = ()) -> None:
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if origin is Annotated:
            ranges_of(args[0], args[1:])
        elif origin in (typing.Union, types.UnionType, tuple):
            for member in args:
                ranges_of(member)
        elif hint in (int, float):
            assert any(isinstance(rule, Range) for rule in rules), "a bare number takes any value"
        elif origin is not Literal:
            assert hint in (str, bool, Target, Levers, types.NoneType, ...) or field in OBJECTS

    ranges_of(fields.hints_of(CLASSES[name])[field])


OBJECTS = ("optimizer", "transform")  # fields of the run that take the user's own


@pytest.mark.parametrize("name", benchmarks.names())
def test_configurations_survive_json_and_become_plain(name):
    cls = CLASSES[name]
    for benchmark in (cls(), cls().tiny(), *cls.recipes().values()):
        config = json.loads(json.dumps(benchmark.config()))
        again = benchmarks.from_config(config)
        assert again == benchmark
        whole = {
            k: int(v) if isinstance(v, float) and v == int(v) else v for k, v in config.items()
        }
        again = benchmarks.from_config(whole)  # as JavaScript and others write 2.0
        assert json.dumps(again.config()) == json.dumps(benchmark.config())


# -- one value -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "hint", "plain"),
    [
        (1, Rate, 1.0),
        (np.float32(0.5), Rate, 0.5),
        (np.int64(3), Count, 3),
        (np.array(3), Count, 3),
        (np.int64(3), Rate, 3.0),
        (np.bool_(True), bool, True),
        (np.str_("lars"), Literal["lars", "sgd"], "lars"),
        ([1, np.int32(2)], Several[Count], (1, 2)),
        ([[1, 2], [3, 4]], tuple[tuple[Count, Count], ...], ((1, 2), (3, 4))),
        (pathlib.Path("a") / "b", str | None, "a/b"),
        (0, Positive | Literal[0], 0),
        (8, Literal[8] | None, 8),
        ({"a": 1}, dict[str, int], {"a": 1}),
    ],
)
def test_what_fits_becomes_plain(value, hint, plain):
    found = fields.check("field", value, hint)
    assert found == plain
    assert type(found) is type(plain)
    assert repr(found) == repr(plain), "its elements are plain too"


@pytest.mark.parametrize(
    ("value", "hint", "sentence"),
    [
        (0, Annotated[Count, "pixels"], "a whole number of pixels, at least 1, not 0"),
        (2.0, Count, "a whole number, at least 1, not 2.0"),
        (10**400, Rate, "a number, at least 0, not 1000"),
        ((1, 0), Several[Count], r"one or more whole numbers, each at least 1, not \(1, 0\)"),
        ((1, 2), tuple[Count, Count, Count], "3 whole numbers, each at least 1, not"),
        (1.0, Annotated[float, Range(0, below=1)], "at least 0 and below 1, not 1.0"),
        (1, Literal["a", "b", "c"], "a, b or c, not 1"),
        (True, Literal[1, 2], "1 or 2, not True"),
        (8.0, Literal[8] | None, "8 or None, not 8.0"),
        (0, Samples | None, "a whole number of samples, at least 1, or None, not 0"),
        (np.arange(99), Rate, r"a number, at least 0, not array\(\[ 0,  ?1"),
        ("\n\t", str, r"some text, not '\\n\\t'"),
        ("y" * 999, Count, "not 'yyy.*…$"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(value, hint, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        fields.check("field", value, hint)
    assert str(error.value).startswith("field must be ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


# -- declarations ----------------------------------------------------------------------------------


def test_a_field_declared_again_keeps_its_range():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Wine(toys.Toy):
        batch_size: int = 16
        clip_norm: float | None = 1.0
        targets: tuple[Target, ...] = (Target("accuracy", at_least=0.5),)
        nonfinite: str = "skip"
        ema_decay: Annotated[float, Range(0.5, 0.7)] = 0.6

    for field, value in {
        "batch_size": 0,
        "clip_norm": -1.0,
        "targets": (),
        "nonfinite": "no",
        "ema_decay": 0.9,
    }.items():
        with pytest.raises(UserError, match=f"^{field} must be"):
            Wine(**{field: value})
    assert fields.limits(fields.hints_of(Wine)["ema_decay"]) == "from 0.5 to 0.7"


def test_a_text_of_several_words_is_help_and_no_rule():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Wine(toys.Toy):
        batch_size: Annotated[int, "bottles at a time"] = 16
        shelf: Annotated[Count, "pixels", "as seen from the door"] = 3
        sweet: Annotated[bool, "beyond 45 g/l"] = False

    class Red(Wine):
        shelf: int = 4
        sweet: Annotated[bool, "beyond 10 g/l"] = True

    hints, texts = fields.hints_of(Red), fields.helps_of(Red)
    assert hints["batch_size"] == Samples, "the range and the unit of the base hold on"
    assert (hints["shelf"], hints["sweet"]) == (Annotated[Count, "pixels"], bool)
    assert texts["batch_size"] == "bottles at a time"
    assert (texts["shelf"], texts["sweet"]) == ("as seen from the door", "beyond 10 g/l")
    assert "seed" not in texts


@pytest.mark.parametrize("name", CLASSES)
def test_help_is_a_few_words_in_one_voice(name):
    for text in fields.helps_of(CLASSES[name]).values():
        assert not text.endswith(".") and ". " not in text
        assert not text[0].isupper()


def test_every_option_of_a_run_has_help():
    texts = fields.helps_of(RunOptions)
    assert texts.keys() == {field.name for field in dataclasses.fields(RunOptions)}


def test_an_annotation_that_cannot_be_read_is_named():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Wine(toys.Toy):
        depth: "Dpeth" = 1  # noqa: F821

    with pytest.raises(UserError, match="Wine annotates a field with Dpeth"):
        Wine()


def test_replacing_a_field_checks_it():
    with pytest.raises(UserError, match="base_lr must be a number, at least 0, not nan"):
        benchmarks.get("resnet", tiny=True).replace(base_lr=math.nan)
    with pytest.raises(UserError, match="tiny must be True or False, not 'no'"):
        benchmarks.run("resnet", tiny="no")
    with pytest.raises(UserError, match="no 'accurancy': did you mean 'accuracy'"):
        benchmarks.get("resnet", targets=(Target("accurancy", at_least=0.5),))
    with pytest.raises(UserError, match="accuracy >= 2 cannot be: accuracy is from 0 to 1"):
        benchmarks.get("resnet").replace(targets=(Target("accuracy", at_least=2),))
