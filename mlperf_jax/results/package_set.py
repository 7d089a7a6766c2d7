"""Whether the runs of a folder are one set that may be submitted, checked before anything is written."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from mlperf_jax.errors import UserError
from mlperf_jax.results import durable, log, rules
from mlperf_jax.results.compliance import harmless
from mlperf_jax.results.result import Result, config_hash
from mlperf_jax.results.runs import RunFolder, RunSet, config_changes

LARGEST = 50 * 2**20  # bytes; the official repository checker refuses larger files


@dataclasses.dataclass(frozen=True)
class Run:
    """What a finished run left behind.

    Attributes:
        folder: its files.
        config, options: as recorded in its config.json.
        result: how it ended.
        settings: what it logged before `run_start`, without the seed: key -> values.
        seed: the logged seed.
        began: milliseconds since 1970 of the log's first line.
    """

    folder: RunFolder
    config: Mapping[str, Any]
    options: Mapping[str, Any]
    result: Result
    settings: Mapping[str, tuple[Any, ...]]
    seed: int
    began: float

    def logged(self, key: str) -> Any:
        """The value of a setting, or None."""
        return next(iter(self.settings.get(key, ())), None)

    @property
    def versions(self) -> dict[str, str]:
        """Library versions, as the run recorded them."""
        return {str(name): str(version) for name, version in self.result.versions.items()}


@dataclasses.dataclass(frozen=True)
class Set:
    """The runs of one result, in the order in which they were launched.

    Attributes:
        official: the benchmark's rules.
        division: "closed" or "open".
        tiny: whether they are tiny runs.
        runs: exactly as many as that round wants.
    """

    official: rules.Round
    division: str
    tiny: bool
    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        """One that speaks for all: they are alike."""
        return self.runs[0]


def read_set(
    folder: pathlib.Path, *, ruleset: str | None, division: str | None, allow_tiny: bool
) -> Set:
    """The runs below an output folder, when they make a result.

    Args:
        folder: the output folder of the runs.
        ruleset: the round; the one the runs recorded by default.
        division: what the logs must say; whatever they say by default.
        allow_tiny: take tiny runs, for a rehearsal.

    Raises:
        UserError: naming the run and what is wrong with it.
    """
    folders = RunSet(folder).runs()
    if not folders:
        raise UserError(
            f"{folder} holds no runs (no result_0.txt, no run_0); give the output folder of a set"
        )
    runs = sorted((_read_run(each) for each in folders), key=lambda run: run.began)
    _same_benchmark(runs)
    first = runs[0]
    official = rules.resolve(first.result.benchmark, ruleset or first.result.ruleset or None)
    if first.logged("submission_benchmark") != official.log_name:
        raise UserError(
            f"{first.folder.log_path} is of {first.logged('submission_benchmark')!r}, but the rules of "
            f"{official.ruleset} call the benchmark {official.log_name!r}; give the ruleset that the "
            "runs were made for"
        )
    tiny = any(run.result.tiny or run.config.get("size") == "tiny" for run in runs)
    if tiny and not allow_tiny:
        raise UserError(
            f"{folder} holds tiny runs, which are no result; to rehearse the submission with them "
            "say so (allow_tiny, --allow-tiny)"
        )
    _count(folder, runs, official.runs, f"{official.benchmark} v{official.round}")
    _alike(runs)
    _seeds(runs)
    logged = _division(runs, division, tiny)
    return Set(official, logged, tiny, tuple(runs))


def _read_run(folder: RunFolder) -> Run:
    path = folder.log_path
    if not path.is_file():
        raise UserError(f"{folder.path} has no log {path.name}; restore it, or make the run again")
    if not folder.path.is_dir():
        raise UserError(
            f"{path} has no run folder {folder.path.name} with its configuration and result; give the "
            "folder as the runs left it"
        )
    if path.stat().st_size > LARGEST:
        raise UserError(f"{path} is larger than 50 MB, which no submission may hold; log less")
    lines = harmless(path)
    if not folder.finished:
        raise UserError(
            f"run {folder.index} in {folder.root} is not finished; take it up with --resume, or wait"
        )
    saved = folder.config()
    config, options = saved.get("config"), saved.get("options")
    if not isinstance(config, dict) or not isinstance(options, dict):
        raise UserError(f"{folder.config_path} lacks config or options; restore what the run saved")
    if config_hash(config) != saved["config_hash"]:
        raise UserError(
            f"{folder.config_path} was edited since the run (its hash is another); restore it"
        )
    run = Run(
        folder=folder,
        config=config,
        options=options,
        result=_typed(folder),
        settings=_settings(lines),
        seed=_seed(path, lines),
        began=lines[0].time_ms,
    )
    for where, seed in (("config.json", options.get("seed")), ("result.json", run.result.seed)):
        if seed != run.seed:
            raise UserError(
                f"{path} logs the seed {run.seed}, but {where} of run {folder.index} has {seed!r}: they "
                "are of different runs; restore the folder as the run left it"
            )
    return run


def _typed(folder: RunFolder) -> Result:
    """The result, its members used here being what they should be: the file may have been edited."""
    result = folder.result()
    kinds: dict[str, type] = {
        "benchmark": str,
        "tiny": bool,
        "device": str,
        "ruleset": str,
        "device_count": int,
        "versions": dict,
    }
    for name, kind in kinds.items():
        if not isinstance(getattr(result, name), kind):
            raise UserError(
                f"{name} in {folder.result_path} is {getattr(result, name)!r}; restore what the run saved"
            )
    return result


def _settings(lines: list[log.Line]) -> dict[str, tuple[Any, ...]]:
    settings: dict[str, tuple[Any, ...]] = {}
    for line in lines:
        if line.key == "run_start":
            break
        if line.event_type == "POINT_IN_TIME" and line.key != "seed":
            settings[line.key] = (*settings.get(line.key, ()), line.value)
    return settings


def _seed(path: pathlib.Path, lines: list[log.Line]) -> int:
    seeds = [line for line in lines if line.key == "seed"]
    if not seeds:
        raise UserError(f"{path} has no seed line; every run of a submission logs its seed")
    for line in seeds:
        if not isinstance(line.value, int) or isinstance(line.value, bool):
            raise UserError(
                f"line {line.lineno} of {path} has the seed {line.value!r}; it must be a whole number"
            )
    return seeds[0].value


def _same_benchmark(runs: list[Run]) -> None:
    names = {
        run.folder.index: (run.result.benchmark, run.logged("submission_benchmark")) for run in runs
    }
    for run in runs:
        if run.config.get("benchmark", run.result.benchmark) != run.result.benchmark:
            raise UserError(
                f"config.json of run {run.folder.index} is of {run.config['benchmark']!r}, its "
                f"result.json of {run.result.benchmark!r}; restore the folder as the run left it"
            )
    if len(set(names.values())) > 1:
        said = ", ".join(f"run {index} of {ours}" for index, (ours, _) in sorted(names.items()))
        raise UserError(
            f"{runs[0].folder.root} holds runs of different benchmarks ({said}); a result is of one: "
            "move the others away"
        )


def _count(folder: pathlib.Path, runs: list[Run], wanted: int, what: str) -> None:
    if len(runs) < wanted:
        raise UserError(
            f"{folder} holds {len(runs)} of the {wanted} runs that a result of {what} is made of; run the "
            f"others with the same output folder (--runs {wanted} --resume)"
        )
    if len(runs) > wanted:
        raise UserError(
            f"{folder} holds {len(runs)} runs, but a result of {what} is made of exactly {wanted}; the "
            "rules do not let you choose among finished runs: decide beforehand which are the set, and "
            "keep the others elsewhere"
        )


def _alike(runs: list[Run]) -> None:
    """One configuration, one system, one batch size: in config.json as in the logs."""
    first = runs[0]
    for run in runs[1:]:
        pair = f"runs {first.folder.index} and {run.folder.index} of {run.folder.root}"
        changes = config_changes(first.config, run.config)
        if changes:
            raise UserError(
                f"{pair} have different configurations ({'; '.join(changes)}); a result is of one"
            )
        for key in dict.fromkeys([*first.settings, *run.settings]):
            one, other = first.settings.get(key), run.settings.get(key)
            if not durable.same(list(one or ()), list(other or ())):
                raise UserError(
                    f"{pair} log a different {key} ({_shown(one)} and {_shown(other)}); a result is of "
                    "one configuration and one system"
                )
        for name in ("device", "device_count", "ruleset", "versions"):
            one, other = getattr(first.result, name), getattr(run.result, name)
            if one != other:
                raise UserError(
                    f"{pair} ran with a different {name} ({one!r} and {other!r}); a result is of one "
                    "system and one software"
                )


def _shown(values: tuple[Any, ...] | None) -> str:
    return "nothing" if not values else ", ".join(json.dumps(value) for value in values)


def _seeds(runs: list[Run]) -> None:
    seen: dict[int, int] = {}
    for run in runs:
        if run.seed in seen:
            raise UserError(
                f"runs {seen[run.seed]} and {run.folder.index} of {run.folder.root} have the same seed, "
                f"{run.seed}; every run needs one of its own: move one away and run it again"
            )
        seen[run.seed] = run.folder.index


def _division(runs: list[Run], wanted: str | None, tiny: bool) -> str:
    logged = runs[0].logged("submission_division")
    path = runs[0].folder.log_path
    if logged not in ("closed", "open"):
        raise UserError(f"{path} has the division {logged!r}; it must be closed or open")
    if wanted not in (None, "closed", "open"):
        raise UserError(f"division is {wanted!r}; give 'closed' or 'open'")
    if wanted is not None and wanted != logged:
        raise UserError(
            f"{path} is of the {logged} division, not {wanted}; a submission says what its logs say: "
            f"give division {logged!r}, or run again with --division {wanted}"
        )
    if tiny and logged != "open":
        raise UserError(f"{path} calls a tiny run closed; a tiny run is open: run it again")
    return logged


def legal_name(kind: str, name: Any) -> str:
    """A name that is safe as a folder, in a shell and in git.

    Raises:
        UserError: it is none.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}", name):
        raise UserError(
            f"{kind} is {name!r}; it names a folder: use letters, digits, '-', '_', '+' and dots inside, "
            "at most 100, with no spaces"
        )
    return name
