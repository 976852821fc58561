"""How fast loader processes read views, and how long a card that takes so many views per second waits for them.

    python benchmarks/loading.py                                        a store of synthetic patients
    python benchmarks/loading.py STORE --workers 1 2 --need 65 200      a store, and other numbers

The views come through the loader of `dagman pretrain` (`load_steps`): crops from the store, memory shared with the loader
processes, and a copy in a thread beside the steps, as torch makes one in pinned memory. A stand-in for the card takes a step's
views, sleeps for as long as the card would compute, and waits for the next ones. Processor time (Linux) depends little on what
else the machine does; waiting depends on it much. The first round, in which each scan's file is opened and checked, is measured
on its own.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import queue
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dagman.records.counts import count_noun
from dagman.scans.phantom.cohort import write_cohort
from dagman.settings import load_settings, resolve_settings
from dagman.store.manifest import Store
from dagman.store.preparation import Preparation
from dagman.store.writer import prepare_store
from dagman.training.resources.loading import load_steps
from dagman.training.views import ViewDataset, find_usable

STAGED = 2
"""Steps that lie copied before the card takes them."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What reading some views took.

    Attributes:
        loaders, main: Processor time per view in ms, of all loader processes together and of the process that trains.
        waiting: Share of the time that the card waited.
        views_per_s: Views that the card got.
        own_mib: Memory that one loader process shares with no other, the largest.
    """

    loaders: float
    main: float
    waiting: float
    views_per_s: float
    own_mib: float


def open_dataset(store: Store, size: str, batch: int) -> ViewDataset:
    """The views of a run of this size on the store; many more steps than are measured."""
    settings = resolve_settings(load_settings(size)[0])[0]
    usable, _ = find_usable({row.id: row.shape for row in store.rows}, settings.view)
    return ViewDataset(store, usable, settings.view, batch, settings.seed, steps=1_000_000)


def read_views(dataset: ViewDataset, workers: int, parts: list[tuple[int, float]]) -> Iterator[Reading]:
    """Read so many steps at a need of so many views per second (0: as fast as they come), one part after the other."""
    staged: queue.Queue[Any] = queue.Queue(STAGED)
    stopped = threading.Event()

    def stage() -> None:
        items = load_steps(dataset, 0, workers)
        while not stopped.is_set():
            staged.put(next(items))

    copying = threading.Thread(target=stage)
    copying.start()
    # The first views wait for the processes to start.
    staged.get()
    loaders = [process.pid for process in multiprocessing.active_children() if process.pid is not None]
    for count, need in parts:
        began, before, main, waited = time.perf_counter(), _sum_times(loaders), time.process_time(), 0.0
        for _ in range(count):
            asked = time.perf_counter()
            staged.get()
            got = time.perf_counter()
            waited += got - asked
            if need:
                time.sleep(max(0.0, got + dataset.batch / need - time.perf_counter()))
        seconds, views = time.perf_counter() - began, count * dataset.batch
        yield Reading(
            loaders=(_sum_times(loaders) - before) / views * 1e3,
            main=(time.process_time() - main) / views * 1e3,
            waiting=waited / seconds,
            views_per_s=views / seconds,
            own_mib=max((_read_own_mib(process) for process in loaders), default=0.0),
        )
    stopped.set()
    while copying.is_alive():
        with contextlib.suppress(queue.Empty):
            staged.get(timeout=0.1)


def _sum_times(processes: list[int]) -> float:
    """Processor time of processes so far, in seconds."""
    threads = [thread for process in processes for thread in Path(f"/proc/{process}/task").glob("*/schedstat")]
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def _read_own_mib(process: int) -> float:
    """Memory that a process shares with no other, in MiB."""
    rows = (line.split() for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines())
    return sum(int(row[1]) for row in rows if row[0].startswith("Private_")) / 1024


def report(dataset: ViewDataset, size: str, workers: list[int], needs: list[float], seconds: float) -> None:
    """Print what loader processes take, and how long a card waits for so many of them."""
    side, scans = dataset.view.side, len(dataset.usable)
    print(f"{size}: {dataset.batch} views of {side}^3 per step, {count_noun(scans, 'scan')}, load {os.getloadavg()[0]:.1f}")
    first = -(-2 * scans // dataset.batch)
    for count in workers:
        parts = [(first, 0.0), (max(8, round(seconds * 100 / dataset.batch)), 0.0)]
        parts += [(max(4, round(seconds * need / dataset.batch)), need) for need in needs]
        opened, free, *fed = read_views(dataset, count, parts)
        print(
            f"  {count_noun(count, 'loader process', 'loader processes')}: {free.loaders:.2f} ms of processor time per view "
            f"({opened.loaders:.2f} in the first round), {1e3 / free.loaders:.0f} views/s per core; main process "
            f"{free.main:.2f} ms; at most {free.own_mib:.0f} MiB that a loader process shares with no other",
            flush=True,
        )
        for need, one in zip(needs, fed, strict=True):
            cores = need * one.loaders / 1e3
            print(
                f"    a card of {need:g} views/s waits {one.waiting:.1%} of the time; its loaders use {cores:.2f} cores", flush=True
            )


def make_store(folder: Path, patients: int) -> Store:
    """Synthetic CTs, prepared at 2 mm."""
    write_cohort(folder / "cohort", patients=patients)
    return Store(prepare_store([folder / "cohort"], folder / "store", Preparation(), workers=1).path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, nargs="?")
    parser.add_argument("--size", nargs="+", default=["small", "paper"], help="presets of the model, which set the side of a view")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of loader processes")
    parser.add_argument("--need", type=float, nargs="+", default=[65, 200], help="views per second that the card takes")
    parser.add_argument("--batch", type=int, default=16, help="views per step of one card")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each need is measured")
    parser.add_argument("--patients", type=int, default=4, help="of the synthetic store")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(arguments.store) if arguments.store else make_store(Path(folder), arguments.patients)
        for size in arguments.size:
            dataset = open_dataset(store, size, arguments.batch)
            report(dataset, size, arguments.workers, arguments.need, arguments.seconds)


if __name__ == "__main__":
    main()
