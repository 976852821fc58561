"""Compute features with the workers of a Dask scheduler, one scan per task; results are bit-identical to those of one process.

Each worker loads the encoder once by its name, checks that it is the same, and computes with as many threads as this process,
because the number of threads affects the last bit of sums over voxels.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from dagman.encoder.encoder import Encoder
from dagman.encoder.feature_cache import FeatureCache
from dagman.encoder.inputs.opening import Grid, RefusedItem, group_by_scan
from dagman.encoder.items import FeatureRow, embed_group
from dagman.encoder.loading import load_encoder
from dagman.encoder.pooling import Pooling
from dagman.errors import EncoderError
from dagman.store.crops import CropSpec
from dagman.store.manifest import Store
from dagman.store.workers import Lost, count_workers, order_results, run_tasks
from dagman.tables.items import Item, check_points

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class EncoderName:
    """The arguments with which a worker loads an encoder, and a digest to check that it is the same."""

    source: str
    digest: str
    device: str
    precision: str
    weights: str
    threads: int

    @classmethod
    def of(cls, encoder: Encoder, weights: str = "auto") -> EncoderName:
        """Describe an encoder that was loaded in this process."""
        return cls(
            source=encoder.source,
            digest=encoder.digest,
            device=encoder.device,
            precision=encoder.precision,
            weights=weights,
            threads=torch.get_num_threads(),
        )

    def load(self) -> Encoder:
        """Load the encoder, once per process.

        Raises:
            EncoderError: On this machine, the name refers to a different encoder.
        """
        torch.set_num_threads(self.threads)
        return _load(self)


@functools.lru_cache(maxsize=1)
def _load(name: EncoderName) -> Encoder:
    loaded = load_encoder(name.source, device=name.device, precision=name.precision, weights=name.weights)
    if loaded.digest != name.digest:
        raise EncoderError(
            "a worker reads different weights from this machine", where=name.source, do="Use a folder that all machines share"
        )
    return loaded


@dataclass(frozen=True, kw_only=True)
class _Work:
    encoder: EncoderName
    store: Path | None
    pooling: Pooling
    crop: CropSpec
    cache: Path | None


def stream_on_dask(
    encoder: Encoder,
    items: Iterable[Item],
    store: Store | None,
    pooling: Pooling,
    crop: CropSpec,
    cache: str | Path | None,
    *,
    address: str,
    weights: str = "auto",
) -> Iterator[FeatureRow | RefusedItem]:
    """Yield the rows of `stream_features`, in its order; the items of scans on which workers died are rejected."""
    work = _Work(
        encoder=EncoderName.of(encoder, weights),
        store=None if store is None else store.path,
        pooling=pooling,
        crop=crop,
        cache=None if cache is None else Path(cache),
    )
    for group, rows in spread_scans(partial(_embed_scan, work), items, address):
        yield from (refuse_lost(group, rows) if isinstance(rows, Lost) else rows)


def spread_scans(
    function: Callable[[Sequence[Item]], tuple[Result, list[Grid]]], items: Iterable[Item], address: str
) -> Iterator[tuple[Sequence[Item], Result | Lost]]:
    """Apply a function to the items of each scan on the workers, and yield items with results in the order of one process.

    Args:
        function: Returns a result, and the items with points for `check_points`, which runs at the end.
        items: The items.
        address: Address of the scheduler, or "local".

    Raises:
        TableError: Most points lie outside their scans, as in `stream_features`.
    """
    groups = group_by_scan(list(items))
    grids: list[Grid] = []
    with contextlib.closing(run_tasks(function, groups, count_workers(len(groups)), dask=address)) as results:
        for index, outcome in order_results(results):
            if isinstance(outcome, Lost):
                yield groups[index], outcome
                continue
            result, placed = outcome
            grids += placed
            yield groups[index], result
    check_points(grids)


def refuse_lost(items: Sequence[Item], lost: Lost) -> list[RefusedItem]:
    """Reject the items of a scan on which workers died."""
    return [RefusedItem(item=item, reason=lost.reason) for item in items]


def _embed_scan(work: _Work, group: Sequence[Item]) -> tuple[list[FeatureRow | RefusedItem], list[Grid]]:
    store = None if work.store is None else Store(work.store)
    cache = None if work.cache is None else FeatureCache(work.cache)
    grids: list[Grid] = []
    rows = list(embed_group(work.encoder.load(), group, store, work.pooling, work.crop, cache, grids))
    return rows, grids
