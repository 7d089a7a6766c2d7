"""What the command needs of where it is started: a working directory, and flags that XLA knows."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

from mlperf_jax.errors import UserError
from mlperf_jax.paths import directory_fault

_READS_FLAGS = "from jaxlib import xla_client; xla_client.CompileOptions()"


def check_directory() -> None:
    """Nothing, if the working directory is there.

    Raises:
        UserError: it was removed while a shell stood in it.
    """
    if fault := directory_fault():
        raise UserError(f"{fault} (cd) and say it again")


def check_flags(environment: Mapping[str, str] = os.environ) -> None:
    """Nothing, if XLA takes the flags of `XLA_FLAGS`; it ends the process that has others, so another one asks.

    Raises:
        UserError: there is an unknown flag, or one with a value that it does not take.
    """
    flags = environment.get("XLA_FLAGS", "")
    if not flags.strip():
        return
    asked = subprocess.run(
        [sys.executable, "-c", _READS_FLAGS],
        env={**environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if asked.returncode:
        first = (asked.stderr.strip().splitlines() or ["it ends the process"])[0]
        told = first.rpartition("] ")[2].rstrip(".")  # behind the file and line of XLA's own log
        raise UserError(f"XLA does not take XLA_FLAGS={flags!r}: {told}; correct it, or unset it")
