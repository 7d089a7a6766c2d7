"""Options from dataclass fields, and words read as their values."""

import dataclasses

import pytest

from mlperf_jax import benchmarks
from mlperf_jax.cli import options
from mlperf_jax.cli.options import Option
from mlperf_jax.core.benchmark import Target
from mlperf_jax.core.options import RunOptions
from mlperf_jax.errors import UserError


@pytest.mark.parametrize("name", benchmarks.names())
def test_every_field_can_be_typed(name):
    for cls in (RunOptions, benchmarks.benchmark_class(name)):
        offered = {option.name for option in options.options_of(cls)}
        assert offered == {field.name for field in dataclasses.fields(cls)}


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


# -- words in order ----------------------------------------------------------------------------

NAME, FILES = Option("name", help="a name"), Option("files", tuple[str, ...], ())


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ("a", {"name": "a", "files": ()}),
        ("a b --seed 3 c", {"name": "a", "files": ("b", "c"), "seed": 3}),
    ],
)
def test_a_tuple_takes_the_words_that_are_left(words, given):
    seed = Option("seed", int)
    assert options.parse("read", "read it", words.split(), [NAME, FILES], [seed]) == given


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "read needs a name: write mlperf-jax read NAME --seed N [options]"),
        ("a", "read needs --seed, where it begins: write mlperf-jax read NAME --seed N [options]"),
        ("a b --seed 3", "'b' belongs to no option: write mlperf-jax read NAME --seed N [options]"),
        ("a --no-seed 3", "read has no option --no-seed: did you mean '--seed'?"),
    ],
)
def test_what_is_needed_is_said_with_the_usage(words, said):
    seed = Option("seed", int, help="where it begins", required=True)
    with pytest.raises(UserError) as error:
        options.parse("read", "read it", words.split(), [NAME], [seed])
    assert str(error.value) == said


def test_a_word_that_does_not_fit_is_called_by_its_place():
    with pytest.raises(UserError, match=r"^NAME must be some text, not ''$"):
        options.parse("read", "read it", [""], [NAME])
