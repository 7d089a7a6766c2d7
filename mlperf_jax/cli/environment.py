"""What the command needs of where it is started: a working directory, and flags that XLA knows."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

from mlperf_jax.errors import UserError

_READS_FLAGS = "from jaxlib import xla_client; xla_client.CompileOptions()"


def check_directory() -> None:
    """Nothing, if the working directory is there.

    Raises:
        UserError: it was removed while a shell stood in it.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(
            "the working directory was removed: change to one that is there (cd), and say it again"
        ) from error


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
        told = (
            (asked.stderr.strip().splitlines() or ["it ends the process"])[0]
            .rpartition("] ")[2]
            .rstrip(".")
        )
        raise UserError(f"XLA does not take XLA_FLAGS={flags!r}: {told}; correct it, or unset it")
