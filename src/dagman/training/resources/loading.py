"""The processes that read views ahead of the steps, and the memory through which they hand them over."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math
import multiprocessing
import os
import sys
import threading
import weakref
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext
from typing import Any

import numpy as np
import torch

from dagman.errors import DagmanError
from dagman.records.stopping import leave_stops_to_parent
from dagman.training.views import ViewDataset

MOST_AHEAD = 4
"""Steps that a loader process reads ahead, at most. [ours]"""
MOST_AHEAD_BYTES = 2**30
"""Bytes of views that are read ahead, at most, as long as each process reads one step ahead. [ours]"""


def load_steps(
    dataset: ViewDataset, first: int, workers: int, skipped: Collection[int] = (), *, pinned: bool = False
) -> Iterator[dict[str, Any]]:
    """Items `first`, `first` + 1, ... in order, read by `workers` processes (0: by this one); their number changes nothing.

    skipped: Items to leave out. pinned: In memory that a CUDA device can copy from while the host goes on.

    Raises:
        StoreError: A scan's file is missing or damaged.
    """
    steps = [step for step in range(first, dataset.steps) if step not in skipped]
    if not workers or not steps:
        for step in steps:
            yield dataset[step]
        return
    context = multiprocessing.get_context("forkserver")
    # Their common parent loads torch once; each then has it from there, in memory that they share.
    context.set_forkserver_preload([__name__])
    ahead = choose_ahead(dataset, workers)
    # While a step is copied from its place, as many others may be on their way as are read ahead.
    places = _Places(context, min(workers * ahead + 1, len(steps)), (2, len(dataset.own), 1, *(dataset.view.side,) * 3))
    loader = torch.utils.data.DataLoader(
        _Reader(dataset, places),
        sampler=list(zip(itertools.cycle(range(places.shape[0])), steps, strict=False)),
        batch_size=None,
        num_workers=workers,
        collate_fn=_pass,
        worker_init_fn=_start_worker,
        multiprocessing_context=context,
        persistent_workers=False,
        prefetch_factor=ahead,
        pin_memory=pinned,
    )
    with leave_main_alone():
        items = iter(loader)
    for item in items:
        if isinstance(item, DagmanError):
            raise item
        yield item.copy() if isinstance(item, _Read) else item


def choose_ahead(dataset: ViewDataset, workers: int) -> int:
    """Steps that each of `workers` processes reads ahead: as many as `MOST_AHEAD_BYTES` have room for, 1 to `MOST_AHEAD`."""
    size = 2 * len(dataset.own) * 2 * dataset.view.side**3
    return max(1, min(MOST_AHEAD, MOST_AHEAD_BYTES // (size * workers)))


class _Places:
    """Places for the views of several steps, in memory shared with the loader processes.

    They are used again and again: a page that is new to a process costs more than decompressing what is written to it.
    """

    def __init__(self, context: ForkServerContext, count: int, shape: tuple[int, ...]) -> None:
        self.shape = (count, *shape)
        self.memory = context.RawArray(ctypes.c_int16, math.prod(self.shape))
        self.key = id(self)
        _IN_USE[self.key] = self

    def __getitem__(self, place: int) -> np.ndarray:
        views: np.ndarray = np.ctypeslib.as_array(self.memory).reshape(self.shape)[place]
        return views


_IN_USE: weakref.WeakValueDictionary[int, _Places] = weakref.WeakValueDictionary()


@dataclass(frozen=True)
class _Read:
    """A step that was read: which of the places (by key) holds its views, and what else its item has."""

    key: int
    place: int
    others: dict[str, Any]

    def copy(self) -> dict[str, Any]:
        """The item, in memory of its own."""
        return self._build(torch.from_numpy(_IN_USE[self.key][self.place].copy()))

    def pin_memory(self) -> dict[str, Any]:
        """The item in pinned memory; torch calls this in a thread beside the steps."""
        return self._build(torch.from_numpy(_IN_USE[self.key][self.place]).pin_memory())

    def _build(self, views: torch.Tensor) -> dict[str, Any]:
        others = {name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in self.others.items()}
        return {"u": views[0], "v": views[1], **others}


class _Reader(torch.utils.data.Dataset):
    def __init__(self, dataset: ViewDataset, places: _Places) -> None:
        self.dataset, self.places = dataset, places

    def __getitem__(self, index: tuple[int, int]) -> _Read | DagmanError:
        place, step = index
        try:
            item = self.dataset.read_step(step, self.dataset.own, self.places[place])
        except DagmanError as error:
            # torch would turn it into its traceback; as a value it comes over whole.
            return error
        del item["u"], item["v"], item["places"]
        # As arrays: a tensor would travel through a file of its own.
        others = {name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in item.items()}
        return _Read(self.places.key, place, others)


def _pass(item: Any) -> Any:
    return item


def _start_worker(worker: int) -> None:
    leave_stops_to_parent()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A process that is killed cannot end its loaders, and torch watches their common parent, which lives as long as they do.
    if (parent := multiprocessing.parent_process()) is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextlib.contextmanager
def leave_main_alone() -> Iterator[None]:
    """A block in which processes are started that do not run the program's own file again.

    multiprocessing runs it in each of them, where a script that calls `pretrain` at its top would begin another pretraining; what
    reads views needs nothing of it.
    """
    names = vars(sys.modules["__main__"])
    kept: dict[str, Any] = {name: names[name] for name in ("__file__", "__spec__") if name in names}
    names.pop("__file__", None)
    names["__spec__"] = None
    try:
        yield
    finally:
        names.update(kept)
