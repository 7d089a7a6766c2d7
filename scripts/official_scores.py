"""What the official tools say of every set of a round's tree: runs, minutes, verdict and validity.

Used by `compare_score.py`. All of it comes from the installed mlperf-logging: the result summarizer for
runs and minutes, the RCP checker for verdicts, the package checker's tests of seeds and numbers of runs.
"""

import contextlib
import functools
import importlib
import io
import json
import logging
import pathlib
import re
import sys
import types
from collections.abc import Iterator
from typing import Any
from unittest import mock

import yaml

_EARLY = ("0.6.0", "0.7.0")  # before the package checker asked for seeds and convergence


def folders(tree: pathlib.Path, suite: str) -> Iterator[pathlib.Path]:
    """The sets that the summarizer would visit: `<org>/results/<system>/[strong|weak/]<benchmark>`."""
    below = "*/*/*" if suite == "hpc" else "*/*"
    for results in sorted(tree.glob("**/results")):
        if "benchmarks" not in results.relative_to(tree).parts:
            yield from sorted(path for path in results.glob(below) if path.is_dir())


class _QuickRe:
    """`re` for the official readers, whose cut of a line at its last token is quadratic in its length."""

    def __getattr__(self, name: str) -> Any:
        return getattr(re, name)

    @staticmethod
    def sub(pattern: str, repl: str, string: str) -> str:
        """As `re.sub`."""
        if pattern != f".*{repl}" or "\n" in string[:-1]:
            return re.sub(pattern, repl, string)
        return string if repl not in string else repl + string.rpartition(repl)[2]


class Official:
    """The official tools, asked about one set after the other.

    Args:
        suite: "training" or "hpc".
        ruleset: such as "5.1.0".
    """

    def __init__(self, suite: str, ruleset: str):
        self.suite, self.ruleset = suite, ruleset
        package = "mlperf_logging"
        self.summarizer = importlib.import_module(f"{package}.result_summarizer.result_summarizer")
        self.checker = importlib.import_module(f"{package}.rcp_checker.rcp_checker")
        self.seeds = importlib.import_module(f"{package}.package_checker.seed_checker")
        self.compliance = importlib.import_module(f"{package}.compliance_checker.mlp_compliance")
        meta = importlib.import_module(f"{package}.benchmark_meta")
        self.counts = meta.get_result_file_counts(suite)
        self.benchmarks = meta.get_allowed_benchmarks(suite, ruleset)
        self.parser = importlib.import_module(f"{package}.compliance_checker.mlp_parser")
        self.read_log = self.summarizer._read_result_file
        self.runs: dict[str, Any] = {}
        self.undo = contextlib.ExitStack()

    def __enter__(self) -> "Official":
        """Lets them parse a log, and a rule file, once instead of once for each question."""
        parse = functools.lru_cache(maxsize=256)(self.parser.parse_file)
        self.forget = parse.cache_clear
        rule_file, loader = functools.cache(yaml.load), yaml.BaseLoader
        compiled = functools.cache(lambda text: compile(text, "<rule>", "eval"))
        rules = types.SimpleNamespace(
            load=lambda file, Loader: rule_file(file.read(), Loader), BaseLoader=loader
        )
        quick = _QuickRe()
        rulesets = [
            each for each in vars(self.parser).values() if isinstance(each, types.ModuleType)
        ]
        for module, name, instead in (
            (self.summarizer, "_read_result_file", self._read),
            (self.summarizer, "parse_file", parse),
            (self.parser, "parse_file", parse),
            (self.compliance, "yaml", rules),
            (self.compliance, "eval", lambda text, *where: eval(compiled(text), *where)),
            (self.checker, "re", quick),
            *((each, "re", quick) for each in rulesets),
        ):
            self.undo.enter_context(mock.patch.object(module, name, instead, create=True))
        logging.disable(logging.CRITICAL)
        self.undo.callback(logging.disable, logging.NOTSET)
        return self

    def __exit__(self, *exception: object) -> None:
        self.undo.close()

    def _read(self, file: str, usage: str, ruleset: str) -> Any:
        """The summarizer's own reading of a log, noted."""
        name = pathlib.Path(file).name
        try:
            lines = self.read_log(file, usage, ruleset)
            start, stop = self.summarizer._query_run_start_stop(lines)
        except Exception as error:
            self.compliance.enqueued_configs.clear()  # else the next log is checked by this one's
            self.runs[name] = f"{type(error).__name__}: {error}"
            raise
        self.runs[name] = (stop - start) / 60_000
        return lines

    def __call__(self, folder: pathlib.Path, division: str) -> dict[str, Any]:
        """What they say of one set, as JSON knows it.

        Args:
            folder: the set's.
            division: as the system's file says; the closed division alone is compared with the reference.
        """
        self.runs = {}
        self.forget()
        said: dict[str, Any] = {"runs": self.runs, "minutes": None, "models": None, "error": ""}
        weak = folder.parent.name == "weak"
        name = self.summarizer._benchmark_alias(folder.name)
        given = (name, folder.parent.name, False, str(folder), self.suite, self.ruleset)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                if weak:
                    values, _ = self.summarizer._compute_weak_score_standalone(*given)
                    said["minutes"] = values.get(f"{name}:time_to_train_all")
                    said["models"] = values.get(f"{name}:number_of_models")
                else:
                    said["minutes"] = self.summarizer._compute_strong_score_standalone(*given)[0]
            except Exception as error:  # it ends with a traceback on some logs
                said["error"] = f"{type(error).__name__}: {error}"
            said |= self._reference(folder, name) if division == "closed" and not weak else {}
            said["valid"] = self._valid(folder, name, division, weak, said)
        return said

    def _reference(self, folder: pathlib.Path, name: str) -> dict[str, Any]:
        if self.ruleset in _EARLY:
            return {}
        try:
            passed, message, factor = self.checker.check_directory(
                str(folder), self.suite, self.ruleset, False, False, rcp_pass="pruned_rcps"
            )
        except Exception as error:
            return {"passed": None, "message": f"{type(error).__name__}: {error}", "factor": None}
        return {"passed": bool(passed), "message": message, "factor": float(factor)}

    def _valid(self, folder, name, division, weak, said) -> bool | None:
        """What the package checker would say of it; None where it or a tool before it has no answer."""
        if name not in self.benchmarks or said["error"]:
            return None
        files = sorted(str(path) for path in folder.glob("result_*.txt"))
        wanted, drop = self.counts[name], 4 if name == "unet3d" else 1
        if len(files) < wanted or (len(files) > wanted and not weak):
            return False
        if sum(isinstance(run, str) for run in self.runs.values()) > drop:
            return False
        if division != "closed" or self.ruleset in _EARLY:
            return True
        if not self.seeds.SeedChecker(self.ruleset).check_seeds(files):
            return False
        return True if weak or name == "minigo" else said["passed"]


def division_of(folder: pathlib.Path, suite: str) -> str:
    """What the system's file says; "" without one."""
    system = folder.parents[1] if suite == "hpc" else folder.parent
    with contextlib.suppress(OSError, ValueError, AttributeError):
        file = system.parents[1] / "systems" / f"{system.name}.json"
        return str(json.loads(file.read_text(encoding="utf-8")).get("division", "")).strip().lower()
    return ""


def every(
    tree: pathlib.Path, suite: str, ruleset: str, keep: pathlib.Path | None
) -> dict[str, Any]:
    """What they say of every set of a tree, by the folder's name below it.

    Args:
        tree, suite, ruleset: the round.
        keep: a file to keep it in, read if there.
    """
    if keep is not None and keep.exists():
        return json.loads(keep.read_text())
    rules = importlib.import_module("mlperf_logging.compliance_checker")
    if not any((pathlib.Path(p) / f"{suite}_{ruleset}").is_dir() for p in rules.__path__):
        return {}  # v0.5, and v0.7 of HPC
    found = {}
    with Official(suite, ruleset) as ask:
        for number, folder in enumerate(folders(tree, suite), start=1):
            name = folder.relative_to(tree).as_posix()
            found[name] = ask(folder, division_of(folder, suite))
            if number % 50 == 0:
                print(f"official: {number} sets", file=sys.stderr)
    if keep is not None:
        keep.write_text(json.dumps(found, indent=1))
    return found
