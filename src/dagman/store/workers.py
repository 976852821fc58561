"""Runs tasks in worker processes; if one dies, its task is reported as lost and the worker is replaced.

`concurrent.futures` abandons all tasks when a worker is killed (for its memory use, or by a crash of a decoder).
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
    """The result of a task whose process died."""

    reason: str
    "How the process ended."


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    task: int | None = None


def run_tasks(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int, *, dask: str | None = None
) -> Generator[tuple[int, Result | Lost], None, None]:
    """Run tasks in parallel, and yield (index, result) of each one as soon as it is done.

    Closing the iterator ends the processes.

    Args:
        function: does one task.
        tasks: all tasks.
        workers: number of new processes; 1 runs the tasks in this process.
        dask: run the tasks on the workers of the Dask scheduler at this address instead, or on `workers` local ones ("local").

    Raises:
        StoreError: if the processes cannot start.
    """
    if dask is not None:
        from dagman.store.cluster.dask_tasks import run_on_dask

        yield from run_on_dask(function, tasks, dask, workers)
        return
    if workers == 1:
        yield from ((index, function(task)) for index, task in enumerate(tasks))
        return
    waiting = deque(range(len(tasks)))
    pool: dict[Connection, _Worker] = {}
    try:
        for _ in range(min(workers, len(tasks))):
            _start_worker(function, pool)
        while pool:
            for connection in wait(list(pool)):
                worker = pool[connection]  # type: ignore[index]
                try:
                    message = worker.connection.recv()
                except (EOFError, OSError):
                    del pool[worker.connection]
                    yield _report_loss(worker)
                    if waiting:
                        _start_worker(function, pool)
                    continue
                if worker.task is not None:
                    yield worker.task, message
                if waiting:
                    worker.task = waiting.popleft()
                    # If the worker was killed while it was idle, its end is noticed next, and this task is reported as lost.
                    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                        worker.connection.send(tasks[worker.task])
                else:
                    del pool[worker.connection]
                    worker.connection.close()
                    worker.process.join()
    finally:
        for worker in pool.values():
            worker.process.terminate()
        for worker in pool.values():
            worker.process.join()


def order_results(results: Iterable[tuple[int, Result]]) -> Iterator[tuple[int, Result]]:
    """Yield results in the order of their index, each as soon as all previous ones are available."""
    waiting: dict[int, Result] = {}
    following = 0
    for index, result in results:
        waiting[index] = result
        while following in waiting:
            yield following, waiting.pop(following)
            following += 1


def count_workers(tasks: int) -> int:
    """Return the number of workers for a number of tasks on this machine: one per core, but not more than tasks."""
    return max(1, min(len(os.sched_getaffinity(0)), tasks))


def _start_worker(function: Callable, pool: dict[Connection, _Worker]) -> None:
    # New processes instead of forks: a fork of a process with running threads (torch, ITK) can hang.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve_tasks, args=(function, theirs), daemon=True)
    process.start()
    theirs.close()
    pool[ours] = _Worker(process, ours)


def _serve_tasks(function: Callable, connection: Connection) -> None:
    leave_stops_to_parent()
    # The pipe breaks when the parent has ended, so there is nobody to report to.
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
