"""Signals that ask a program to stop: Ctrl-C, a job's time limit (SIGTERM), Slurm's warning of it (SIGUSR1), SIGHUP."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
REQUEUES = frozenset({signal.SIGTERM, signal.SIGUSR1})
"""Signals by which a cluster takes a job's place away, and after which the job is to be started again."""


@contextlib.contextmanager
def catch_stops(stop: Callable[[int], None] | None = None) -> Iterator[None]:
    """Within the block the first of these calls `stop` with its number, the next acts as before; without `stop` each interrupts.

    A SIGHUP that is ignored stays so: that is what nohup is for. Outside the main thread, which alone hears signals, nothing
    changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _STOPS}
    if before[signal.SIGHUP] is signal.SIG_IGN:
        del before[signal.SIGHUP]

    def handle(number: int, frame: object) -> None:
        if stop is None:
            raise KeyboardInterrupt
        restore()
        stop(number)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()


def leave_stops_to_parent() -> None:
    """In a process that works for another: let Ctrl-C and SIGHUP, which reach the whole group, stop the other alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
