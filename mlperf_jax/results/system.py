"""On what a set of runs was run: from a submission's system file, or from our own run folders."""

import contextlib
import dataclasses
import json
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mlperf_jax.errors import UserError
from mlperf_jax.results import durable
from mlperf_jax.results.logset import RunLog


@dataclasses.dataclass(frozen=True, kw_only=True)
class System:
    """Who ran it, and on what.

    Attributes:
        name: the system's name.
        org: the submitter.
        division: what the system file says, "" without one.
        status: its availability, "" without a file.
        chip: the accelerator's name, "" where it is not known.
        chips: how many accelerators, or None.
    """

    name: str = ""
    org: str = ""
    division: str = ""
    status: str = ""
    chip: str = ""
    chips: int | None = None


@dataclasses.dataclass(frozen=True)
class OwnRun:
    """What the `run_<i>` folder beside a log of ours says, as far as it is there and readable.

    `outside` says that the benchmark is of the user's own file, not of this library.
    """

    tiny: bool = False
    outside: bool = False
    ruleset: str = ""
    chip: str = ""
    chips: int | None = None


def own_runs(folder: pathlib.Path, logs: Sequence[pathlib.Path]) -> dict[pathlib.Path, OwnRun]:
    """What our run folders say of the logs that are ours."""
    found = {}
    for path in logs:
        match = re.fullmatch(r"result_(\d+)\.txt", path.name)
        run = folder / f"run_{match[1]}" if match else None
        if run is None or not run.is_dir():
            continue
        result, config = _object(run / "result.json"), _object(run / "config.json")
        config = config.get("config")
        config = config if isinstance(config, dict) else {}
        chips = result.get("device_count")
        found[path] = OwnRun(
            tiny=result.get("tiny") is True or config.get("size") == "tiny",
            outside="code" in config,
            ruleset=str(result.get("ruleset") or ""),
            chip=str(result.get("device") or ""),
            chips=chips if isinstance(chips, int) else None,
        )
    return found


def find_system(
    folder: pathlib.Path,
    logs: Sequence[RunLog],
    own: dict[pathlib.Path, OwnRun],
    find: Callable[..., None],
) -> System:
    """The system of `<org>/results/<system>/[strong/|weak/]<benchmark>`, or what the logs say.

    Args:
        folder: the set's.
        logs: its logs.
        own: what our run folders say.
        find: called with (key, text, is it a warning) when the system file is missing or damaged.
    """
    said = System(
        name=most_frequent(log.platform for log in logs),
        org=most_frequent(log.org for log in logs),
        chip=most_frequent(run.chip for run in own.values()),
        chips=next((run.chips for run in own.values() if run.chips), None),
    )
    path = file_of(folder)
    if path is None:
        return said
    try:
        if unusual := durable.not_a_file(path):
            raise ValueError(f"it is {unusual}")
        file = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(file, dict):
            raise ValueError("it is not one JSON object")
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        find("", f"has no system file that can be read, systems/{path.name} ({why}).", True)
        return dataclasses.replace(said, name=path.stem)
    return System(
        name=path.stem,
        org=str(file.get("submitter") or said.org),
        division=str(file.get("division") or "").strip().lower(),
        status=str(file.get("status") or ""),
        chip=str(file.get("accelerator_model_name") or ""),
        chips=_chips(file),
    )


def file_of(folder: pathlib.Path) -> pathlib.Path | None:
    """Where a submission describes the system of a set's folder; None for a folder of another kind."""
    at = folder.absolute().parent
    at = at.parent if at.name in ("strong", "weak") else at
    return at.parent.parent / "systems" / f"{at.name}.json" if at.parent.name == "results" else None


def _chips(file: dict[str, Any]) -> int | None:
    with contextlib.suppress(KeyError, ValueError, TypeError):
        return int(file["number_of_nodes"]) * int(file["accelerators_per_node"])
    return None


def _object(path: pathlib.Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, UserError):
        found = durable.read_json(path)
        return found if isinstance(found, dict) else {}
    return {}


def most_frequent(words: Iterable[str]) -> str:
    """The most frequent word that is not empty; of equals the first."""
    return next((word for word, _ in Counter(w for w in words if w).most_common(1)), "")
