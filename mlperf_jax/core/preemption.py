"""Being asked to stop: SIGTERM, Ctrl-C and a terminal that goes away end a run at the next step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from mlperf_jax.errors import Interrupted


class Preemption:
    """Remembers SIGTERM, SIGHUP and SIGINT while active; a second SIGINT interrupts at once.

    SIGHUP stays ignored where it was, as under `nohup`. With several processes all of them agree on the step at which to stop, by JAX's preemption service
    (it is told of SIGTERM by the runtime itself).
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():
            # the runtime of several processes has its own SIGTERM handler, which must stay
            numbers = [signal.SIGINT]
            if jax.process_count() == 1:
                numbers.append(signal.SIGTERM)
            if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
                numbers.append(signal.SIGHUP)
            for number in numbers:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        if jax.process_count() > 1:  # pass it on to the runtime, which tells all processes
            signal.raise_signal(signal.SIGTERM)

    def requested(self, step: int) -> bool:
        """Whether to stop before this step; the same answer on every process."""
        if jax.process_count() == 1:
            return self.signal is not None
        if multihost_utils.reached_preemption_sync_point(step):
            self.signal = self.signal or signal.SIGTERM
            return True
        return False

    def check_between(self, left: int) -> None:
        """Nothing, if no signal came since the last step, or no run follows; several processes ask at the next's.

        Raises:
            Interrupted: the run is over, and those that are left are not begun.
        """
        if left and self.signal is not None and jax.process_count() == 1:
            raise Interrupted(
                f"stopped by signal {self.signal} between two runs; --resume trains the {left} left",
                self.signal,
            )
