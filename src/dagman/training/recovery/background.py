"""One job beside the training, in a thread: writing a checkpoint from a copy, so that no step waits for the disk."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable

LOWEST = 19
"""Priority ("nice") of the job: on a machine without a free core the step after a checkpoint was slower by a third."""


class Background:
    """Runs one job at a time; what it raised is raised by the next call that looks."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Begin a job; waits for the one before."""
        self.finish()

        def run() -> None:
            _step_back()
            try:
                job()
            except BaseException as failure:  # handed to the main thread, which knows what to do with it
                self._failure = failure

        self._thread = threading.Thread(target=run, name="checkpoint")
        self._thread.start()

    def has_ended(self) -> bool:
        """Whether a job has ended since this was last asked; raises what it raised."""
        if self._thread is None or self._thread.is_alive():
            return False
        return self.finish()

    def finish(self) -> bool:
        """Wait for the job, if there is one; whether there was. Raises what it raised."""
        if self._thread is None:
            return False
        self._thread.join()
        self._thread, failure, self._failure = None, self._failure, None
        if failure is not None:
            raise failure
        return True


def _step_back() -> None:
    """Let this thread have what the steps leave of the processor; Linux alone knows a priority for a thread."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST)
