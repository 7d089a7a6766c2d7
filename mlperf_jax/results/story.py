"""What a run tells while it goes on and when it has ended: its loss and quality over samples, as curves."""

from __future__ import annotations

import html
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mlperf_jax.errors import UserError
from mlperf_jax.paths import check_writable
from mlperf_jax.pictures import curves
from mlperf_jax.results import log as logs, rules
from mlperf_jax.results.result import SMALL_PRINT, Result, Results, folder_of
from mlperf_jax.results.runs import RunFolder, Scalars, runs_at

NO_VALUES = ("step", "samples")  # of a line of scalars


@dataclass
class Story:
    """What one run logged, by name of the value.

    Attributes:
        name: of the run.
        levels: what has to be reached, by name of the quality.
        points: (samples, value) by name, in the order they came.
    """

    name: str
    levels: Mapping[str, float] = field(default_factory=dict)
    points: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def add(self, samples: int, values: Mapping[str, float]) -> None:
        """Notes values after so many samples; "mAP/class" and the like are left out."""
        for name, value in values.items():
            if "/" not in name:
                self.points.setdefault(name, []).append((samples, value))

    @classmethod
    def read(cls, run: RunFolder, name: str = "") -> Story:
        """The story of a run's folder, finished or not.

        Raises:
            UserError: its scalars or its log are damaged.
        """
        story = cls.of(targets_of(run), name or run.path.name)
        story.begin_with(run)
        return story

    def begin_with(self, run: RunFolder) -> None:
        """Takes up what a run's folder tells so far, in place of what was noted."""
        self.points.clear()
        for line in Scalars.read(run.scalars_path) if run.scalars_path.exists() else ():
            values = {key: value for key, value in line.items() if key not in NO_VALUES}
            self.add(line["samples"], values)
        for name, line in qualities(run.log_path, next(iter(self.levels), "quality")):
            self.add(line.metadata["samples_count"], {name: line.value})

    @classmethod
    def of(cls, targets: Sequence[rules.Target], name: str) -> Story:
        """One that has nothing to tell yet."""
        return cls(
            name, {target.name: target.bound for target in targets if target.bound is not None}
        )


def targets_of(run: RunFolder) -> list[rules.Target]:
    """What a run's configuration says that it has to reach."""
    return [rules.Target(**target) for target in run.config()["config"].get("targets", [])]


def qualities(log: pathlib.Path, first: str) -> Iterator[tuple[str, logs.Line]]:
    """Name and line of each quality in a log that says after how many samples it was; none without a log.

    Args:
        log: the file.
        first: the name of qualities that the log gives none, as a benchmark with one target does.
    """
    for line in logs.read(log) if log.exists() else ():
        number = isinstance(line.value, int | float)
        if (
            line.key in ("eval_accuracy", "eval_error")
            and number
            and isinstance(line.metadata.get("samples_count"), int)
        ):
            yield str(line.metadata.get("metric", first)), line


def draw(stories: Sequence[Story], names: Sequence[str] = ()) -> str:
    """Curves of some runs as SVG: the loss, and each quality that has a target beside its target.

    Args:
        stories: the runs; lines of one colour are one run's.
        names: of the values drawn; by default "loss" and what has a target.
    """
    levels = {name: bound for story in stories for name, bound in story.levels.items()}
    told = {name for story in stories for name in story.points}
    wanted = names or [name for name in ("loss", *levels) if name in told] or ["loss"]
    panels = [
        curves.Panel(
            name,
            {story.name: story.points[name] for story in stories if name in story.points},
            level=levels.get(name),
            dots=name in levels,
        )
        for name in wanted
    ]
    return curves.svg(panels)


def page(story: Story, status: str, share: float | None, said: Sequence[str]) -> str:
    """A run as a notebook shows it while it goes on, as HTML.

    Args:
        story: what it logged so far.
        status: where it stands, in a line.
        share: of the samples that it may see, in [0, 1]; None where nothing limits them.
        said: lines that stay.
    """
    bar = ""
    if share is not None:
        bar = (
            '<div style="height:6px;border-radius:3px;background:#8884;margin:4px 0">'
            f'<div style="height:6px;border-radius:3px;background:#56b4e9;width:{min(1, share):.1%}"></div></div>'
        )
    lines = "<br>".join(map(html.escape, said))
    return (
        '<div style="font:13px system-ui,sans-serif;max-width:760px">'
        f"<b>{html.escape(story.name)}</b> {html.escape(status)}{bar}"
        f"{draw([story]) if any(len(line) > 1 for line in story.points.values()) else ''}"
        f'<div style="max-height:12em;overflow:auto;opacity:.8">{lines}</div></div>'
    )


class Curves:
    """What runs logged, drawn beside each other; a notebook shows it, `save` writes it.

    Args:
        *paths: folders of runs (`…/run_0`) or of sets, whose runs are all drawn; or what `run` returned.
        values: names of what is drawn, such as "loss" or "accuracy"; by default the loss and what has a target.

    Raises:
        UserError: there is no run, or none logged such a value.
    """

    def __init__(
        self, *paths: str | os.PathLike | Result | Results, values: Sequence[str] = ()
    ) -> None:
        each = [
            one for given in paths for one in (given if isinstance(given, Results) else [given])
        ]
        folders = [folder_of(given) for given in each]
        self.stories = [story for path in folders for story in _stories(path, len(folders) > 1)]
        if not self.stories:
            raise UserError("no run was given: say the folder of a run, or of a set")
        known = sorted({name for story in self.stories for name in story.points})
        missing = [name for name in values if name not in known]
        if missing:
            raise UserError(f"no run logged {missing[0]!r}; logged were {', '.join(known)}")
        self.svg = draw(self.stories, values)

    def __repr__(self) -> str:
        return f"<Curves of {', '.join(story.name for story in self.stories)} (unverified)>"

    def _repr_html_(self) -> str:
        return self.svg + SMALL_PRINT

    def save(self, path: str | os.PathLike) -> None:
        """Writes the picture as an SVG file.

        Raises:
            UserError: the name does not end in .svg, the file cannot be written, or another would be lost.
        """
        if not os.fspath(path).endswith(".svg"):
            raise UserError(f"{path} must end in .svg: curves are SVG files")
        check_writable(path)
        try:
            pathlib.Path(path).write_text(self.svg, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def _stories(path: str | os.PathLike, several: bool) -> list[Story]:
    runs = runs_at(pathlib.Path(path).expanduser())
    if not runs:
        raise UserError(
            f"{path} is not the folder of a run: give what a run was given as its output, or a run_0, run_1 … in it"
        )
    names = [f"{run.root.name}/{run.path.name}" if several else run.path.name for run in runs]
    return [Story.read(run, name) for run, name in zip(runs, names, strict=True)]
