"""Crops of scans in a page, in which a reader can scroll through slices and choose the window and the overlays.

Voxels are stored as a PNG of 256 grey levels, which are finest in the range of soft tissue; outlines and attention have their own
grids.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from dagman.reports.figures.planes import find_reach
from dagman.reports.figures.windows import WINDOWS, Window

MOST_VOXELS = 600_000
"""Voxels of one crop in a page; larger crops are downsampled by averaging blocks."""
_LEVELS_HU = ((-1400.0, -200.0, 80), (-200.0, 300.0, 126), (300.0, 1420.0, 50))
"""Start and end in HU, and number of levels: 15 HU apart in lung, 4 in soft tissue, 22 in bone."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """Classes drawn as outlines over a crop.

    Attributes:
        codes: X Y Z on the grid of the crop or a coarser grid of the same extent; 0 is background, class i is names[i - 1].
        names: Names of the classes.
        colors: Colours of the classes.
        dashed: Whether outlines are dashed.
        fill: Opacity of the tint inside the outlines.
    """

    codes: NDArray[np.uint8] = field(repr=False)
    names: Sequence[str]
    colors: Sequence[str]
    dashed: bool = False
    fill: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Volume:
    """A crop to scroll through.

    Attributes:
        voxels: X Y Z in RAS+ order, in HU or any other unit.
        spacing: Voxel size in mm.
        still: PNG for print and for browsers without scripts.
        caption: Text below the crop.
        alt: Description for readers who cannot see it.
        title: Heading of the enlarged crop.
        window: Initial window: intensities shown as black and white.
        hounsfield: Whether intensities are in HU, so that the usual CT windows can be selected.
        point: Voxel index at which it opens; None for the centre.
        layers: Outlines.
        attention: Attention relative to uniform (x y z), on a coarser grid of the same extent.
        reach: Distance from 1 at which the colour scale of attention ends; None to derive it from the values.
        within: (start, stop) of the scan along X, Y, Z in voxels; voxels outside are mirrored padding, and are hatched.
    """

    voxels: NDArray = field(repr=False)
    spacing: Sequence[float]
    still: bytes = field(repr=False)
    caption: str
    alt: str
    title: str
    window: Window
    hounsfield: bool = False
    point: Sequence[int] | None = None
    layers: Sequence[Layer] = ()
    attention: NDArray[np.float32] | None = field(default=None, repr=False)
    reach: float | None = None
    within: Sequence[tuple[float, float]] | None = None

    @property
    def source(self) -> str:
        """The still picture as a data URI."""
        return _to_uri(self.still)

    @property
    def data(self) -> Markup:
        """The data for the page's script as JSON; "<" is escaped, so that it cannot close the script element."""
        steps = choose_steps(self.voxels.shape, self.spacing)
        voxels = shrink_volume(self.voxels, steps)
        shape = np.array(voxels.shape)
        table = list_levels(voxels, hounsfield=self.hounsfield)
        point = np.array(self.voxels.shape) // 2 if self.point is None else np.array(self.point)
        values: dict[str, Any] = {
            "shape": shape.tolist(),
            "spacing": [float(mm) * step for mm, step in zip(self.spacing, steps, strict=True)],
            "point": np.minimum(point // steps, shape - 1).tolist(),
            "table": [round(float(value), 4) for value in table],
            "levels": encode_grid(find_levels(voxels, table)),
            "window": list(self.window),
            "windows": {name: list(ends) for name, ends in WINDOWS.items()} if self.hounsfield else {},
            "layers": [_describe_layer(layer, self.voxels.shape, steps) for layer in self.layers],
            "attention": None if self.attention is None else _describe_attention(self.attention, self.reach),
            "within": self.within and [[low / step, high / step] for (low, high), step in zip(self.within, steps, strict=True)],
        }
        return Markup(json.dumps(values).replace("<", "\\u003c"))


@dataclass(frozen=True)
class VolumeGrid:
    """Crops side by side if the screen is wide enough."""

    volumes: Sequence[Volume]


def list_window_filters() -> dict[str, str]:
    """Tabulate the grey value (0 to 1) of each of the 256 levels in each CT window, in the format of an SVG filter."""
    levels = list_levels(np.zeros(1), hounsfield=True)
    return {
        name: " ".join(f"{grey:.3g}" for grey in np.clip((levels - low) / (high - low), 0, 1))
        for name, (low, high) in WINDOWS.items()
    }


def find_levels(voxels: NDArray, levels: NDArray[np.float64]) -> NDArray[np.int64]:
    """Find the index of the level nearest to each voxel."""
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, voxels)


def choose_steps(shape: Sequence[int], spacing: Sequence[float], most: int = MOST_VOXELS) -> tuple[int, int, int]:
    """Choose the block size along each axis that leaves at most `most` voxels; the finest axis is averaged first."""
    steps = [1, 1, 1]
    while np.prod([-(-size // step) for size, step in zip(shape, steps, strict=True)]) > most:
        finest = min(range(3), key=lambda axis: (steps[axis] * spacing[axis], axis))
        steps[finest] += 1
    return steps[0], steps[1], steps[2]


def shrink_volume(voxels: NDArray, steps: Sequence[int]) -> NDArray[np.float32]:
    """Downsample by averaging blocks of `steps` voxels; an incomplete block at the end of an axis is dropped."""
    values = np.asarray(voxels, dtype=np.float32)
    for axis, step in enumerate(steps):
        whole = values.shape[axis] // step
        cropped = values[(slice(None),) * axis + (slice(0, whole * step),)]
        values = cropped.reshape(*cropped.shape[:axis], whole, step, *cropped.shape[axis + 1 :]).mean(axis=axis + 1)
    return values


def list_levels(voxels: NDArray, *, hounsfield: bool) -> NDArray[np.float64]:
    """List the intensities of the 256 grey levels, ascending: HU in steps that suit tissue, otherwise evenly spaced."""
    if hounsfield:
        return np.concatenate([np.linspace(low, high, count, endpoint=False) for low, high, count in _LEVELS_HU])
    low, high = float(np.percentile(voxels, 0.1)), float(np.percentile(voxels, 99.9))
    return np.linspace(low, max(high, low + 1e-6), 256)


def encode_grid(codes: NDArray) -> str:
    """Encode X Y Z values from 0 to 255 as a PNG data URI of X columns and Y rows per slice, with slices stacked vertically."""
    x, y, z = codes.shape
    rows = np.ascontiguousarray(codes.astype(np.uint8).transpose(2, 1, 0)).reshape(z * y, x)
    buffer = BytesIO()
    # Level 6: level 9 (optimize=True) saves 1 % of the bytes, but takes three times as long.
    Image.fromarray(rows).save(buffer, format="PNG", compress_level=6)
    return _to_uri(buffer.getvalue())


def _describe_layer(layer: Layer, shape: Sequence[int], steps: Sequence[int]) -> dict[str, Any]:
    codes = layer.codes
    if codes.shape == tuple(shape):
        for axis, step in enumerate(steps):
            # Sample the centre of each complete block.
            codes = codes[(slice(None),) * axis + (slice(step // 2, shape[axis] // step * step, step),)]
    return {
        "shape": list(codes.shape),
        "codes": encode_grid(codes),
        "names": list(layer.names),
        "colors": list(layer.colors),
        "dashed": layer.dashed,
        "fill": layer.fill,
    }


def _describe_attention(values: NDArray[np.float32], reach: float | None) -> dict[str, Any]:
    reach = find_reach(values) if reach is None else reach
    levels = np.clip(np.rint((values - 1.0) / reach * 127) + 127, 0, 254)
    return {"shape": list(values.shape), "values": encode_grid(levels), "reach": reach}


def _to_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
