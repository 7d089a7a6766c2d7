"""What a submission says about how its runs were made: read-me files and the scripts beside them.

Everything is derived from what the runs recorded. Whatever comes from there is quoted for the shell and
for JSON, so a hostile value stays text.
"""

import dataclasses
import json
import math
import re
import shlex
from typing import Any

from mlperf_jax.results.package_set import Set
from mlperf_jax.results.result import MARKS, NOTICE

REHEARSAL = "REHEARSAL with tiny runs on generated data: not a result, not for submission."

_HEAD = "#!/usr/bin/env bash\n# {what}\nset -euo pipefail\n"
# of the recorded options, those that decide what was computed; the others are paths and displays
_RUN_OPTIONS = ("mesh", "max_samples", "checkpoint_every", "threads", "org", "platform", "status")
_KEPT = ("mesh", "max_samples", "checkpoint_every", "threads", "processes")  # in config.json
_OF_FILES = ("optimizer", "transform")  # options that may name a Python file


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the code of an implementation is.

    Attributes:
        version: of this library, as the runs recorded it; "" when it ran from its sources.
        commit: git commit of these sources, or "".
        url: their public address, or "".
        code_sha256: digest of the copy below `code/`, or "" when there is none.
    """

    version: str = ""
    commit: str = ""
    url: str = ""
    code_sha256: str = ""

    def missing(self) -> list[str]:
        """What the code pointer still lacks to lead anybody to the code."""
        if self.code_sha256:
            return []
        return [name for name in ("commit", "url") if not getattr(self, name)]


@dataclasses.dataclass(frozen=True)
class Story:
    """How a set of runs was made: what the generated texts tell, and where they stand.

    Attributes:
        runs: the set.
        system, implementation: names, as in the submission.
        source: the code.
    """

    runs: Set
    system: str
    implementation: str
    source: Source

    @property
    def code(self) -> str:
        """The folder of the implementation, below the organisation's."""
        return f"benchmarks/{self.runs.official.log_name}/implementations/{self.implementation}"

    @property
    def how(self) -> str:
        """The folder of the system's scripts."""
        return f"benchmarks/{self.runs.official.log_name}/{self.system}"

    @property
    def results(self) -> str:
        """The folder of the logs."""
        deeper = "strong/" if self.runs.official.suite == "hpc" else ""
        return f"results/{self.system}/{deeper}{self.runs.official.log_name}"


def system_files(story: Story) -> dict[str, str]:
    """The files of `benchmarks/<benchmark>/<system>/`: name -> content."""
    options = {name: story.runs.first.options.get(name) for name in _KEPT}
    config = {"config": dict(story.runs.first.config), "options": options}
    return {
        f"{story.system}_{story.implementation}.json": _json(_summary(story)),
        "config.json": _json(config),
        "README.md": _system_readme(story),
        "setup.sh": _setup(story),
        "init_datasets.sh": _init_datasets(story),
        "run_and_time.sh": _run_and_time(story),
    }


def implementation_files(story: Story) -> dict[str, str]:
    """The files of `benchmarks/<benchmark>/implementations/<implementation>/`: name -> content."""
    source = dataclasses.asdict(story.source)
    pointer = {"implementation": story.implementation, "library": "mlperf-jax", **source}
    return {"README.md": _implementation_readme(story), "source.json": _json(pointer)}


def run_words(story: Story) -> tuple[list[str], list[str]]:
    """The words behind `mlperf-jax` that repeat the runs, and the fields that no word can carry.

    Paths, the seed and which process this is are not among them: the script asks for these.
    """
    runs, first = story.runs, story.runs.first
    words, left_out = ["run", runs.official.benchmark], []
    if runs.tiny:
        words.append("--tiny")
    words += ["--runs", str(len(runs.runs)), "--division", runs.division]
    for name in _RUN_OPTIONS:
        if first.options.get(name) is not None:
            words += _flag(name, first.options[name]) or []
    for name, value in first.config.items():
        if name in ("benchmark", "size", "division", *_OF_FILES):
            continue
        flag = _targets(value) if name == "targets" else _flag(name, value)
        if flag is None:
            left_out.append(name)
        else:
            words += flag
    for name in _OF_FILES:
        given = first.options.get(name)
        if isinstance(given, str):
            words += [f"--{name}", given.rpartition("/")[2]]
        elif first.config.get(name):
            left_out.append(name)
    return words, left_out


def _flag(name: str, value: Any) -> list[str] | None:
    """An option as typed, or None when it cannot be."""
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag] if value else [flag.replace("--", "--no-", 1)]
    items = list(value) if isinstance(value, list | tuple) else [value]
    if not items or not all(isinstance(item, str | int | float) for item in items):
        return [flag, "none"] if value is None else None
    if any(item == "" or (isinstance(item, float) and not math.isfinite(item)) for item in items):
        return None
    words = [str(item) for item in items]
    if any(word.startswith("-") and not word[1:2].isdigit() for word in words):
        return [f"{flag}={words[0]}"] if len(words) == 1 else None
    return [flag, *words]


def _targets(targets: Any) -> list[str] | None:
    words = []
    for target in targets:
        bounds = [
            f"{target['name']}{sign}{target[kind]!r}"
            for kind, sign in (("at_least", ">="), ("at_most", "<="), ("above", ">"))
            if target.get(kind) is not None
        ]
        if len(bounds) != 1:
            return None
        words += bounds
    return ["--targets", *words] if words else None


# ---- scripts


def _run_and_time(story: Story) -> str:
    runs = story.runs
    words, left_out = run_words(story)
    what = f"{len(runs.runs)} runs of {runs.official.log_name} on {story.system}"
    lines = [_HEAD.format(what=f"{what}, each with a seed of its own.")]
    if left_out:
        named = ", ".join(left_out)
        lines.append(
            f"# No option can carry: {named}. Their values are in config.json; give them in Python.\n"
            f"echo {shlex.quote(f'see config.json for {named}, which only Python can be given')} >&2\n"
            "exit 1\n"
        )
    if not runs.tiny:
        lines.append(': "${DATA_DIR:?set DATA_DIR to the folder of the prepared data}"')
    lines.append('OUTPUT="${OUTPUT:-runs}"')
    ending = [*_processes(story), '--output "$OUTPUT"']
    if not runs.tiny:
        ending.append('--data-dir "$DATA_DIR"')
    if ending[0].startswith("--coordinator") and "$" in ending[0]:
        lines.append(': "${COORDINATOR:?set COORDINATOR to host:port of process 0}"')
        lines.append(': "${PROCESS:?set PROCESS to the number of this process, from 0}"')
    return "\n".join([*lines, "", " \\\n    ".join([*_grouped(words), *ending]), ""])


def _processes(story: Story) -> list[str]:
    options = story.runs.first.options
    coordinator, count = options.get("coordinator"), options.get("processes")
    if coordinator is None:
        return []
    if coordinator == "auto":
        return ["--coordinator auto"]
    return [f'--coordinator "$COORDINATOR" --processes {int(count or 1)} --process "$PROCESS"']


def _grouped(words: list[str]) -> list[str]:
    """The command, quoted: one option with its values on each line."""
    lines = ["mlperf-jax"]
    for word in words:
        quoted = shlex.quote(word)
        if word.startswith("--"):
            lines.append(quoted)
        else:
            lines[-1] += f" {quoted}"
    return lines


def _setup(story: Story) -> str:
    first = story.runs.first
    extra = _jax_extra(first.result.device)
    pins = [
        shlex.quote(f"{name}{extra if name == 'jax' else ''}=={version}")
        for name, version in first.versions.items()
        if name not in ("python", "jaxlib", "mlperf-jax") and version != "not installed"
    ]
    python = re.sub(r"[^\w.+-]", "", first.versions.get("python", "")) or "3.11 or newer"
    lines = [
        _HEAD.format(what=f"Installs what the runs were made with; they had Python {python}."),
        f"python -m pip install {' '.join(pins)}" if pins else "",
        _install(story),
    ]
    return "\n".join(line for line in lines if line) + "\n"


def _install(story: Story) -> str:
    source = story.source
    if source.code_sha256:
        code = f"/../implementations/{story.implementation}/code"
        return f'python -m pip install "$(cd "$(dirname "$0")" && pwd){code}"'
    address = shlex.quote(source.url) if source.url else '"$REPOSITORY"'
    ask = ""
    if not source.url:
        ask = ': "${REPOSITORY:?set REPOSITORY to the git address of the library}"\n'
    at = f"@{source.commit}" if source.commit else ""
    return f"{ask}python -m pip install git+{address}{at}"


def _jax_extra(device: str) -> str:
    if device.lower() == "cpu":
        return ""
    return "[tpu]" if "tpu" in device.lower() else "[cuda13]"


def _init_datasets(story: Story) -> str:
    name = shlex.quote(story.runs.official.benchmark)
    if story.runs.tiny:
        return (
            _HEAD.format(what="Makes the small generated data of the rehearsal.")
            + f"\nmlperf-jax data build {name} --tiny\nmlperf-jax data check {name} --tiny\n"
        )
    return (
        _HEAD.format(what="Prepares the data from the downloaded original, and checks them.")
        + '\n: "${DATA_DIR:?set DATA_DIR to the folder to build below}"\n'
        + ': "${SOURCE:?set SOURCE to the downloaded archive or folder}"\n\n'
        + f'mlperf-jax data build {name} --data-dir "$DATA_DIR" --source "$SOURCE"\n'
        + f'mlperf-jax data check {name} --data-dir "$DATA_DIR"\n'
    )


# ---- documents


def _summary(story: Story) -> dict[str, Any]:
    official, first = story.runs.official, story.runs.first
    return {
        "benchmark": official.log_name,
        "ruleset": official.ruleset,
        "division": story.runs.division,
        "system": story.system,
        "implementation": story.implementation,
        "rehearsal": story.runs.tiny,
        "runs": len(story.runs.runs),
        "framework": f"JAX {first.versions.get('jax', '')}".strip(),
        "device": first.result.device,
        "versions": first.versions,
        **MARKS,
    }


def _system_readme(story: Story) -> str:
    runs = story.runs
    code = f"../implementations/{story.implementation}"
    needs = []
    for name in _OF_FILES:
        if ".py:" in str(runs.first.options.get(name)):
            needs += [f"The {name} came from a Python file: put it beside you first.", ""]
    return "\n".join(
        [
            f"# {runs.official.log_name} on {story.system}",
            "",
            *([f"**{REHEARSAL}**", ""] if runs.tiny else []),
            f"{runs.division.capitalize()} division, rules of {runs.official.ruleset}, "
            f"{len(runs.runs)} runs. The code: [{story.implementation}]({code}/README.md).",
            "",
            "    bash setup.sh            # the library and the versions it ran with",
            "    bash init_datasets.sh    # the data; wants DATA_DIR and SOURCE"
            if not runs.tiny
            else "    bash init_datasets.sh    # the generated data",
            "    bash run_and_time.sh     # the runs; logs in $OUTPUT/result_*.txt",
            "",
            *needs,
            "`config.json` holds every field of the benchmark as it was resolved for the runs; the seeds "
            "are in the logs. With several hosts, start `run_and_time.sh` on each.",
            "",
            NOTICE,
            "",
        ]
    )


def _implementation_readme(story: Story) -> str:
    official = story.runs.official
    source = story.source
    unknown = "(to be filled in)"
    lines = [
        f"# {story.implementation}: {official.log_name} in JAX",
        "",
        f"* library: mlperf-jax, benchmark `{official.benchmark}`",
        f"* version: {source.version or '(run from its sources)'}",
        f"* commit: {source.commit or unknown}",
        f"* URL: {source.url or unknown}",
        f"* copy: `code/`, sha256 {source.code_sha256}" if source.code_sha256 else "* copy: none",
        "",
        "The commit is that of the sources when this folder was made. What a system ran, with which "
        "settings and versions, stands in `../../<system>/`.",
        "",
    ]
    return "\n".join(lines)


def _json(document: Any) -> str:
    return json.dumps(document, indent=2) + "\n"
