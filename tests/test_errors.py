"""Sentences for users: one text, told in the words of the door it comes through."""

import dataclasses
import doctest
import typing

import pytest

from mlperf_jax import benchmarks, errors
from mlperf_jax.core.options import RunOptions
from mlperf_jax.errors import Interrupted, UserError, in_python


def test_examples():
    assert doctest.testmod(errors).failed == 0


@pytest.mark.parametrize(
    ("shell", "python"),
    [
        ("add --resume to train what it lacks of 5", "add resume=True to train what it lacks of 5"),
        ('say --division open (division="open")', 'say division="open"'),
        ("give data_dir (--data-dir DIR)", "give data_dir (data_dir=DIR)"),
        ("or leave --runs at 1", "or leave runs at 1"),
        ("give --processes N --process I", "give processes=N process=I"),
        ("lower --batch-size 64.", "lower batch_size=64."),
        ("or --no-packed", "or packed=False"),
        ("run `mlperf-jax run resnet --tiny`", "run `mlperf-jax run resnet --tiny`"),
        ("XLA_FLAGS=--xla_cpu=1 and a--b stay", "XLA_FLAGS=--xla_cpu=1 and a--b stay"),
        ("script.py --checkpoint_path x", "script.py --checkpoint_path x"),
        ("give --coordinator host:port", 'give coordinator="host:port"'),
        ("nothing to say", "nothing to say"),
    ],
)
def test_options_in_pythons_words(shell, python):
    assert in_python(shell) == python


def test_switches_are_the_options_that_are_true_or_false():
    hints = typing.get_type_hints(RunOptions)
    mine = {field.name for field in dataclasses.fields(RunOptions) if hints[field.name] is bool}
    assert mine <= errors.SWITCHES


@pytest.mark.parametrize(
    "error", [UserError("missing: add --resume"), Interrupted("stopped: --resume goes on", 2)]
)
def test_a_notebook_shows_the_sentence_alone(error):
    (shown,) = error._render_traceback_()
    assert shown.startswith(type(error).__name__) and "resume=True" in shown
    assert "--resume" in str(error), "a shell's words stay where a shell reads them"


def test_an_interrupt_at_once_is_told_in_python(monkeypatch, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("mlperf_jax.benchmarks.data_folder", interrupt)
    with pytest.raises(Interrupted, match="interrupted at once") as caught:
        benchmarks.run("resnet", tiny=True, output=tmp_path / "x")
    assert caught.value.signal == 2 and not (tmp_path / "x").exists()
