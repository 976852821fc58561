"""Read token grids by region, given in token indices or in patient coordinates."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from dagman.encoder.dense.format import open_grid, read_dense_info
from dagman.errors import StoreError
from dagman.records.csv_file import read_csv
from dagman.records.names import suggest_name
from dagman.scans.affine import Affine
from dagman.store.format import damaged_file


@dataclass(frozen=True, kw_only=True, eq=False)
class DenseRegion:
    """Tokens of a region: `values` C x y z, and the affine from token indices to RAS mm of their centres."""

    values: NDArray[np.floating] = field(repr=False)
    affine: Affine


@dataclass(frozen=True, kw_only=True, eq=False)
class DenseMap:
    """The tokens of one stage of a scan, read on demand.

    Attributes:
        path: The file.
        handle: The open blosc2 array.
        metadata: Plain values: stage, stride in voxels, encoder and scan.
    """

    path: Path
    handle: blosc2.NDArray = field(repr=False)
    metadata: dict[str, Any] = field(repr=False)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Channels, and tokens along x, y, z."""
        channels, x, y, z = self.handle.shape
        return channels, x, y, z

    @cached_property
    def affine(self) -> Affine:
        """The affine from token indices to RAS mm of their centres."""
        return Affine(self.metadata["affine"])

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between the centres of neighbouring tokens in mm."""
        return self.affine.spacing

    def read(self, x: slice = slice(None), y: slice = slice(None), z: slice = slice(None)) -> DenseRegion:
        """Read tokens by index, all by default.

        Raises:
            StoreError: A slice has a step, the region is empty, or the file is damaged.
        """
        box = []
        for name, part, size in zip("xyz", (x, y, z), self.shape[1:], strict=True):
            start, stop, step = part.indices(size)
            if step != 1 or start >= stop:
                what = f"{name} {part.start} to {part.stop} is not a region of {size} tokens"
                raise StoreError(what, where=self.path, do="Give a first and a later last token, without a step")
            box.append(slice(start, stop))
        try:
            values = self.handle[(slice(None), *box)]
        except (RuntimeError, ValueError) as error:
            raise damaged_file(self.path, "Delete its folder and run dagman embed --dense again") from error
        return DenseRegion(values=values, affine=self.affine.crop([part.start for part in box]))

    def read_mm(self, low: ArrayLike, high: ArrayLike) -> DenseRegion:
        """Read the tokens that overlap a box, given by two opposite corners in RAS mm.

        Raises:
            StoreError: The box lies outside the scan.
        """
        corners = np.stack(np.broadcast_arrays(np.asarray(low, np.float64), np.asarray(high, np.float64)))
        ends = np.stack(np.meshgrid(*corners.T, indexing="ij"), axis=-1).reshape(-1, 3)
        places = self.affine.to_voxel(ends)
        # A token extends half a token to each side of its centre; the tolerance keeps rounding errors from adding a neighbour.
        first = np.floor(places.min(axis=0) + 0.5 + 1e-6).astype(int)
        last = np.ceil(places.max(axis=0) + 0.5 - 1e-6).astype(int)
        first, last = np.maximum(first, 0), np.minimum(np.maximum(last, first + 1), self.shape[1:])
        if (first >= last).any():
            raise StoreError(
                "the box lies outside the scan",
                where=self.path,
                do="Give corners in RAS millimetres of the scan's coordinate system",
            )
        return self.read(*(slice(int(start), int(stop)) for start, stop in zip(first, last, strict=True)))

    def read_at(self, points: ArrayLike) -> NDArray[np.floating]:
        """Read the tokens that contain points: N x 3 in RAS mm to N x C.

        Raises:
            StoreError: A point lies outside the scan.
        """
        places = np.rint(self.affine.to_voxel(np.reshape(np.asarray(points, dtype=np.float64), (-1, 3)))).astype(int)
        outside = np.flatnonzero(((places < 0) | (places >= self.shape[1:])).any(axis=1))
        if len(outside):
            what = f"point {outside[0] + 1} lies outside the scan"
            raise StoreError(what, where=self.path, do="Give points in RAS millimetres of the scan's coordinate system")
        tokens = [self.read(*(slice(at, at + 1) for at in place)).values.reshape(-1) for place in places.tolist()]
        return np.stack(tokens) if tokens else np.empty((0, self.shape[0]), dtype=self.handle.dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class DenseStore:
    """A folder of token grids that was written by `dagman embed --dense`.

    Attributes:
        path: The folder.
        info: Plain values: encoder, stages, channels, strides and type of the numbers.
        rows: One row per scan, as text: id, row, scan, patient, content_hash, seen_in_pretraining, maps.
    """

    path: Path
    info: dict[str, Any] = field(repr=False)
    rows: list[dict[str, str]] = field(repr=False)

    @property
    def stages(self) -> tuple[int, ...]:
        """The stages that are stored for each scan."""
        return tuple(self.info["stages"])

    @property
    def names(self) -> list[str]:
        """Names of the scans."""
        return [row["id"] for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def open(self, name: str, stage: int | None = None) -> DenseMap:
        """Open the grid of a scan by name, for one stage (by default x3 if it is stored, otherwise the first).

        Raises:
            StoreError: There is no such scan or stage, or its file is missing or damaged.
        """
        row = next((row for row in self.rows if row["id"] == name), None)
        if row is None:
            raise StoreError(f"holds no scan {name!r}", where=self.path, do=suggest_name(name, self.names))
        stage = stage or (3 if 3 in self.stages else self.stages[0])
        if stage not in self.stages:
            raise StoreError(
                f"holds no x{stage}", where=self.path, do=f"Choose one of {', '.join(f'x{stored}' for stored in self.stages)}"
            )
        path = self.path / row["maps"] / f"x{stage}.b2nd"
        handle, metadata = open_grid(path)
        return DenseMap(path=path, handle=handle, metadata=metadata)


def open_dense(path: str | Path) -> DenseStore:
    """Open a folder of token grids that was written by `dagman embed --dense`.

    Raises:
        StoreError: The folder does not contain token grids, or is damaged.
    """
    folder = Path(path)
    info = read_dense_info(folder)
    try:
        rows = read_csv(folder / "dense.csv")
    except (OSError, ValueError) as error:
        raise StoreError(f"dense.csv cannot be read ({error})", where=folder, do="Run dagman embed --dense again") from None
    return DenseStore(path=folder, info=info, rows=rows)
