"""Tasks over processes of which any may die: the task it held is named as lost, and another takes its place.

`concurrent.futures` gives up all tasks when one worker is killed (by the system for its memory, by a decoder's crash).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TypeVar

from dagman.errors import StoreError
from dagman.records.stopping import leave_stops_to_parent

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Lost:
    """The process that held a task ended before it was done; `reason` says how."""

    reason: str


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    task: int | None = None


def run_tasks(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int, *, dask: str | None = None
) -> Generator[tuple[int, Result | Lost], None, None]:
    """(index, result) of every task as it is done, by `workers` fresh processes (1: by this one).

    dask: by the workers of the Dask scheduler at this address instead, or of `workers` local ones ("local").
    Closing the iterator ends the processes. Raises StoreError when they cannot start.
    """
    if dask is not None:
        from dagman.store.cluster.dask_tasks import run_on_dask

        yield from run_on_dask(function, tasks, dask, workers)
        return
    if workers == 1:
        yield from ((index, function(task)) for index, task in enumerate(tasks))
        return
    waiting = deque(range(len(tasks)))
    crew: dict[Connection, _Worker] = {}
    try:
        for _ in range(min(workers, len(tasks))):
            _start_worker(function, crew)
        while crew:
            for connection in wait(list(crew)):
                worker = crew[connection]  # type: ignore[index]
                try:
                    message = worker.connection.recv()
                except (EOFError, OSError):
                    del crew[worker.connection]
                    yield _report_loss(worker)
                    if waiting:
                        _start_worker(function, crew)
                    continue
                if worker.task is not None:
                    yield worker.task, message
                if waiting:
                    worker.task = waiting.popleft()
                    # A worker that was killed while it waited: its end is heard next, and its task named as lost.
                    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                        worker.connection.send(tasks[worker.task])
                else:
                    del crew[worker.connection]
                    worker.connection.close()
                    worker.process.join()
    finally:
        for worker in crew.values():
            worker.process.terminate()
        for worker in crew.values():
            worker.process.join()


def order_results(results: Iterable[tuple[int, Result]]) -> Iterator[tuple[int, Result]]:
    """Results by their index, each as soon as all before it are there; those that came early are held."""
    early: dict[int, Result] = {}
    following = 0
    for index, result in results:
        early[index] = result
        while following in early:
            yield following, early.pop(following)
            following += 1


def count_workers(tasks: int) -> int:
    """Workers of this machine for a number of tasks: one a core, and no more than tasks."""
    return max(1, min(len(os.sched_getaffinity(0)), tasks))


def _start_worker(function: Callable, crew: dict[Connection, _Worker]) -> None:
    # Fresh processes, not forks: a fork of a process that already runs threads (torch, ITK) can hang.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve_tasks, args=(function, theirs), daemon=True)
    process.start()
    theirs.close()
    crew[ours] = _Worker(process, ours)


def _serve_tasks(function: Callable, connection: Connection) -> None:
    leave_stops_to_parent()
    # The pipe breaks when the parent is gone: nobody is left to tell.
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        connection.send(None)
        while True:
            connection.send(function(connection.recv()))


def _report_loss(worker: _Worker) -> tuple[int, Lost]:
    worker.process.join()
    code = worker.process.exitcode or 0
    if worker.task is None:
        raise StoreError(
            "the worker processes cannot start", do='Call dagman.prepare under `if __name__ == "__main__":`, or with workers=1'
        )
    how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
    return worker.task, Lost(f"its process {how}, perhaps for lack of memory; try again with --workers 1")
