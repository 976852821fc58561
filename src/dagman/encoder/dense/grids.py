"""Token grids of a scan of any size: in memory if one pass suffices, otherwise summed tile by tile in a file.

Notation: C channels, x y z the grid of a stage.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dagman.encoder.encoder import Encoder
from dagman.encoder.tiling import MOST_MEMORY, Tiling, Triple, plan_pass, stream_tiles
from dagman.scans.affine import Affine
from dagman.store.preparation import PreparedScan

Box = tuple[slice, slice, slice]


@dataclass(kw_only=True, eq=False)
class TokenGrid:
    """The tokens of one stage, C x y z in float32; tokens that lie entirely in the padding are excluded.

    Attributes:
        stage: Stage, from 1 to 4.
        stride: Voxels of the prepared scan per token, along each axis.
        start: Index of the first token on the grid of the padded scan.
        offset: Position of the prepared scan's first voxel relative to the outer corner of the first token, in voxels.
        shape: C x y z.
        affine: From token indices to RAS mm of their centres.
        values: The tokens, if they are in memory.
        path: The file of the tokens, if they are not in memory.
    """

    stage: int
    stride: int
    start: Triple
    offset: Triple
    shape: tuple[int, int, int, int]
    affine: Affine
    values: NDArray[np.float32] | None = field(default=None, repr=False)
    path: Path | None = None

    def read(self, box: Box) -> NDArray[np.float32]:
        """Read the tokens of a box, C x y z."""
        if self.values is not None:
            return self.values[(slice(None), *box)]
        # Mapped for each call, because pages that stay mapped count as memory of the process.
        return np.array(self._map()[(slice(None), *box)])

    def add(self, start: Sequence[int], tokens: NDArray[np.float32]) -> None:
        """Add the tokens of a tile that starts at `start` on the grid of the padded scan; those outside the scan are dropped."""
        here, there = [slice(None)], [slice(None)]
        for at, size, first, whole in zip(start, tokens.shape[1:], self.start, self.shape[1:], strict=True):
            low, high = max(at, first), min(at + size, first + whole)
            here.append(slice(low - first, max(low, high) - first))
            there.append(slice(low - at, max(low, high) - at))
        self._map()[tuple(here)] += tokens[tuple(there)]

    def _map(self) -> NDArray[np.float32]:
        if self.path is None:
            raise ValueError("the grid was not opened")
        return np.memmap(self.path, dtype=np.float32, mode="r+" if self.path.exists() else "w+", shape=self.shape)


@contextlib.contextmanager
def compute_grids(
    encoder: Encoder, prepared: PreparedScan, stages: Sequence[int], *, memory: int = MOST_MEMORY, folder: Path | None = None
) -> Iterator[list[TokenGrid]]:
    """Compute the token grids of a prepared scan; they are valid within the `with` block.

    If one pass is not sufficient, grids are stored in temporary files, so that only the scan and one tile with its tokens are in
    memory.

    Args:
        encoder: The encoder.
        prepared: The scan.
        stages: Stages to compute, from 1 to 4.
        memory: Bytes that a pass may need, as in `plan_pass`.
        folder: Folder for the temporary files; None for the system's default.
    """
    tiling = plan_pass(prepared.shape, encoder.config.view, encoder.network.encoder, memory=memory)
    grids = [_place_grid(encoder, prepared, tiling, stage) for stage in stages]

    def forward(tile):  # type: ignore[no-untyped-def]
        return encoder.features(tile, modality=prepared.modality, stages=stages)

    tiles = stream_tiles(forward, prepared.voxels, tiling, fill=encoder.pad_value(prepared.modality))
    if len(tiling.starts) == 1:
        ((_, maps),) = tiles
        for grid, tokens in zip(grids, maps, strict=True):
            box = tuple(slice(first, first + size) for first, size in zip(grid.start, grid.shape[1:], strict=True))
            grid.values = tokens.numpy()[(slice(None), *box)]
        yield grids
        return
    with tempfile.TemporaryDirectory(dir=folder, prefix=".tokens.") as spool:
        for grid in grids:
            grid.path = Path(spool) / f"x{grid.stage}"
        for start, maps in tiles:
            for grid, tokens in zip(grids, maps, strict=True):
                grid.add([at // grid.stride for at in start], tokens.numpy())
        yield grids


def _place_grid(encoder: Encoder, prepared: PreparedScan, tiling: Tiling, stage: int) -> TokenGrid:
    backbone = encoder.network.encoder
    stride = backbone.strides[stage - 1]
    spans = list(zip(tiling.offset, tiling.shape, strict=True))
    first = [before // stride for before, _ in spans]
    last = [-(-(before + size) // stride) for before, size in spans]
    x, y, z = (stop - start for start, stop in zip(first, last, strict=True))
    padded = prepared.affine.crop([-before for before in tiling.offset])
    within = [before - start * stride for (before, _), start in zip(spans, first, strict=True)]
    return TokenGrid(
        stage=stage,
        stride=stride,
        start=(first[0], first[1], first[2]),
        offset=(within[0], within[1], within[2]),
        shape=(backbone.widths[stage - 1], x, y, z),
        affine=padded.rescale((stride,) * 3).crop(first),
    )
