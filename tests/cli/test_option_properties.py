"""Of any words at all, the command line makes values, one sentence, or help."""

import contextlib
import io
from typing import Literal

from hypothesis import given, strategies as st

from mlperf_jax.cli import options
from mlperf_jax.cli.options import Option
from mlperf_jax.core.fields import Count, Rate, Several
from mlperf_jax.core.options import Seed
from mlperf_jax.errors import UserError

NAME = Option("name", help="a name")
OWN = [
    Option("seed", Seed | None, help="a seed"),
    Option("base_lr", Rate, 1.0, "a rate"),
    Option("stages", Several[Count], (1,), "stages"),
    Option("tiny", bool, help="a switch"),
    Option("flip", bool, True, "one with two names"),
    Option("show", Literal["auto", "none"], "auto", "a choice"),
]
flags = st.sampled_from(
    "--seed --base-lr --base_lr --stages --tiny --flip --no-flip --show --sede -x -- --seed= --tiny=1 -1".split()
)
words = st.lists(
    flags | st.text(max_size=8) | st.integers().map(str) | st.floats().map(str), max_size=8
)


def parsed(given_words):
    with contextlib.redirect_stdout(io.StringIO()):
        return options.parse("run", "train", given_words, [NAME], OWN)


@given(words)
def test_any_words(given_words):
    found, said, code = None, None, None
    try:
        found = parsed(given_words)
    except UserError as error:
        said = str(error)
    except SystemExit as stop:
        code = stop.code
    if found is not None:
        assert found.keys() <= {option.name for option in (NAME, *OWN)} and "name" in found
    elif said is not None:
        assert said and not said.endswith(".")
    else:
        assert code == 0 and {"--help", "-h"} & {*given_words}


@given(
    st.integers(0, 2**32 - 1),
    st.floats(0, 1e6),
    st.lists(st.integers(1, 99), min_size=1, max_size=4),
    st.booleans(),
    st.permutations(range(4)),
    st.booleans(),
)
def test_the_same_in_any_order_and_spelling(seed, rate, stages, flip, order, equals):
    pairs = [
        ("--seed", [str(seed)]),
        ("--base-lr", [repr(rate)]),
        ("--stages", [*map(str, stages)]),
    ]
    given_words = [[f"{k}={v[0]}"] if equals and len(v) == 1 else [k, *v] for k, v in pairs]
    given_words.append(["--flip" if flip else "--no-flip"])
    found = parsed(["resnet", *(word for i in order for word in given_words[i])])
    expected = {
        "name": "resnet",
        "seed": seed,
        "base_lr": rate,
        "stages": tuple(stages),
        "flip": flip,
    }
    assert found == expected


@given(st.text(min_size=1).filter(lambda text: text.strip() and not text.startswith("-")))
def test_a_word_is_taken_as_it_is(text):
    assert parsed([text])["name"] == text
