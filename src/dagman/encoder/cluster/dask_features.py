"""Features by the workers of a Dask scheduler: a scan a task, in the order and with the bits of one process.

Each worker loads the encoder by its name once, checks that it is the same, and computes with as many threads as this process
would: sums over voxels are divided by threads, and their last bit with them.
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
    """What a worker loads an encoder by, and the digest that tells whether it is the one that is meant."""

    source: str
    digest: str
    device: str
    precision: str
    weights: str
    threads: int

    @classmethod
    def of(cls, encoder: Encoder, weights: str = "auto") -> EncoderName:
        """Of an encoder as it was loaded here."""
        return cls(
            source=encoder.source,
            digest=encoder.digest,
            device=encoder.device,
            precision=encoder.precision,
            weights=weights,
            threads=torch.get_num_threads(),
        )

    def load(self) -> Encoder:
        """The encoder, once a process; raises EncoderError where this machine reads another one by that name."""
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
    """The rows of `stream_features`, in its order; items of a scan over which workers died are refused."""
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
    """The items of each scan with what `function` gives for them, in the order of one process.

    Beside its result it returns what points are judged by, which is done in the end: raises TableError as `stream_features`.
    """
    groups = group_by_scan(list(items))
    grids: list[Grid] = []
    with contextlib.closing(run_tasks(function, groups, count_workers(len(groups)), dask=address)) as results:
        for index, found in order_results(results):
            if isinstance(found, Lost):
                yield groups[index], found
                continue
            result, placed = found
            grids += placed
            yield groups[index], result
    check_points(grids)


def refuse_lost(items: Sequence[Item], lost: Lost) -> list[RefusedItem]:
    """The items of a scan over which workers died."""
    return [RefusedItem(item=item, reason=lost.reason) for item in items]


def _embed_scan(work: _Work, group: Sequence[Item]) -> tuple[list[FeatureRow | RefusedItem], list[Grid]]:
    store = None if work.store is None else Store(work.store)
    cache = None if work.cache is None else FeatureCache(work.cache)
    grids: list[Grid] = []
    rows = list(embed_group(work.encoder.load(), group, store, work.pooling, work.crop, cache, grids))
    return rows, grids
