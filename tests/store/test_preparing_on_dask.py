"""Preparation on a real Dask scheduler with worker processes on loopback: the same bits, whatever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from dagman.errors import StoreError
from dagman.store.manifest import Store
from dagman.store.workers import Lost, run_tasks
from dagman.store.writer import Progress, prepare_store

cloudpickle = pytest.importorskip("cloudpickle")
pytest.importorskip("distributed")
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def start(*words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "dask", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.fixture(autouse=True)
def use_loopback(monkeypatch):
    monkeypatch.setenv("DAGMAN_TESTS_LOOPBACK", "1")


class Cluster:
    """A scheduler and its workers, as a user starts them."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.file = folder / "scheduler.json"
        self.file.unlink(missing_ok=True)
        self.scheduler = start(
            "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(self.file)
        )
        options = ("--scheduler-file", str(self.file), "--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1")
        self.workers = [start("worker", *options, "--local-directory", str(folder)) for _ in range(workers)]

    def find_address(self) -> str:
        from distributed import Client

        with Client(scheduler_file=str(self.file), timeout=60, set_as_default=False) as client:
            client.wait_for_workers(len(self.workers), timeout=60)
            return client.scheduler.address

    def stop(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


def die_at_first(marker: Path, task: int) -> int:
    """The first worker that meets task 1 is killed over it."""
    if task == 1 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return task * 10


def die_always(task: int) -> int:
    if task == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return task * 10


def list_store(folder: Path) -> dict[str, bytes]:
    files = [*folder.rglob("*.b2nd"), folder / "manifest.parquet"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_killed_worker_loses_nothing_and_a_lost_scheduler_is_gone_on_from(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr("dagman.store.cluster.dask_tasks._CONNECT_SECONDS", 3)
    prepare_store(cohort, tmp_path / "wanted", workers=1)
    out, cluster = tmp_path / "store", Cluster(tmp_path, workers=2)

    def lose(event: object) -> None:
        if isinstance(event, Progress) and event.done == 2:
            cluster.scheduler.kill()
            cluster.scheduler.wait()

    try:
        address = cluster.find_address()
        results = dict(run_tasks(partial(die_at_first, tmp_path / "met"), [0, 1, 2, 3], 2, dask=address))
        assert results == {0: 0, 1: 10, 2: 20, 3: 30}
        assert (tmp_path / "met").exists()
        with pytest.raises(StoreError, match=r"was lost\. Start it again and repeat the command"):
            prepare_store(cohort, out, dask=address, on_event=lose)
    finally:
        cluster.stop()
    done = len(Store(out))
    assert 2 <= done <= len(Store(tmp_path / "wanted"))
    again = Cluster(tmp_path, workers=1)
    try:
        summary = prepare_store(cohort, out, dask=again.find_address())
    finally:
        again.stop()
    assert summary.already == done
    assert list_store(out) == list_store(tmp_path / "wanted")


def test_a_task_that_kills_every_worker_is_listed_and_the_others_are_done(monkeypatch):
    monkeypatch.setattr("dagman.store.cluster.dask_tasks.TRIES", 2)
    results = dict(run_tasks(die_always, [0, 1, 2], 1, dask="local"))
    assert isinstance(results[1], Lost)
    assert results[1].reason.startswith("its workers died 2 times")
    assert (results[0], results[2]) == (0, 20)


def test_an_address_without_a_scheduler_is_named(monkeypatch):
    monkeypatch.setattr("dagman.store.cluster.dask_tasks._CONNECT_SECONDS", 0.5)
    with pytest.raises(StoreError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        list(run_tasks(die_always, [0], 1, dask="tcp://127.0.0.1:9"))
