"""The display: a line now and then when piped, one that changes in place on a terminal."""

import io
import types

import pytest

from mlperf_jax.core import progress
from mlperf_jax.results.story import Story

STORY = Story("digits/run_0", {"accuracy": 0.95})


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves: clock[0] seconds."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def test_what_is_shown_where():
    assert isinstance(progress.make_progress("none", None, STORY, Terminal()), progress.Silent)
    assert isinstance(progress.make_progress("plain", None, STORY, Terminal()), progress.Plain)
    assert isinstance(progress.make_progress("auto", None, STORY, io.StringIO()), progress.Plain)
    live = progress.make_progress("auto", None, STORY, Terminal())
    assert isinstance(live, progress.Live)
    live.close()


def test_plain_lines_come_every_few_seconds(clock):
    stream = io.StringIO()
    plain = progress.Plain(None, stream)
    for step in range(1, 101):
        clock[0] += 0.1  # ten seconds in all
        plain.update(step, step * 32, {"loss": 1 / step})
    found = stream.getvalue().splitlines()
    assert 2 <= len(found) <= 3
    assert found[-1].startswith("step ")
    assert " · loss 0.0" in found[-1] and "320 samples/s" in found[-1]
    plain.say("epoch 1")
    assert stream.getvalue().endswith("epoch 1\n")


def test_rate_and_time_left(clock):
    rate = progress.Rate(limit=10_000)
    assert rate.text(0) == "", "nothing is known yet"
    clock[0] += 10
    assert rate.text(1000) == " · 100 samples/s · at most 1:30 left"
    clock[0] += 10
    assert rate.text(12_000).endswith("at most 0:00 left"), "never negative"
    assert progress.Rate(None).text(5) == ""


def test_long_times_have_hours():
    assert progress._duration(59.9) == "0:59"
    assert progress._duration(3600 * 30 + 61) == "30:01:01"


def test_live_display_shows_the_last_values_and_keeps_what_is_said():
    stream = Terminal()
    live = progress.make_progress("auto", 3200, STORY, stream)
    live.update(10, 320, {"loss": 1.25})
    live.say("epoch 1 · [accuracy] 0.5")
    live.close()
    shown = stream.getvalue()
    assert "epoch 1 · [accuracy] 0.5" in shown, "what is said is no markup"
    assert "step 10 · 320 samples · loss 1.25" in shown


# -- notebooks ---------------------------------------------------------------------------------------


class Output:
    """What a notebook shows of one output, each state of it."""

    def __init__(self):
        self.shown = []

    def update(self, page):
        self.shown.append(page)


@pytest.fixture
def notebook(monkeypatch):
    """As if this process were a notebook's kernel; gives the output that is displayed."""
    output = Output()

    def display(page, display_id):
        assert display_id is True
        output.update(page)
        return output

    shell = types.SimpleNamespace(kernel=object())
    of_display = types.SimpleNamespace(HTML=lambda text: text, display=display)
    fake = types.SimpleNamespace(get_ipython=lambda: shell, display=of_display)
    monkeypatch.setitem(progress.sys.modules, "IPython", fake)
    return output


def test_a_notebook_is_told_from_ipython_on_a_terminal(monkeypatch, notebook):
    assert progress.in_notebook()
    fake = types.SimpleNamespace(get_ipython=lambda: types.SimpleNamespace())
    monkeypatch.setitem(progress.sys.modules, "IPython", fake)
    assert not progress.in_notebook()
    monkeypatch.setitem(
        progress.sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: None)
    )
    assert not progress.in_notebook()
    monkeypatch.delitem(progress.sys.modules, "IPython")
    assert not progress.in_notebook()


def test_a_notebook_has_one_output_that_changes(notebook, clock):
    story = Story("digits/run_0", {"accuracy": 0.95})
    shown = progress.make_progress("auto", 6400, story)
    assert isinstance(shown, progress.Notebook)
    assert "compiled" in notebook.shown[0]
    for step in range(1, 101):
        clock[0] += 0.1  # ten seconds in all
        shown.update(step, step * 32, {"loss": 1 / step})
    assert 10 < len(notebook.shown) <= 22, "now and then, not at every step"
    shown.evaluated(3200, {"accuracy": 0.5})
    shown.say("epoch 1; --resume goes on")
    assert "epoch 1; resume=True goes on" in notebook.shown[-1]
    assert notebook.shown[-1].count("<polyline") == 2 and "width:50.0%" in notebook.shown[-1]
    shown.close()
    assert "step 100" in notebook.shown[-1] and "samples/s" not in notebook.shown[-1]


def test_plain_lines_can_be_had_in_a_notebook(notebook):
    assert isinstance(progress.make_progress("plain", None, STORY), progress.Plain)
    assert isinstance(progress.make_progress("none", None, STORY), progress.Silent)
