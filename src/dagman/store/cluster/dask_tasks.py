"""Runs tasks on a Dask cluster, with the interface of `store.workers.run_tasks`.

Workers share a file system with this process; only this process changes the store's tables. Tasks are deterministic, so the store
has the same content for any cluster and any order of tasks.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dagman.errors import MissingExtraError, StoreError
from dagman.store.workers import Lost

if TYPE_CHECKING:
    from distributed import Client

Task = TypeVar("Task")
Result = TypeVar("Result")

LOCAL = "local"
"""Instead of an address: a scheduler and workers on this machine, while the command runs."""
TRIES = 3
"""Number of workers that may die on a task before it is reported as lost; a user's own scheduler has `allowed-failures`. [ours]"""
_CONNECT_SECONDS = 30


def run_on_dask(
    function: Callable[[Task], Result], tasks: Sequence[Task], address: str, workers: int
) -> Generator[tuple[int, Result | Lost], None, None]:
    """Run tasks on Dask workers, and yield (index, result) of each one as soon as it is done.

    A task whose worker dies is retried on another one. After as many deaths as the scheduler allows, it is run by itself, with the
    same number of tries, and is then `Lost`.

    Args:
        function: does one task.
        tasks: all tasks.
        address: address of the scheduler, or `LOCAL`.
        workers: number of local workers.

    Raises:
        StoreError: if the scheduler cannot be reached or is lost, or its workers are not suitable.
    """
    with _connect(address, workers) as client:
        from distributed import CancelledError, as_completed
        from distributed.scheduler import KilledWorker

        lost = StoreError(f"the Dask scheduler at {address} was lost", do="Start it again, and repeat the command to resume")
        work = partial(_work_in, os.getcwd(), function)
        numbers = {client.submit(work, task, pure=False): index for index, task in enumerate(tasks)}
        suspects: list[int] = []
        try:
            for future in as_completed(list(numbers), loop=client.loop):
                index = numbers.pop(future)
                try:
                    if future.cancelled():
                        raise lost
                    yield index, future.result()
                except KilledWorker:
                    suspects.append(index)
                # Released now, since the results of all scans would otherwise accumulate on the workers.
                future.release()
            # One at a time, since tasks that merely waited on a worker that another task killed are suspects, too.
            for index in suspects:
                retry = client.submit(work, tasks[index], pure=False)
                try:
                    yield index, retry.result()
                except KilledWorker as death:
                    died = f"its workers died {death.allowed_failures + 1} times, perhaps for lack of memory"
                    yield index, Lost(f"{died}; try again with more memory per worker")
        except (CancelledError, OSError) as error:
            raise lost from error
        finally:
            with contextlib.suppress(Exception):
                client.cancel(list(numbers), force=True)


@contextlib.contextmanager
def _connect(address: str, workers: int) -> Iterator[Client]:
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError:
        raise MissingExtraError("distributed", "dask") from None
    # distributed logs several tracebacks if the scheduler is lost, which the command reports in one line.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    if address == LOCAL:
        with (
            dask.config.set({"distributed.scheduler.allowed-failures": TRIES - 1}),
            LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            yield client
        return
    try:
        client = Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        do = "Check the address (tcp://HOST:8786), and that dask scheduler runs there"
        raise StoreError(f"no Dask scheduler answers at {address}", do=do) from error
    try:
        _check_workers(client, address)
        yield client
    finally:
        # If the scheduler is lost, closing the connection to it fails.
        with contextlib.suppress(Exception):
            client.close(timeout=5)


def _check_workers(client: Client, address: str) -> None:
    """Refuse workers with a different version, without the shared folder, or with several threads."""
    from dagman import __version__

    described: dict[str, Any] = client.run(_describe_worker, os.getcwd())
    if not described:
        raise StoreError(f"the Dask scheduler at {address} has no workers", do="Start some: dask worker ADDRESS --nthreads 1")
    for name, (version, sees, threads) in described.items():
        if version != __version__:
            raise StoreError(f"the worker {name} has dagman {version}, not {__version__}", do="Install the same version there")
        if not sees:
            raise StoreError(f"the worker {name} does not see {os.getcwd()}", do="Work in a folder that all machines share")
        if threads > 1:
            raise StoreError(f"the worker {name} has {threads} threads", do="Start workers with --nthreads 1, and more of them")


def _describe_worker(folder: str, dask_worker: Any = None) -> tuple[str, bool, int]:
    try:
        from dagman import __version__
    except ImportError:
        return "missing", True, 1
    return __version__, Path(folder).is_dir(), dask_worker.state.nthreads


def _work_in(folder: str, function: Callable[[Task], Result], task: Task) -> Result:
    # Paths may be relative, as the user gave them, and appear like this in messages.
    os.chdir(folder)
    return function(task)
