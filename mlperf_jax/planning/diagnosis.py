"""What this machine is, which libraries it has, and what would mend what is missing."""

from __future__ import annotations

import dataclasses
import html
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from mlperf_jax.core import peaks
from mlperf_jax.results.result import installed

_NOT_TOLD = (
    "cuda",
    "tpu",
    "all",
    "test",
    "dev",
    "docs",
)  # the devices' finding, sums, and work on the package itself
_BRINGS = {"jax[tpu]": "libtpu"}  # what a requirement is there for, where its name does not say it
LIBRARIES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
PATIENCE = 120  # seconds that devices have to answer
ROOM = 10e9  # bytes of disk below which runs with checkpoints are likely to fail
_DEVICES = """
import json, jax
devices = jax.devices()
stats = devices[0].memory_stats() or {}
print(json.dumps([devices[0].platform, devices[0].device_kind, len(devices), stats.get("bytes_limit")]))
"""


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis.

    Attributes:
        name: what was looked at.
        status: "good", "note" or "bad".
        text: what was found.
        mend: a command, or nothing.
    """

    name: str
    status: str
    text: str
    mend: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All findings; shows itself as text, in notebooks and as JSON."""

    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        return all(finding.status != "bad" for finding in self.findings)

    def __str__(self) -> str:
        marks = {"good": "ok  ", "note": "    ", "bad": "BAD "}
        width = max(len(finding.name) for finding in self.findings) + 2
        lines = []
        for finding in self.findings:
            lines.append(f"{marks[finding.status]}{finding.name:{width}}{finding.text}")
            if finding.mend:
                lines.append(f"    {'':{width}}mend: {finding.mend}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"

    def to_json(self) -> str:
        found = [dataclasses.asdict(finding) for finding in self.findings]
        return json.dumps({"healthy": self.healthy, "findings": found}, indent=2)


def doctor(
    version: Callable[[str], str | None] | None = None,
    environment: Mapping[str, str] = os.environ,
    folder: str | os.PathLike = ".",
) -> Diagnosis:
    """The diagnosis of this machine; nothing is changed.

    Args:
        version: the installed version of a package, or None; asks the installation by default.
        environment: variables that tell Colab and Kaggle from others.
        folder: whose disk is looked at.

    Example:
        print(doctor())
    """
    version = version or installed
    found = [
        _python(),
        *_versions(version),
        _devices(version, environment),
        _cores_and_memory(),
        _disk(folder),
        *_extras(version, environment),
    ]
    return Diagnosis(tuple(found))


def place(environment: Mapping[str, str] = os.environ) -> str:
    """ "colab", "kaggle" or "" elsewhere."""
    if "KAGGLE_KERNEL_RUN_TYPE" in environment:
        return "kaggle"
    return "colab" if any(name.startswith("COLAB_") for name in environment) else ""


def install(extra: str, environment: Mapping[str, str] = os.environ) -> str:
    """The one command that installs an extra, as a notebook's cell where there is one."""
    mark = "%" if place(environment) else ""
    return f'{mark}pip install "mlperf-jax[{extra}]"'


# -- what is looked at -----------------------------------------------------------------------------


def _python() -> Finding:
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    note = "; from 3.12 on there is a newer jax" if sys.version_info < (3, 12) else ""
    return Finding("python", "good", text + note)


def _versions(version: Callable[[str], str | None]) -> list[Finding]:
    have = {name: version(name) for name in LIBRARIES}
    text = ", ".join(f"{name} {found}" for name, found in have.items() if found)
    missing = [name for name, found in have.items() if not found and name != "libtpu"]
    findings = [Finding("libraries", "good", text)]
    if missing:
        text = f"missing: {', '.join(missing)}"
        findings = [Finding("libraries", "bad", text, "pip install mlperf-jax")]
    jax = have["jax"]
    companions = {
        "jaxlib": f"pip install jax=={jax} jaxlib=={jax}",
        "jax-cuda13-plugin": f'pip install "jax[cuda13]=={jax}"',
        "jax-cuda12-plugin": f'pip install "jax[cuda12]=={jax}"',
    }
    for name, mend in companions.items():
        found = version(name)
        if found and jax and numbers(found)[:2] != numbers(jax)[:2]:
            text = f"{name} {found} does not fit jax {jax}"
            findings.append(Finding("versions", "bad", text, mend))
    wanted = _wanted_libtpu(jax)
    if have["libtpu"] and wanted and not have["libtpu"].startswith(wanted):
        text = f"libtpu {have['libtpu']} does not fit jax {jax}, which wants {wanted}*"
        findings.append(Finding("versions", "bad", text, f'pip install "jax[tpu]=={jax}"'))
    return findings


def _wanted_libtpu(jax: str | None) -> str | None:
    """The beginning of the libtpu version that the installed jax pins, as "0.0.42."."""
    if jax is None:
        return None
    try:
        lines = metadata.requires("jax") or []
    except metadata.PackageNotFoundError:
        return None
    for line in lines:
        found = re.match(r"libtpu\s*==\s*([\d.]+?)\*", line)
        if found:
            return found[1]
    return None


def numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version.

    >>> numbers("0.10.2.dev1")
    (0, 10, 2, 1)
    """
    return tuple(int(number) for number in re.findall(r"\d+", version))


def _devices(version: Callable[[str], str | None], environment: Mapping[str, str]) -> Finding:
    """Found in a process of its own: an accelerator belongs to whoever asks first."""
    found, error = _ask_jax()
    if found is None:
        text = f"JAX cannot start: {error}"
        return Finding("devices", "bad", text, "close other notebooks and programs, or restart")
    kind, name, count, memory = found
    text = f"{count} x {name}" + (f", {memory / 2**30:.1f} GiB each" if memory else "")
    if kind != "cpu":
        peak = peaks.peak_flops(name, "bfloat16")
        known = "no peak is known: no MFU" if peak is None else f"bf16 peak {peak / 1e12:g} TFLOP/s"
        return Finding("devices", "good", f"{text}; {known}")
    tpu = "TPU_NAME" in environment or list(pathlib.Path("/dev").glob("accel[0-9]*"))
    there = ((shutil.which("nvidia-smi"), "an NVIDIA GPU", "cuda"), (tpu, "a TPU", "tpu"))
    for found, what, extra in there:
        if found:
            text = f"{text}, though there is {what}"
            return Finding("devices", "bad", text, install(extra, environment))
    return Finding("devices", "note", f"{text}: tiny runs and plans work, full ones take too long")


def _ask_jax() -> tuple[list[Any] | None, str]:
    command = [sys.executable, "-c", _DEVICES]
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        return None, f"its devices did not answer within {PATIENCE} s"
    lines = process.stdout.splitlines()
    if process.returncode == 0 and lines:
        return json.loads(lines[-1]), ""
    errors = [line for line in process.stderr.splitlines() if line.strip()]
    return None, errors[-1][:300] if errors else "no message"


def _cores_and_memory() -> Finding:
    cores = os.cpu_count() or 1
    try:
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return Finding("machine", "note", f"{cores} cores")
    text = f"{cores} cores, {pages / 2**30:.0f} GiB of memory"
    if pages < 12 * 2**30:
        return Finding("machine", "note", f"{text}; plans of the largest models may need 12 GiB")
    return Finding("machine", "good", text)


def _disk(folder: str | os.PathLike) -> Finding:
    path = pathlib.Path(folder).absolute()
    free = shutil.disk_usage(path).free
    text = f"{free / 1e9:,.0f} GB free in {path}"
    return Finding("disk", "good" if free >= ROOM else "note", text)


def _extras(version: Callable[[str], str | None], environment: Mapping[str, str]) -> list[Finding]:
    found = []
    for extra, packages in extras().items():
        missing = [package for package in packages if version(package) is None]
        if missing:
            text = f"not installed ({', '.join(missing)})"
            found.append(Finding(f"extra {extra}", "note", text, install(extra, environment)))
        else:
            found.append(Finding(f"extra {extra}", "good", ", ".join(packages)))
    return found


def extras() -> dict[str, tuple[str, ...]]:
    """Packages by extra, as the installed package or its sources name them."""
    lines: list[tuple[str, str]] = []
    source = pathlib.Path(__file__).parents[2] / "pyproject.toml"
    if source.is_file():
        project = tomllib.loads(source.read_text(encoding="utf-8")).get("project", {})
        for extra, wanted in project.get("optional-dependencies", {}).items():
            lines += [(extra, line) for line in wanted]
    else:
        try:
            wanted = metadata.requires("mlperf-jax") or []
        except metadata.PackageNotFoundError:
            wanted = []
        for line in wanted:
            marker = re.search(r"extra == ['\"]([\w-]+)", line)
            lines += [(marker[1], line)] if marker else []
    found: dict[str, list[str]] = {}
    for extra, line in lines:
        name = re.match(r"[\w.-]+(?:\[[\w,-]+\])?", line)
        if name and extra not in _NOT_TOLD:
            found.setdefault(extra, []).append(_BRINGS.get(name[0], name[0]))
    return {extra: tuple(packages) for extra, packages in found.items()}
