"""Token grids of one scan, whatever its size: in memory where one pass gives them, else added up in a file tile by tile.

Letters: C channels, x y z a stage's grid.
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
    """The tokens of one stage, C x y z float32: those that the scan reaches, padding beside it left out.

    Attributes:
        stage: 1 to 4.
        stride: Voxels of the prepared scan along a token.
        start: The first token in the padded scan's grid.
        offset: Voxels of the prepared scan's first voxel from the first token's outer corner.
        shape: C x y z.
        affine: Of the tokens' middles, to RAS mm.
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
        """The tokens of a box, C x y z."""
        if self.values is not None:
            return self.values[(slice(None), *box)]
        # Mapped anew each time: what stays mapped counts as the process's memory.
        return np.array(self._map()[(slice(None), *box)])

    def add(self, start: Sequence[int], tokens: NDArray[np.float32]) -> None:
        """Add tokens whose first is at `start` of the padded scan's grid; what lies beside the scan is left out."""
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
    """The token grids of a prepared scan for the block; beyond what one pass may take, they lie in files that go with it.

    memory: bytes that a pass may take, as in `plan_pass`. folder: where these files lie; by default the system's for such files.
    Held are the scan and one tile with its tokens, however large the scan.
    """
    tiling = plan_pass(prepared.shape, encoder.config.view, encoder.network.encoder, memory=memory)
    grids = [_place_grid(encoder, prepared, tiling, stage) for stage in stages]

    def forward(tile):  # type: ignore[no-untyped-def]
        return encoder.features(tile, modality=prepared.modality, stages=stages)

    tiles = stream_tiles(forward, prepared.voxels, tiling, fill=encoder.pad_value(prepared.modality))
    if len(tiling.starts) == 1:
        ((_, maps),) = tiles
        for grid, tokens in zip(grids, maps, strict=True):
            kept = tuple(slice(first, first + size) for first, size in zip(grid.start, grid.shape[1:], strict=True))
            grid.values = tokens.numpy()[(slice(None), *kept)]
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
