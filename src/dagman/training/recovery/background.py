"""A job in a background thread: it writes a checkpoint from a copy, so that no step waits for the disk."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable

LOWEST = 19
"""Niceness of the job. At that of the training, the step after a checkpoint was a third slower on a machine without a free core."""


class Background:
    """Runs one job at a time; the next call of `has_ended` or `finish` raises what the job raised."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Start a job, after waiting for the previous one."""
        self.finish()

        def run() -> None:
            _step_back()
            try:
                job()
            except BaseException as failure:  # raised in the main thread by `finish`
                self._failure = failure

        self._thread = threading.Thread(target=run, name="checkpoint")
        self._thread.start()

    def has_ended(self) -> bool:
        """Whether a job has ended since the last call; raises what it raised."""
        if self._thread is None or self._thread.is_alive():
            return False
        return self.finish()

    def finish(self) -> bool:
        """Wait for the job; returns whether there was one. Raises what it raised."""
        if self._thread is None:
            return False
        self._thread.join()
        self._thread, failure, self._failure = None, self._failure, None
        if failure is not None:
            raise failure
        return True


def _step_back() -> None:
    """Give this thread the lowest priority. Only Linux has a priority per thread."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST)
