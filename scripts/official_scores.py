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

_RCP_ROUNDS_FROM = (1, 0)  # the package checker asks for seeds and convergence since v1.0


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
        try:
            self.benchmarks = meta.get_allowed_benchmarks(suite, ruleset)
        except ValueError:  # v0.5
            self.benchmarks = []
        self._hasten(package)
        self.read_log = self.summarizer._read_result_file
        self.summarizer._read_result_file = self._read
        self.runs: dict[str, Any] = {}

    def _hasten(self, package: str) -> None:
        """Lets them parse a log, and a rule file, once instead of once for each question."""
        parser = importlib.import_module(f"{package}.compliance_checker.mlp_parser")
        for name in dir(parser):
            if name.startswith("ruleset_"):
                getattr(parser, name).re = _QuickRe()
        self.checker.re = _QuickRe()
        parse, load = parser.parse_file, self.compliance.yaml.load
        parser.parse_file = functools.lru_cache(maxsize=128)(parse)
        self.summarizer.parse_file = parser.parse_file
        rule_file = functools.cache(lambda text: load(text, Loader=self.compliance.yaml.BaseLoader))
        quick = types.SimpleNamespace(
            load=lambda given, Loader: rule_file(given if isinstance(given, str) else given.read()),
            BaseLoader=self.compliance.yaml.BaseLoader,
        )
        self.compliance.yaml = quick
        compiled = functools.cache(lambda text: compile(text, "<rule>", "eval"))
        self.compliance.eval = lambda text, *where: eval(compiled(text), *where)
        self.forget = parser.parse_file.cache_clear

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
        logging.disable(logging.CRITICAL)
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
        if self.ruleset in ("0.5.0", "0.6.0", "0.7.0"):
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
        if division != "closed" or self.ruleset in ("0.6.0", "0.7.0"):
            return True
        if not self.seeds.SeedChecker(self.ruleset).check_seeds(files):
            return False
        return True if weak or name == "minigo" else said["passed"]


def division_of(tree: pathlib.Path, folder: pathlib.Path, suite: str) -> str:
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
    ask = Official(suite, ruleset)
    found = {}
    for number, folder in enumerate(folders(tree, suite), start=1):
        found[folder.relative_to(tree).as_posix()] = ask(folder, division_of(tree, folder, suite))
        if number % 50 == 0:
            print(f"official: {number} sets", file=sys.stderr)
    if keep is not None:
        keep.write_text(json.dumps(found, indent=1))
    return found
