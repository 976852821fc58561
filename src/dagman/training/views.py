"""Which views a step is made of: every crop a pure function of (seed, step, index), whoever reads it.

A scan's turn comes by a permutation of all scans, drawn anew each time round; two views are cut at random from one
random box of 4/3 their side, so that they overlap [SMIT].
"""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dagman.errors import DagmanError, RunError, StoreError
from dagman.model.intensity import to_unit_ranges
from dagman.randomness import generator
from dagman.records.counts import count_noun
from dagman.records.stopping import leave_stops_to_parent
from dagman.settings.tree import Settings, ViewSettings
from dagman.store.manifest import ManifestRow, Store
from dagman.store.preparation import AIR, SCALED_RANGE

Triple = tuple[int, int, int]
MOST_PASSES = 10_000
"""Pairs of views of one scan beyond which a run has to be asked for; the paper has 800. [ours]"""
REPLACEMENTS = 16
"""Other scans that are tried in place of one that cannot be read. [ours]"""
SAMPLED_STEPS = 8
"""Steps whose views are looked at for the mean and median intensity. [ours]"""


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A view's place in a scan: first voxel (negative where the view stands out of the scan)."""

    scan: str
    start: Triple


def find_usable(shapes: dict[str, Triple], view: ViewSettings) -> tuple[list[str], list[str]]:
    """Ids of scans large enough for a view, and of those left out, both sorted.

    A scan is large enough if at most the share `view.padding` of each side of a view lies outside it.

    Raises:
        RunError: No scan is large enough; the message names the largest.
    """
    if not shapes:
        raise RunError("the store holds no scans", do="Add some: dagman prepare SCANS --out STORE")
    usable = sorted(i for i, shape in shapes.items() if min(shape) >= view.least)
    left_out = sorted(set(shapes) - set(usable))
    if not usable:
        largest = max(shapes.values(), key=min)
        fits = max((s for s in range(32, view.side, 32) if min(largest) >= round(s * (1 - view.padding))), default=None)
        do = f"Set view.side={fits}" if fits else "Prepare with a finer --spacing"
        raise RunError(
            f"no scan is large enough for a view of {view.side} voxels, which needs {view.least} along each axis; the largest "
            f"is {' x '.join(map(str, largest))} voxels",
            do=do,
        )
    return usable, left_out


def select_rows(rows: Iterable[ManifestRow], view: ViewSettings, *, where: object = None) -> list[ManifestRow]:
    """The scans of the modality that a run reads. Raises RunError where there is none."""
    rows = list(rows)
    if view.modality in ("auto", "all"):
        return rows
    chosen = [row for row in rows if row.modality == view.modality.upper()]
    if rows and not chosen:
        held = " and ".join(sorted({row.modality for row in rows}))
        raise RunError(f"holds no {view.modality.upper()}, only {held}", where=where, do="Correct --modality, or omit it")
    return chosen


def refuse_repetition(settings: Settings, scans: int) -> None:
    """Raise RunError for a run that would see each scan more than `MOST_PASSES` times, unless `train.many_passes` asks for it."""
    train = settings.train
    passes = train.steps * train.batch / 2 / scans
    if passes <= MOST_PASSES or train.many_passes:
        return
    steps = int(MOST_PASSES * scans * 2 / train.batch)
    raise RunError(
        f"each of {count_noun(scans, 'usable scan')} would be seen {passes:,.0f} times in {train.steps:,} steps of "
        f"{train.batch} views (the paper's 10,412 scans: 800 times)",
        do=f"Train for fewer steps (--set train.steps={steps} gives {MOST_PASSES:,} passes), add scans, or pass --many-passes",
    )


@dataclass(frozen=True, kw_only=True)
class Part:
    """Scans that share a weight: of `sum of weights` pairs in turn, `weight` come from this part."""

    weight: int
    scans: list[str]


def choose_scan(usable: Sequence[str], seed: int, number: int, *part: int) -> str:
    """The scan of the `number`-th pair of a run, or of a part of it."""
    epoch, place = divmod(number, len(usable))
    order = generator(seed, "order", *part, epoch).permutation(len(usable))
    return usable[order[place]]


def choose_from_parts(parts: Sequence[Part], seed: int, number: int) -> str:
    """The scan of the `number`-th pair: the parts take turns by their weights, in another order each round."""
    if len(parts) == 1:
        return choose_scan(parts[0].scans, seed, number)
    turns = [i for i, part in enumerate(parts) for _ in range(part.weight)]
    round_, place = divmod(number, len(turns))
    order = [turns[i] for i in generator(seed, "stores", round_).permutation(len(turns))]
    mine = order[place]
    return choose_scan(parts[mine].scans, seed, round_ * parts[mine].weight + order[:place].count(mine), mine)


def draw_crops(scan: str, shape: Triple, view: ViewSettings, seed: int, *index: int | str) -> tuple[Crop, Crop]:
    """Places of two overlapping views u, v in a scan."""
    random = generator(seed, "crop", *index)
    starts: list[list[int]] = [[], []]
    box_side = round(view.box * view.side)
    for extent in shape:
        box = max(view.side, min(box_side, extent))
        box_start = _draw_start(random, extent, box)
        for view_starts in starts:
            view_starts.append(box_start + int(random.integers(0, box - view.side + 1)))
    u, v = (Crop(scan=scan, start=(s[0], s[1], s[2])) for s in starts)
    return u, v


def _draw_start(random: np.random.Generator, extent: int, box: int) -> int:
    if extent <= box:
        # Centred, not drawn: a small scan should lie whole in its view.
        return -((box - extent) // 2)
    return int(random.integers(0, extent - box + 1))


def read_crop(store: Store, crop: Crop, shape: Triple, side: int, fill: int) -> np.ndarray:
    """The int16 voxels of a crop (side, side, side), `fill` outside the scan."""
    start = [max(0, s) for s in crop.start]
    stop = [min(extent, s + side) for s, extent in zip(crop.start, shape, strict=True)]
    size = tuple(b - a for a, b in zip(start, stop, strict=True))
    inside = store.crop(crop.scan, tuple(start), size)
    if inside.shape == (side, side, side):
        return inside
    whole = np.full((side, side, side), fill, dtype=np.int16)
    place = tuple(slice(a - s, b - s) for a, b, s in zip(start, stop, crop.start, strict=True))
    whole[place] = inside
    return whole


def find_inside(crop: Crop, shape: Triple, side: int) -> tuple[Triple, Triple]:
    """First and last + 1 voxel of the box of a crop that lies in its scan, counted from the crop's corner."""
    first = tuple(max(0, -start) for start in crop.start)
    last = tuple(min(side, extent - start) for start, extent in zip(crop.start, shape, strict=True))
    return first, last  # type: ignore[return-value]


class ViewDataset(torch.utils.data.Dataset):
    """Steps of a run: item `step` is that step's views as int16 (u: P 1 X Y Z, v alike), the range that becomes [0, 1] (P 2), and
    the box of each view that lies in its scan (inside: P 2 2 3).

    own: The pairs of each step that this process reads, default all. parts: The scans by the store they come from, with weights.
    """

    def __init__(
        self,
        store: Store,
        usable: Sequence[str],
        view: ViewSettings,
        batch: int,
        seed: int,
        steps: int,
        own: range | None = None,
        parts: Sequence[Part] | None = None,
    ) -> None:
        self.store, self.usable, self.view, self.batch, self.seed, self.steps = store, list(usable), view, batch, seed, steps
        self.own = range(batch // 2) if own is None else own
        self.parts = [Part(weight=1, scans=self.usable)] if parts is None else list(parts)
        rows = {row.id: row for row in store.rows}
        self.shapes: dict[str, Triple] = {i: tuple(rows[i].shape) for i in usable}  # type: ignore[misc]
        self.modalities = {i: rows[i].modality for i in usable}

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        item = self.read_step(step, self.own)
        del item["places"]
        return item

    def read_step(self, step: int, numbers: Iterable[int] | None = None) -> dict[str, Any]:
        """The item of these pairs of a step, or of all, with `places`, where they were read.

        A scan that cannot be read is replaced by another, by address, and stands in `unreadable` with the reason.

        Raises:
            StoreError: None of `REPLACEMENTS` other scans can be read either.
        """
        numbers = range(self.batch // 2) if numbers is None else numbers
        return self.read_pairs(self.places(step, numbers), step, numbers)

    def read_pairs(self, places: Sequence[tuple[Crop, Crop]], step: int | str, numbers: Iterable[int]) -> dict[str, Any]:
        """The item of these places, as `read_step` gives it; step and numbers: the address of what replaces a scan."""
        found = [self._read_or_replace(pair, step, i) for i, pair in zip(numbers, places, strict=True)]
        unreadable = {scan: reason for _, _, lost in found for scan, reason in lost.items()}
        item = self._stack([pair for pair, _, _ in found], [voxels for _, voxels, _ in found])
        return {**item, "places": [pair for pair, _, _ in found]} | ({"unreadable": unreadable} if unreadable else {})

    def _read_or_replace(
        self, pair: tuple[Crop, Crop], step: int | str, number: int
    ) -> tuple[tuple[Crop, Crop], tuple[np.ndarray, np.ndarray], dict[str, str]]:
        lost: dict[str, str] = {}
        first: StoreError | None = None
        for attempt in range(REPLACEMENTS + 1):
            if attempt:
                place = int(generator(self.seed, "replacement", step, number, attempt).integers(len(self.usable)))
                scan = self.usable[place]
                pair = draw_crops(scan, self.shapes[scan], self.view, self.seed, "replacement", step, number, attempt)
            try:
                return pair, self._read_pair(pair), lost
            except StoreError as error:
                first = first or error
                lost[pair[0].scan] = str(error)
        raise first or StoreError("holds no readable scan", where=self.store.path)

    def _read_pair(self, pair: tuple[Crop, Crop]) -> tuple[np.ndarray, np.ndarray]:
        u, v = (read_crop(self.store, c, self.shapes[c.scan], self.view.side, self._fill(c.scan)) for c in pair)
        return u, v

    def places(self, step: int, numbers: Iterable[int] | None = None) -> list[tuple[Crop, Crop]]:
        """Where a step's pairs of views lie: those of these numbers, or all."""
        pairs = self.batch // 2
        places = []
        for i in range(pairs) if numbers is None else numbers:
            scan = choose_from_parts(self.parts, self.seed, step * pairs + i)
            places.append(draw_crops(scan, self.shapes[scan], self.view, self.seed, step, i))
        return places

    def read(self, places: Sequence[tuple[Crop, Crop]]) -> dict[str, Any]:
        """Views at given places, as an item."""
        return self._stack(places, [self._read_pair(pair) for pair in places])

    def _stack(self, places: Sequence[tuple[Crop, Crop]], voxels: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
        sides = [torch.from_numpy(np.stack([pair[which] for pair in voxels])[:, None]) for which in (0, 1)]
        ranges = [self._range(pair[0].scan) for pair in places]
        boxes = [[find_inside(crop, self.shapes[crop.scan], self.view.side) for crop in pair] for pair in places]
        return {"u": sides[0], "v": sides[1], "range": torch.tensor(ranges, dtype=torch.float32), "inside": torch.tensor(boxes)}

    def _range(self, scan: str) -> tuple[float, float]:
        return SCALED_RANGE if self.modalities[scan] == "MR" else (self.view.low, self.view.high)

    def _fill(self, scan: str) -> int:
        return SCALED_RANGE[0] if self.modalities[scan] == "MR" else AIR


def sample_intensities(dataset: ViewDataset) -> torch.Tensor:
    """Intensities in [0, 1] of every fourth voxel along each axis of the first steps' views u, known before a run learns."""
    values = []
    for step in range(min(SAMPLED_STEPS, len(dataset))):
        item = dataset.read_step(step)
        values.append(to_unit_ranges(item["u"], item["range"])[..., ::4, ::4, ::4].flatten())
    return torch.cat(values)


def validation_places(dataset: ViewDataset, views: int) -> list[tuple[Crop, Crop]]:
    """Fixed places for the monitors: spread over the scans, the same at every step and in every run of a seed."""
    order = generator(dataset.seed, "validation").permutation(len(dataset.usable))
    places = []
    for i in range(views // 2):
        scan = dataset.usable[order[i % len(order)]]
        places.append(draw_crops(scan, dataset.shapes[scan], dataset.view, dataset.seed, "validation", i))
    return places


class _Described(torch.utils.data.Dataset):
    # torch would turn an error from a loader process into its traceback; as a value it comes over whole.
    def __init__(self, dataset: ViewDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, step: int) -> dict[str, Any] | DagmanError:
        try:
            return self.dataset[step]
        except DagmanError as error:
            return error


def _pass(item: Any) -> Any:
    return item


def _start_worker(worker: int) -> None:
    leave_stops_to_parent()


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


def load_steps(
    dataset: ViewDataset, first: int, workers: int, skipped: Collection[int] = (), *, pinned: bool = False
) -> Iterator[dict[str, Any]]:
    """Items `first`, `first` + 1, ... in order, read by `workers` processes (0: by this one); their number changes nothing.

    skipped: Items to leave out. pinned: In memory that a CUDA device can copy from while the host goes on.

    Raises:
        StoreError: A scan's file is missing or damaged.
    """
    context = multiprocessing.get_context("forkserver") if workers else None
    if context is not None:
        # Their common parent loads torch once; each then has it from there, in memory that they share.
        context.set_forkserver_preload([__name__])
    loader = torch.utils.data.DataLoader(
        _Described(dataset),
        sampler=[step for step in range(first, dataset.steps) if step not in skipped],
        batch_size=None,
        num_workers=workers,
        collate_fn=_pass,
        worker_init_fn=_start_worker if workers else None,
        multiprocessing_context=context,
        persistent_workers=False,
        prefetch_factor=4 if workers else None,
        pin_memory=pinned,
    )
    with leave_main_alone():
        items = iter(loader)
    for item in items:
        if isinstance(item, DagmanError):
            raise item
        yield item
