"""The official submission folder, built from the runs of one set and judged by the official checkers.

    <output>/<org>/systems/<system>.json
    <output>/<org>/benchmarks/<benchmark>/implementations/<implementation>/   where the code is
    <output>/<org>/benchmarks/<benchmark>/<system>/                           how the runs were made
    <output>/<org>/results/<system>/<benchmark>/result_0.txt …                the logs, and scaling.json

HPC results lie one folder deeper, below `strong`. A folder that exists is added to: results of other
systems and benchmarks stay as they are, and so does a system file, which people complete by hand.
"""

import dataclasses
import html
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

from mlperf_jax.errors import UserError
from mlperf_jax.paths import check_path
from mlperf_jax.results import durable, package_texts, system_file
from mlperf_jax.results.compliance import Finding
from mlperf_jax.results.package_check import Verdict, check_tree
from mlperf_jax.results.package_code import code_files, find_source
from mlperf_jax.results.package_set import Set, legal_name, read_set
from mlperf_jax.results.result import LEGEND, MARKS, SMALL_PRINT, UNVERIFIED


@dataclasses.dataclass(frozen=True, kw_only=True)
class Package:
    """A submission folder and what the official checkers say about it.

    Attributes:
        path: the organisation's folder.
        success: whether the official checkers accept it, the results that were there before included.
        findings: what they found, in plain words.
        notes: what is good to know.
        to_fill: what a person has yet to fill in: "file: fields".
        raw: the checkers' text, unchanged.
        benchmark: the official name.
        ruleset: such as "4.0.0".
        division: "closed" or "open".
        system: the system's name.
        logs: the logs in the folder, in the order in which the runs were launched.
        rehearsal: whether it was made of tiny runs.
    """

    path: str
    success: bool
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    to_fill: tuple[str, ...]
    raw: str
    benchmark: str
    ruleset: str
    division: str
    system: str
    logs: tuple[str, ...]
    rehearsal: bool

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, with the notices that go with any result."""
        return durable.plain(dataclasses.asdict(self), "the package") | MARKS

    def __str__(self) -> str:
        lines = [self._head()]
        if self.rehearsal:
            lines.append(package_texts.REHEARSAL)
        lines += [f"  {text}" for text in (*self._said(), *self.notes)]
        lines += [f"  to be filled in by hand: {text}" for text in self.to_fill]
        return "\n".join([*lines, UNVERIFIED, LEGEND])

    def _repr_html_(self) -> str:
        groups = {
            "findings": self._said(),
            "notes": list(self.notes),
            "to be filled in by hand": list(self.to_fill),
        }
        parts = [f"<b>{html.escape(self._head())}</b>"]
        if self.rehearsal:
            parts.append(f"<p>{html.escape(package_texts.REHEARSAL)}</p>")
        for title, texts in groups.items():
            items = "".join(f"<li>{html.escape(text)}</li>" for text in texts)
            parts += [f"<p>{title}</p><ul>{items}</ul>"] if items else []
        return "".join([*parts, SMALL_PRINT])

    def _said(self) -> list[str]:
        return [f"{'warning: ' if f.warning else ''}{f}" for f in self.findings]

    def _head(self) -> str:
        verdict = "passes" if self.success else "does not pass"
        return (
            f"{self.path}: {verdict} the official package checker ({self.benchmark} on {self.system}, "
            f"{len(self.logs)} unverified runs, {self.division} division, ruleset {self.ruleset})"
        )


def package(
    runs_folder: os.PathLike | str,
    *,
    org: str,
    system: str,
    output: os.PathLike | str,
    division: str | None = None,
    status: str | None = None,
    submitter: str | None = None,
    ruleset: str | None = None,
    implementation: str = "mlperf_jax",
    machine: Mapping[str, Any] | None = None,
    code: os.PathLike | str | None = None,
    url: str | None = None,
    commit: str | None = None,
    allow_tiny: bool = False,
) -> Package:
    """Builds the submission folder of one result and asks the official checkers about it.

    Everything is checked first, then built beside the folder and moved in; a call that ends with an
    error leaves the folder as it was. What the official checkers find is no error but the verdict: the
    folder is there to be looked at.

    Args:
        runs_folder: the output folder of the runs: exactly as many as the round wants, all finished.
        org: the organisation; names the folder below `output`.
        system: the system; names its files.
        output: the folder that holds, or is to hold, the organisation's.
        division: "closed" or "open", to be sure; the logs say which it is.
        status: availability: "onprem", "cloud", "preview", "research" or the official words; what the
            runs say by default.
        submitter: who submits, in words; `org` by default.
        ruleset: the round; the one the runs were made for by default.
        implementation: names the folder with the code pointer.
        machine: the fields of the system file, see `system_file.this_machine`; read from this machine by
            default, which must then be the kind that trained.
        code: a folder of source code to copy along; by default the package points to the commit.
        url: public https address of the code.
        commit: git commit of the code; that of this library's checkout by default, where it is one.
        allow_tiny: make a rehearsal of tiny runs, marked as such.

    Raises:
        UserError: naming the run, file or name that stands against it.
    """
    for kind, name in (("org", org), ("system", system), ("implementation", implementation)):
        legal_name(kind, name)
    if system == "implementations":
        raise UserError("system is 'implementations', which is a folder of its own; rename it")
    runs = read_set(
        _local(runs_folder, "runs_folder"),
        ruleset=ruleset,
        division=division,
        allow_tiny=allow_tiny,
    )
    notes: list[str] = []
    document = _system_document(runs, system, submitter or org, status, machine, notes)
    copied = {} if code is None else code_files(_local(code, "code"))
    source = find_source(runs.first.versions.get("mlperf-jax", ""), copied, url, commit)
    story = package_texts.Story(runs, system, implementation, source)
    root = _local(output, "output") / org
    verdict = _make(root, story, document, copied)
    results = root / story.results
    return Package(
        path=str(root),
        success=verdict.success,
        findings=verdict.findings,
        notes=(*notes, *verdict.notes),
        to_fill=_to_fill(root, story),
        raw=verdict.raw,
        benchmark=runs.official.log_name,
        ruleset=runs.official.ruleset,
        division=runs.division,
        system=system,
        logs=tuple(str(results / f"result_{i}.txt") for i in range(len(runs.runs))),
        rehearsal=runs.tiny,
    )


def _local(path: os.PathLike | str, name: str) -> pathlib.Path:
    if not os.fspath(path) or "://" in os.fspath(path):
        raise UserError(f"{name} is {os.fspath(path)!r}; copy it to, or give, a local folder")
    return check_path(path, name).absolute()


# ---- what goes in


def _system_document(
    runs: Set,
    name: str,
    submitter: str,
    status: str | None,
    machine: Mapping[str, Any] | None,
    notes: list[str],
) -> dict[str, Any]:
    first = runs.first
    # logs of the rounds after 4.0 do not name it
    recorded = first.logged("submission_status") or first.options.get("status")
    given = status or recorded
    official = system_file.STATUSES.get(str(given), given)
    if official not in system_file.STATUSES.values():
        options = ", ".join([*system_file.STATUSES, *map(repr, system_file.STATUSES.values())])
        raise UserError(f"status is {given!r}; give one of {options}")
    if system_file.STATUSES.get(str(recorded)) != official:
        notes.append(f"the runs say {recorded!r} for the status, the system file {official!r}.")
    if not isinstance(submitter, str) or not re.fullmatch(r"[^\x00-\x1f\x7f]{1,200}", submitter):
        raise UserError(f"submitter is {submitter!r}; give a name on one line")
    if machine is None:
        machine = system_file.this_machine()
        notes.append(
            "the system file describes the host that this was made on; if the runs were made on another, "
            "say what that one is (machine, --machine)."
        )
    options, result = first.options, first.result
    shown = machine.get("system_name") or name
    processes = options.get("processes") or (None if options.get("coordinator") else 1)
    document = system_file.describe(
        submitter=submitter,
        division=runs.division,
        status=str(official),
        system_name=str(shown),
        machine=machine,
        device=result.device,
        device_count=result.device_count,
        processes=processes if isinstance(processes, int) else None,
        versions=first.versions,
    )
    if runs.tiny:
        document["sw_notes"] = f"{package_texts.REHEARSAL} {document['sw_notes']}".strip()
    return document


def _to_fill(root: pathlib.Path, story: package_texts.Story) -> tuple[str, ...]:
    document = durable.read_json(root / f"systems/{story.system}.json")  # perhaps completed by hand
    texts = []
    empty = system_file.to_fill(document)
    if empty:
        texts.append(f"systems/{story.system}.json: {', '.join(empty)}")
    lacking = story.source.missing()
    if lacking:
        texts.append(f"{story.code}/README.md: {', '.join(lacking)} of the code")
    _, left_out = package_texts.run_words(story)
    if left_out:
        script = f"{story.how}/run_and_time.sh"
        texts.append(f"{script}: how {', '.join(left_out)} were given, which no option can carry")
    return tuple(texts)


# ---- building and moving in


def _make(
    root: pathlib.Path,
    story: package_texts.Story,
    document: Mapping[str, Any],
    copied: Mapping[str, pathlib.Path],
) -> Verdict:
    """Builds the folder beside its place, has it judged, moves it in, and returns the verdict."""
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is a file; give another output folder, or remove it")
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        staging = pathlib.Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    except OSError as error:
        raise durable.cannot_write(root, error) from error
    staged = staging / root.name
    try:
        new = _build(staged, root, story, document, copied)
        official = story.runs.official
        verdict = check_tree(staged, official.ruleset, official.suite)
        built_at = str(staged.resolve())
        _install(staged, root, new)
    except OSError as error:
        raise durable.cannot_write(root, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)

    def placed(text: str) -> str:
        return text.replace(built_at, str(root))

    texts = ("file", "expected", "advice", "official")
    return Verdict(
        success=verdict.success,
        findings=tuple(
            dataclasses.replace(finding, **{n: placed(getattr(finding, n)) for n in texts})
            for finding in verdict.findings
        ),
        notes=tuple(map(placed, verdict.notes)),
        raw=placed(verdict.raw),
    )


def _build(
    staged: pathlib.Path,
    root: pathlib.Path,
    story: package_texts.Story,
    document: Mapping[str, Any],
    copied: Mapping[str, pathlib.Path],
) -> list[str]:
    """Makes the whole folder in `staged`, what exists included; returns what is new, results last."""
    if (root / story.results).exists():
        raise UserError(
            f"{root / story.results} exists; results are never overwritten: remove it, or name another system"
        )
    if root.exists():
        shutil.copytree(root, staged, copy_function=_link, symlinks=True)
    new = []
    if (root / story.code).exists():
        _same_source(root / story.code, story.source)
    else:
        _write(staged / story.code, package_texts.implementation_files(story))
        for name, path in copied.items():
            target = staged / story.code / "code" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        new.append(story.code)
    if not _same_files(root / story.how, package_texts.system_files(story)):
        _write(staged / story.how, package_texts.system_files(story))
        new.append(story.how)
    about = f"systems/{story.system}.json"
    if (root / about).exists():
        _same_system(root / about, document)
    else:
        _write(staged / "systems", {f"{story.system}.json": json.dumps(document, indent=2) + "\n"})
        new.append(about)
    (staged / story.results).mkdir(parents=True)
    for number, run in enumerate(story.runs.runs):
        shutil.copyfile(run.folder.log_path, staged / story.results / f"result_{number}.txt")
    return [*new, story.results]


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def _write(folder: pathlib.Path, files: Mapping[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = folder / name
        path.write_text(text, encoding="utf-8")
        if name.endswith(".sh"):
            path.chmod(0o755)


def _same_source(folder: pathlib.Path, source: package_texts.Source) -> None:
    """Refuses an implementation of that name that is another code; its read-me is left as it is."""
    path = folder / "source.json"
    there = durable.read_json(path) if path.is_file() else {}
    for name in ("version", "commit", "code_sha256"):
        ours = getattr(source, name)
        theirs = there.get(name) if isinstance(there, dict) else None
        if ours != theirs:
            raise UserError(
                f"{folder} is another code (its {name} is {theirs or 'not told'}, that of these runs "
                f"{ours or 'not known'}); name another implementation"
            )


def _same_files(folder: pathlib.Path, files: Mapping[str, str]) -> bool:
    """Whether a folder is there already and says the same; one that says something else is refused."""
    if not folder.exists():
        return False
    for name, text in files.items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            raise UserError(
                f"{folder} exists and its {name} is not what these runs were made with; move it away, or "
                "name another system"
            )
    return True


def _same_system(path: pathlib.Path, document: Mapping[str, Any]) -> None:
    """Refuses a system file that contradicts the runs; one that was completed by hand is kept."""
    there = durable.read_json(path)
    system_file.check_document(there, str(path))
    for name in ("submitter", "division", "status", "number_of_nodes", "accelerators_per_node"):
        if there[name] != document[name] and document[name]:
            raise UserError(
                f"{path} has {name} {there[name]!r}, but these runs are {document[name]!r}; mend the "
                "file, or name another system"
            )
    marked = [package_texts.REHEARSAL in str(d.get("sw_notes", "")) for d in (there, document)]
    if marked[0] != marked[1]:
        raise UserError(
            f"{path} is {'' if marked[0] else 'not '}of a rehearsal, these runs are "
            f"{'' if marked[1] else 'not '}tiny; name another system"
        )


def _install(staged: pathlib.Path, root: pathlib.Path, new: list[str]) -> None:
    """Moves what is new into place, each part by one rename, the results last."""
    for path in staged.rglob("*"):
        if path.is_file() and any(path.is_relative_to(staged / part) for part in new):
            with open(path, "rb") as f:
                os.fsync(f.fileno())
    if not root.exists():
        os.rename(staged, root)
        durable.sync_folder(root.parent)
        return
    for part in new:
        target = root / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            raise UserError(
                f"{target} was made meanwhile by another process; look at it, try again"
            )
        os.rename(staged / part, target)
        durable.sync_folder(target.parent)
