"""Chooses and reads the views of each step. Every crop is a pure function of (seed, step, index), whichever process reads it.

Scans follow a random permutation, drawn anew for each pass over the data. The two views of a pair are cropped at random from one
random box of 4/3 their side, so that they overlap [SMIT].
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from dagman.errors import RunError, StoreError
from dagman.model.intensity import to_unit_ranges
from dagman.randomness import generator
from dagman.records.counts import count_noun
from dagman.settings.tree import Settings, ViewSettings
from dagman.store.format import BLOCK
from dagman.store.manifest import ManifestRow, Store
from dagman.store.preparation import AIR, SCALED_RANGE

Triple = tuple[int, int, int]
MOST_PASSES = 10_000
"""Passes over each scan above which a run must be confirmed (`train.many_passes`); the paper has 800. [ours]"""
REPLACEMENTS = 16
"""Number of other scans tried in place of an unreadable one. [ours]"""
SAMPLED_STEPS = 8
"""Number of steps whose views give the mean and median intensity. [ours]"""


@dataclass(frozen=True, kw_only=True)
class Crop:
    """Position of a view in a scan: its first voxel, negative if the view extends beyond the scan."""

    scan: str
    start: Triple


def find_usable(shapes: dict[str, Triple], view: ViewSettings) -> tuple[list[str], list[str]]:
    """Return the ids of scans that are large enough for a view, and of the excluded ones, both sorted.

    A scan is large enough if at most the fraction `view.padding` of each side of a view lies outside it.

    Raises:
        RunError: if no scan is large enough; the message gives the size of the largest.
    """
    if not shapes:
        raise RunError("the store holds no scans", do="Add some: dagman prepare SCANS --out STORE")
    usable = sorted(i for i, shape in shapes.items() if min(shape) >= view.least)
    excluded = sorted(set(shapes) - set(usable))
    if not usable:
        largest = max(shapes.values(), key=min)
        fits = max((s for s in range(32, view.side, 32) if min(largest) >= round(s * (1 - view.padding))), default=None)
        do = f"Set view.side={fits}" if fits else "Prepare with a finer --spacing"
        raise RunError(
            f"no scan is large enough for a view of {view.side} voxels, which needs {view.least} along each axis; the largest "
            f"is {' x '.join(map(str, largest))} voxels",
            do=do,
        )
    return usable, excluded


def select_rows(rows: Iterable[ManifestRow], view: ViewSettings, *, where: object = None) -> list[ManifestRow]:
    """Select the scans of the modality that a run reads; raises RunError if there are none."""
    rows = list(rows)
    if view.modality in ("auto", "all"):
        return rows
    chosen = [row for row in rows if row.modality == view.modality.upper()]
    if rows and not chosen:
        held = " and ".join(sorted({row.modality for row in rows}))
        raise RunError(f"holds no {view.modality.upper()}, only {held}", where=where, do="Correct --modality, or omit it")
    return chosen


def refuse_repetition(settings: Settings, scans: int) -> None:
    """Raise RunError if a run would see each scan more than `MOST_PASSES` times, unless `train.many_passes` is set."""
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
    """Scans of one store: of every `sum of weights` consecutive pairs, `weight` come from this part."""

    weight: int
    scans: list[str]


def choose_scan(usable: Sequence[str], seed: int, number: int, *part: int) -> str:
    """Return the scan of the `number`-th pair of a run, or of a part of it."""
    epoch, place = divmod(number, len(usable))
    return usable[_permute(len(usable), seed, "order", *part, epoch)[place]]


@functools.lru_cache(maxsize=64)
def _permute(count: int, seed: int, purpose: str, *index: int) -> np.ndarray:
    # Cached, because all pairs of a pass need the same permutation; for 100,000 scans, drawing it takes longer than reading a view.
    return generator(seed, purpose, *index).permutation(count)


def choose_from_parts(parts: Sequence[Part], seed: int, number: int) -> str:
    """Return the scan of the `number`-th pair: the parts take turns according to their weights, in a new order each round."""
    if len(parts) == 1:
        return choose_scan(parts[0].scans, seed, number)
    turns = [i for i, part in enumerate(parts) for _ in range(part.weight)]
    round_, place = divmod(number, len(turns))
    order = [turns[i] for i in _permute(len(turns), seed, "stores", round_)]
    mine = order[place]
    return choose_scan(parts[mine].scans, seed, round_ * parts[mine].weight + order[:place].count(mine), mine)


def draw_crops(scan: str, shape: Triple, view: ViewSettings, seed: int, *index: int | str) -> tuple[Crop, Crop]:
    """Draw the positions of two overlapping views u, v in a scan."""
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
        # Centred instead of drawn, so that the view contains the whole of a small scan.
        return -((box - extent) // 2)
    return int(random.integers(0, extent - box + 1))


class Box(NamedTuple):
    """A box of voxels in a scan: its first voxel, and the one after its last."""

    start: Triple
    stop: Triple

    @property
    def size(self) -> Triple:
        """Number of voxels along each axis."""
        x, y, z = (stop - start for start, stop in zip(self.start, self.stop, strict=True))
        return x, y, z

    def count_blocks(self) -> int:
        """Count the blocks of the scan's file that the box touches; each is decompressed completely."""
        return math.prod((stop - 1) // BLOCK - start // BLOCK + 1 for start, stop in zip(self.start, self.stop, strict=True))

    def join(self, other: Box) -> Box:
        """Return the smallest box that contains both."""
        start, stop = tuple(map(min, self.start, other.start)), tuple(map(max, self.stop, other.stop))
        return Box(start, stop)  # type: ignore[arg-type]

    def since(self, origin: Triple) -> tuple[slice, ...]:
        """Return the box as an index into an array whose first voxel is `origin`."""
        return tuple(slice(a - o, b - o) for a, b, o in zip(self.start, self.stop, origin, strict=True))


def read_views(store: Store, pair: tuple[Crop, Crop], shape: Triple, fill: int, out: np.ndarray) -> None:
    """Read both crops of a pair into `out`, int16 (2, side, side, side), with `fill` outside the scan.

    If they share many blocks of the file, the box around both is read once.
    """
    side = out.shape[1]
    boxes = [_clip(crop, shape, side) for crop in pair]
    around = boxes[0].join(boxes[1])
    if around.count_blocks() <= sum(box.count_blocks() for box in boxes):
        voxels = store.crop(pair[0].scan, around.start, around.size)
        parts = [voxels[box.since(around.start)] for box in boxes]
    else:
        parts = [store.crop(pair[0].scan, box.start, box.size) for box in boxes]
    for crop, box, part, view in zip(pair, boxes, parts, out, strict=True):
        if part.shape != view.shape:
            view[...] = fill
        view[box.since(crop.start)] = part


def _clip(crop: Crop, shape: Triple, side: int) -> Box:
    """Return the part of a crop that lies inside its scan."""
    first, last = find_inside(crop, shape, side)
    start, stop = (tuple(c + offset for c, offset in zip(crop.start, corner, strict=True)) for corner in (first, last))
    return Box(start, stop)  # type: ignore[arg-type]


def find_inside(crop: Crop, shape: Triple, side: int) -> tuple[Triple, Triple]:
    """Return the part of a crop inside its scan as first voxel and last voxel + 1, relative to the crop's corner."""
    first = tuple(max(0, -start) for start in crop.start)
    last = tuple(min(side, extent - start) for start, extent in zip(crop.start, shape, strict=True))
    return first, last  # type: ignore[return-value]


class ViewDataset(torch.utils.data.Dataset):
    """The steps of a run as a data set; item `step` is a dictionary with the views of that step.

    `u` and `v` are int16 (P 1 X Y Z), `range` holds the values that are mapped to 0 and 1 (P 2), and `inside` the part of each view
    that lies inside its scan (P 2 2 3).

    Args:
        store: The store with the scans.
        usable: Ids of the scans to read.
        view: Size and position of the views.
        batch: Views per step.
        seed: Seed of all draws.
        steps: Number of steps.
        own: The pairs of each step that this process reads; default all.
        parts: The scans by store, with weights; default all scans with equal weights.
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

    def read_step(self, step: int, numbers: Iterable[int] | None = None, out: np.ndarray | None = None) -> dict[str, Any]:
        """Read the given pairs of a step, or all, as an item with the additional key `places`, their positions.

        An unreadable scan is replaced by another one, which depends only on the address, and is listed in `unreadable` with the
        reason. out: int16 (2 P 1 X Y Z) to write the views to; default a new array.

        Raises:
            StoreError: if none of `REPLACEMENTS` other scans can be read either.
        """
        numbers = range(self.batch // 2) if numbers is None else numbers
        return self.read_pairs(self.places(step, numbers), step, numbers, out)

    def read_pairs(
        self, places: Sequence[tuple[Crop, Crop]], step: int | str, numbers: Iterable[int], out: np.ndarray | None = None
    ) -> dict[str, Any]:
        """Read the views at given positions, like `read_step`; step and numbers are the address of replacements."""
        out = self.allocate(len(places)) if out is None else out
        unreadable: dict[str, str] = {}
        found = [
            self._read_or_replace(pair, out[:, row, 0], unreadable, step, number)
            for row, (number, pair) in enumerate(zip(numbers, places, strict=True))
        ]
        return {**self._describe(found, out), "places": found} | ({"unreadable": unreadable} if unreadable else {})

    def allocate(self, pairs: int) -> np.ndarray:
        """Allocate an array for the voxels of this many pairs of views, int16 (2 P 1 X Y Z)."""
        return np.empty((2, pairs, 1, *(self.view.side,) * 3), dtype=np.int16)

    def _read_or_replace(
        self, pair: tuple[Crop, Crop], out: np.ndarray, unreadable: dict[str, str], step: int | str, number: int
    ) -> tuple[Crop, Crop]:
        first: StoreError | None = None
        for attempt in range(REPLACEMENTS + 1):
            if attempt:
                place = int(generator(self.seed, "replacement", step, number, attempt).integers(len(self.usable)))
                scan = self.usable[place]
                pair = draw_crops(scan, self.shapes[scan], self.view, self.seed, "replacement", step, number, attempt)
            try:
                self._read_pair(pair, out)
            except StoreError as error:
                first = first or error
                unreadable[pair[0].scan] = str(error)
            else:
                return pair
        raise first or StoreError("holds no readable scan", where=self.store.path)

    def _read_pair(self, pair: tuple[Crop, Crop], out: np.ndarray) -> None:
        scan = pair[0].scan
        read_views(self.store, pair, self.shapes[scan], self._fill(scan), out)

    def places(self, step: int, numbers: Iterable[int] | None = None) -> list[tuple[Crop, Crop]]:
        """Return the positions of the given pairs of a step, or of all."""
        pairs = self.batch // 2
        places = []
        for i in range(pairs) if numbers is None else numbers:
            scan = choose_from_parts(self.parts, self.seed, step * pairs + i)
            places.append(draw_crops(scan, self.shapes[scan], self.view, self.seed, step, i))
        return places

    def _describe(self, places: Sequence[tuple[Crop, Crop]], out: np.ndarray) -> dict[str, Any]:
        """Return the item for views that were read."""
        u, v = torch.from_numpy(out)
        ranges = [self._range(pair[0].scan) for pair in places]
        boxes = [[find_inside(crop, self.shapes[crop.scan], self.view.side) for crop in pair] for pair in places]
        return {"u": u, "v": v, "range": torch.tensor(ranges, dtype=torch.float32), "inside": torch.tensor(boxes)}

    def _range(self, scan: str) -> tuple[float, float]:
        return SCALED_RANGE if self.modalities[scan] == "MR" else (self.view.low, self.view.high)

    def _fill(self, scan: str) -> int:
        return SCALED_RANGE[0] if self.modalities[scan] == "MR" else AIR


def sample_intensities(dataset: ViewDataset) -> torch.Tensor:
    """Sample intensities in [0, 1] before training: every fourth voxel along each axis of the views u of the first steps."""
    values = []
    for step in range(min(SAMPLED_STEPS, len(dataset))):
        item = dataset.read_step(step)
        values.append(to_unit_ranges(item["u"], item["range"])[..., ::4, ::4, ::4].flatten())
    return torch.cat(values)


def validation_places(dataset: ViewDataset, views: int) -> list[tuple[Crop, Crop]]:
    """Return fixed positions for the monitors, spread over the scans: the same at every step and in all runs with this seed."""
    order = generator(dataset.seed, "validation").permutation(len(dataset.usable))
    places = []
    for i in range(views // 2):
        scan = dataset.usable[order[i % len(order)]]
        places.append(draw_crops(scan, dataset.shapes[scan], dataset.view, dataset.seed, "validation", i))
    return places
