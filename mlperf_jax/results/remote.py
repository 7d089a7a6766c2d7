"""An output folder in a bucket: written here, copied there.

Logs and scalars need appending and syncing, which object stores lack. So a run whose `--output` is
`gs://…` writes into a local folder and copies the small files at each checkpoint and at the end.
Checkpoints themselves are written to the bucket directly.
"""

import os
import pathlib
import re
import warnings
from typing import Any

from mlperf_jax.errors import UserError, optional

# What is copied, relative to the output folder. Checkpoints are not.
_FILES = (
    re.compile(r"result_\d+\.txt"),
    re.compile(r"run_\d+/(config|resumed|trained|scores|result)\.json|run_\d+/scalars\.jsonl"),
    re.compile(r"run_\d+/tensorboard/events\.out\.tfevents\.[\w.]+"),
)


class Mirror:
    """Keeps a bucket's copy of an output folder up to date; does nothing for a local one.

    Args:
        output: what the user gave: a local path, or a `gs://` one.
        filesystem: the fsspec filesystem of `output`; found by itself when None.

    Attributes:
        local: the folder to write into.
        url: the `gs://` folder, or None for a local output.

    Raises:
        UserError: the scheme is not supported, or the extra that reads it is not installed.
    """

    def __init__(self, output: str | pathlib.Path, *, filesystem: Any = None):
        text = str(output)
        self.url: str | None = None
        self._copied: dict[str, tuple[int, int]] = {}
        if "://" not in text:
            self.local = pathlib.Path(text).expanduser()
            return
        scheme = text.split("://", 1)[0]
        if scheme == "s3":
            raise UserError(
                f"output {text}: s3:// is not supported; mount the bucket (for instance with mountpoint-s3 "
                "or s3fs) and give the mounted folder"
            )
        if scheme != "gs":
            raise UserError(f"output {text}: give a local folder or a gs:// one")
        self.url = text.rstrip("/")
        self._remote = filesystem if filesystem is not None else _google(text)
        name = re.sub(r"\W+", "-", self.url.split("://", 1)[1])
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        self.local = pathlib.Path(cache).expanduser() / "mlperf_jax" / "outputs" / name

    def checkpoints(self, index: int) -> str:
        """Where the run's checkpoints go: below the bucket's folder, or below the local one."""
        root = str(self.local) if self.url is None else self.url
        return f"{root}/run_{index}/checkpoints"

    def pull(self) -> None:
        """Fetches what the bucket has and this machine lacks, so that a run can be resumed elsewhere.

        A file that is longer here and begins with the bucket's bytes is kept: the last copying failed.
        Any other difference means that the run went on elsewhere, and the bucket's file is taken.

        Raises:
            UserError: the bucket cannot be read.
        """
        if self.url is None:
            return
        bucket = self.url.split("://", 1)[1]
        try:
            found = self._remote.find(self.url, maxdepth=2)  # not the checkpoints
            for remote in [*found, *self._remote.glob(f"{self.url}/run_*/tensorboard/*")]:
                name = str(remote).split(bucket + "/", 1)[-1]
                if not any(pattern.fullmatch(name) for pattern in _FILES):
                    continue
                here = self.local / name
                self._copied.setdefault(name, (0, 0))
                content = self._remote.cat_file(remote)
                if here.exists() and here.read_bytes().startswith(content):
                    continue
                here.parent.mkdir(parents=True, exist_ok=True)
                part = here.with_name(here.name + ".part")
                part.write_bytes(content)
                part.replace(here)
        except FileNotFoundError:
            return  # nothing there yet
        except Exception as error:  # each filesystem raises its own kinds
            raise UserError(
                f"{self.url} cannot be read ({error}); check the name and your credentials"
            ) from error

    def push(self, *, final: bool = False) -> None:
        """Copies what has changed since the last call.

        A bucket that cannot be reached costs a running benchmark only a warning: the files are here
        and are copied next time.

        Args:
            final: raise instead of warning, as nothing will copy later.

        Raises:
            UserError: `final`, and the bucket cannot be written.
        """
        if self.url is None:
            return
        try:
            for path in sorted(self.local.rglob("*")):
                name = path.relative_to(self.local).as_posix()
                if not any(pattern.fullmatch(name) for pattern in _FILES):
                    continue
                state = (path.stat().st_size, path.stat().st_mtime_ns)
                if self._copied.get(name) != state:
                    self._remote.put_file(str(path), f"{self.url}/{name}")
                    self._copied[name] = state
            # an event file that another has replaced: TensorBoard would show its points twice
            for name in [name for name in self._copied if "/tensorboard/" in name]:
                if not (self.local / name).exists():
                    self._remote.rm_file(f"{self.url}/{name}")
                    del self._copied[name]
        except Exception as error:
            message = f"{self.url} cannot be written ({error}); the files are in {self.local}."
            if final:
                raise UserError(message) from error
            warnings.warn(message, stacklevel=2)


def _google(url: str) -> Any:
    return optional("gcsfs", "gcs", f"output {url}: gs://").GCSFileSystem()
