"""What a person sees while a run goes on: one live line on a terminal or in a notebook, plain lines otherwise."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

import rich.console
import rich.progress

from mlperf_jax.errors import in_python
from mlperf_jax.results.story import Story, page

PLAIN_SECONDS = 5.0  # between plain lines
NOTEBOOK_SECONDS = 0.5  # between changes of a notebook's output


def make_progress(
    show: str, limit: int | None, story: Story, stream: TextIO | None = None
) -> Silent:
    """The display for `RunOptions.show`.

    Args:
        show: the option.
        limit: the last sample the run may see, for the ETA.
        story: of the run, which a notebook draws; it is told as the run goes on.
        stream: where lines go, stderr by default; a notebook has an output of its own.
    """
    to: TextIO = stream or sys.stderr
    if show == "none":
        return Silent()
    if show == "auto" and in_notebook():
        return Notebook(limit, story)
    if show == "auto" and to.isatty():
        return Live(limit, to)
    return Plain(limit, to)


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook: Jupyter, Colab, Kaggle, an editor's."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None


class Silent:
    """Shows nothing: processes other than 0, and tests."""

    def update(self, step: int, samples: int, scalars: Mapping[str, float]) -> None:
        """Called whenever scalars were read; must be cheap."""

    def say(self, text: str) -> None:
        """A line that stays."""

    def evaluated(self, samples: int, quality: Mapping[str, float]) -> None:
        """Called with the quality after so many samples, beside the line that `say` is given."""

    def close(self) -> None: ...


class Rate:
    """Samples per second over the last updates, and what is left until the limit."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._points: list[tuple[float, int]] = []

    def text(self, samples: int) -> str:
        now = time.perf_counter()
        self._points = [*self._points[-19:], (now, samples)]
        (begin, first), (end, last) = self._points[0], self._points[-1]
        if end <= begin or last <= first:
            return ""
        rate = (last - first) / (end - begin)
        left = f" · at most {_duration((self.limit - samples) / rate)} left" if self.limit else ""
        return f" · {rate:,.0f} samples/s{left}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def describe(step: int, samples: int, scalars: Mapping[str, float]) -> str:
    """ "step 40 · 2,560 samples · loss 1.234"."""
    values = " · ".join(f"{name} {value:.4g}" for name, value in scalars.items())
    return f"step {step:,} · {samples:,} samples · {values}"


class Plain(Silent):
    """A line every few seconds, for pipes and log files."""

    def __init__(self, limit: int | None, stream: TextIO) -> None:
        self._stream = stream
        self._rate = Rate(limit)
        self._last = 0.0

    def update(self, step: int, samples: int, scalars: Mapping[str, float]) -> None:
        rate = self._rate.text(samples)
        if time.perf_counter() - self._last >= PLAIN_SECONDS:
            self._last = time.perf_counter()
            self.say(describe(step, samples, scalars) + rate)

    def say(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody listens any more; the run goes on
            print(text, file=self._stream, flush=True)


class Live(Silent):
    """One line that changes in place, with a bar towards the last allowed sample."""

    def __init__(self, limit: int | None, stream: TextIO) -> None:
        self._rate = Rate(limit)
        columns = [rich.progress.TextColumn("{task.description}")]
        if limit:
            columns.insert(0, rich.progress.BarColumn(bar_width=24))  # type: ignore[arg-type]
        self._bar = rich.progress.Progress(
            *columns,
            console=rich.console.Console(file=stream),
            transient=True,
            refresh_per_second=5,
        )
        self._task = self._bar.add_task("starting", total=limit)
        self._bar.start()

    def update(self, step: int, samples: int, scalars: Mapping[str, float]) -> None:
        text = describe(step, samples, scalars) + self._rate.text(samples)
        self._bar.update(self._task, completed=samples, description=text)

    def say(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._bar.stop()


class Notebook(Silent):
    """One output that changes in place: where the run stands, a bar, curves that grow, and what was said."""

    def __init__(self, limit: int | None, story: Story) -> None:
        from IPython import display  # of the notebook itself

        self._html: Any = display.HTML
        self._story, self._rate, self._limit = story, Rate(limit), limit
        self._status, self._pace, self._samples = "is prepared and compiled", "", 0
        self._said: list[str] = []
        self._shown = time.perf_counter()
        self._output: Any = display.display(self._page(), display_id=True)

    def _page(self) -> Any:
        share = self._samples / self._limit if self._limit else None
        return self._html(page(self._story, self._status + self._pace, share, self._said))

    def _show(self) -> None:
        self._shown = time.perf_counter()
        self._output.update(self._page())

    def update(self, step: int, samples: int, scalars: Mapping[str, float]) -> None:
        self._story.add(samples, scalars)
        self._samples = samples
        self._status, self._pace = describe(step, samples, scalars), self._rate.text(samples)
        if time.perf_counter() - self._shown >= NOTEBOOK_SECONDS:
            self._show()

    def evaluated(self, samples: int, quality: Mapping[str, float]) -> None:
        self._story.add(samples, quality)
        self._samples = max(self._samples, samples)

    def say(self, text: str) -> None:
        self._said.append(in_python(text))
        self._show()

    def close(self) -> None:
        self._pace, self._limit = "", None  # no bar: nothing is under way any more
        self._show()
