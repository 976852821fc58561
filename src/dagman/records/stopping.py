"""Handles the signals that ask a program to stop: Ctrl-C, a job's time limit (SIGTERM), Slurm's warning (SIGUSR1), SIGHUP."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
REQUEUES = frozenset({signal.SIGTERM, signal.SIGUSR1})
"""Signals by which a cluster preempts a job; the job is to be queued again."""


@contextlib.contextmanager
def catch_stops(stop: Callable[[int], None] | None = None) -> Iterator[None]:
    """Within the block, call `stop` with the number of the first stop signal; a second one has its previous effect.

    Without `stop`, each signal raises KeyboardInterrupt. SIGHUP stays ignored if it was, since that is what nohup is for.
    Outside the main thread this does nothing, because only the main thread can handle signals.
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
    """Ignore Ctrl-C and SIGHUP in a worker process: they reach the whole process group, and only the parent should act."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
