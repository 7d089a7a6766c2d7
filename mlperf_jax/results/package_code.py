"""The code of a submission: where it is to be found, or a copy of it."""

import hashlib
import os
import pathlib
import re
import subprocess
from collections.abc import Mapping

from mlperf_jax.errors import UserError
from mlperf_jax.results.package_set import LARGEST
from mlperf_jax.results.package_texts import Source

_SKIPPED = ("__pycache__", "node_modules", "mlperf_runs")
_MOST_FILES = 20_000


def find_source(
    recorded: str, copied: Mapping[str, pathlib.Path], url: str | None, commit: str | None
) -> Source:
    """Where the code of an implementation is, as far as it is known.

    Args:
        recorded: this library's version as the runs recorded it.
        copied: files that are copied along, by name; empty when there is only the pointer.
        url: public https address of the code.
        commit: its git commit; that of this library's checkout by default.

    Raises:
        UserError: the address or the commit is none.
    """
    if url and not re.fullmatch(r"https://[\w.-]+(:\d+)?/[\w./~+-]+", url):
        raise UserError(
            f"url is {url!r}; give the public https address of the code, without a login"
        )
    if commit and not re.fullmatch(r"[0-9a-f]{7,64}", commit):
        raise UserError(f"commit is {commit!r}; give the hexadecimal name of a git commit")
    version = recorded if re.fullmatch(r"\d[\w.+-]*", recorded) else ""
    digest = hashlib.sha256()
    for name, path in sorted(copied.items()):
        digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return Source(
        version=version,
        commit=commit or ("" if copied else _own_commit()),
        url=url or "",
        code_sha256=digest.hexdigest() if copied else "",
    )


def _own_commit() -> str:
    """The commit of the checkout that this library runs from; "" if there is none, or it was changed."""
    top = pathlib.Path(__file__).resolve().parents[2]
    if not (top / ".git").exists():
        return ""
    said = []
    for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", "mlperf_jax"]):
        try:
            done = subprocess.run(
                ["git", "-C", str(top), *words],
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return ""
        said.append(done.stdout.strip())
    return said[0] if not said[1] and re.fullmatch(r"[0-9a-f]{40,64}", said[0]) else ""


def code_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The files of a code folder by name below it, without hidden ones and caches.

    Raises:
        UserError: it is no folder, or holds what no submission may: links, large files, spaces.
    """
    if not folder.is_dir():
        raise UserError(f"code is {folder}, which is no folder; give the folder of the source code")
    found: dict[str, pathlib.Path] = {}
    for top, folders, names in os.walk(folder):
        here = pathlib.Path(top)
        folders[:] = [
            name
            for name in sorted(folders)
            if name not in _SKIPPED
            and not name.startswith(".")
            and not name.endswith(".egg-info")
            and not (here / name / "pyvenv.cfg").exists()
        ]
        for path in (here / name for name in sorted([*names, *folders])):
            if path.name.startswith(".") or path.suffix == ".pyc":
                continue
            if path.is_symlink():
                raise UserError(f"{path} is a link; a submission holds the files themselves")
            if " " in path.name:
                raise UserError(f"{path} has a space in its name, which no submission may have")
            if not path.is_file():
                continue
            if path.stat().st_size > LARGEST:
                raise UserError(f"{path} is larger than 50 MB, which no submission may hold")
            found[path.relative_to(folder).as_posix()] = path
        if len(found) > _MOST_FILES:
            raise UserError(f"{folder} holds more than {_MOST_FILES} files; give the code alone")
    if not found:
        raise UserError(
            f"the code folder {folder} holds no files; give the folder of the source code"
        )
    return found
