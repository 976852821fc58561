"""Layers over a scan in the viewer: attention on the grid of units, and label maps with the names of their structures."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip
from numpy.typing import NDArray
from scipy import ndimage

from dagman.encoder.attention import Attention
from dagman.errors import ScanError
from dagman.reports.figures.planes import describe_reach, find_reach
from dagman.reports.volumes import choose_steps
from dagman.scans.affine import Affine
from dagman.scans.scan import Scan, reorient_scan
from dagman.scans.structures.colors import color_structures, split_color

_ROUNDING = 1e-3
"""Tolerance for labels that are not exact integers, as files may store scaled values."""
_MOST_LABELS = 255


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionLayer:
    """Attention relative to uniform, one map per head (H x y z); `affine` maps unit indices to RAS mm."""

    heads: NDArray[np.float32] = field(repr=False)
    affine: Affine


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelLayer:
    """A label map on any grid.

    Attributes:
        labels: The label map.
        names: Names of structures by value.
        called: Name of the map, to distinguish several.
        colors: Colours by value; other values get colours in order.
    """

    labels: Scan
    names: Mapping[int, str] = field(default_factory=dict)
    called: str = "labels"
    colors: Mapping[int, str] = field(default_factory=dict)


def place_attention(attention: Attention) -> AttentionLayer:
    """Place the attention maps of an encoder; each unit covers `stride` voxels of the prepared and padded scan."""
    start = [part.start or 0 for part in attention.tiling.scan_box]
    matrix = attention.prepared.affine.matrix.copy()
    matrix[:3, 3] = attention.prepared.affine.to_world([[(attention.stride - 1) / 2 - first for first in start]])[0]
    matrix[:3, :3] *= attention.stride
    return AttentionLayer(heads=attention.heads.float().cpu().numpy(), affine=Affine(matrix))


def coarsen_affine(affine: Affine, steps: Sequence[float]) -> Affine:
    """Compute the affine of a grid of blocks of `steps` voxels; its origin is the centre of the first block."""
    matrix = affine.matrix.copy()
    matrix[:3, 3] += affine.matrix[:3, :3] @ ((np.array(steps) - 1) / 2)
    matrix[:3, :3] = affine.matrix[:3, :3] * np.array(steps)
    return Affine(matrix)


def describe_attention(layer: AttentionLayer) -> dict[str, Any]:
    """Encode the mean and each head as differences from uniform, with two ranges for the colour scale.

    `reach` is the range to use at first, which is at least `LEAST_REACH`; `own` is the range of the mean map itself.
    """
    maps = [layer.heads.mean(axis=0), *(layer.heads if len(layer.heads) > 1 else ())]
    own = max(float(np.abs(maps[0] - 1).max()), 1e-3)
    encoded = [encode_volume((values - 1).astype(np.float32), layer.affine) for values in maps]
    return {"maps": encoded, "reach": find_reach(maps[0]), "own": own}


def state_attention(layer: AttentionLayer) -> str:
    """State the range of the mean over heads, and where the colour scale ends."""
    mean = layer.heads.mean(axis=0)
    return f"Attention, mean of heads: {mean.min():.3f} to {mean.max():.3f} times uniform. {describe_reach(mean)}"


def describe_labels(layer: LabelLayer, most: int) -> dict[str, Any]:
    """Encode a label map as codes 1, 2, ... with the name, colour and volume (ml) of each structure, and a point inside it.

    The map is cropped to its structures; if it still has more than `most` voxels, one voxel per block is sampled.

    Raises:
        ScanError: The values are not whole numbers, or too many to be distinguished.
    """
    upright = reorient_scan(layer.labels)
    values, codes = _number_labels(upright)
    sizes = np.bincount(codes.ravel(), minlength=len(values) + 1)[1:]
    (box,) = ndimage.find_objects((codes > 0).view(np.uint8)) or (None,)
    box = box or tuple(slice(0, 1) for _ in range(3))
    codes = codes[box]
    steps = choose_steps(codes.shape, upright.spacing, most)
    first = [step // 2 if step // 2 < size else 0 for step, size in zip(steps, codes.shape, strict=True)]
    # NiiVue draws outlines only between voxels, so structures at the edge need a rim of background.
    codes = np.pad(codes[tuple(slice(start, None, step) for start, step in zip(first, steps, strict=True))], 1)
    corner = [part.start + start - step for part, start, step in zip(box, first, steps, strict=True)]
    matrix = upright.affine.matrix.copy()
    matrix[:3, 3] = upright.affine.to_world([corner])[0]
    matrix[:3, :3] *= np.array(steps)
    affine = Affine(matrix)
    # Colours are assigned over all named values, so a structure keeps its colour in scans that lack others.
    named = sorted({*values, *layer.names})
    of_value = dict(zip(named, color_structures(len(named)), strict=True)) | dict(layer.colors)
    colors = [of_value[value] for value in values]
    ml = float(np.prod(upright.spacing)) / 1000
    boxes = ndimage.find_objects(codes, max_label=len(values))
    structures = [
        {
            "name": layer.names.get(value, f"label {value}"),
            "value": value,
            "color": color,
            "ml": round(float(size) * ml, 3),
            "point": _find_middle(codes, code, place, affine),
        }
        for code, (value, color, size, place) in enumerate(zip(values, colors, sizes, boxes, strict=True), start=1)
    ]
    channels = [[0, *(split_color(color)[channel] for color in colors)] for channel in range(3)]
    table = dict(zip("RGB", channels, strict=True)) | {"A": [0, *[255] * len(values)], "I": list(range(len(values) + 1))}
    called = ["", *(str(structure["name"]) for structure in structures)]
    return {
        "called": layer.called,
        "map": encode_volume(codes, affine, labels=True),
        "structures": structures,
        "colors": {**table, "labels": called},
    }


def encode_volume(voxels: NDArray, affine: Affine, *, labels: bool = False) -> str:
    """Encode a volume as gzipped NIfTI in base64; NiiVue draws `labels` with outlines, and does not interpolate between them."""
    image = nib.Nifti1Image(voxels, affine.matrix)
    if labels:
        image.header.set_intent("label")
    image.header.set_xyzt_units("mm")
    return base64.b64encode(igzip.compress(image.to_bytes(), 3, mtime=0)).decode()


def _number_labels(labels: Scan) -> tuple[list[int], NDArray[np.uint8]]:
    """Return the values that occur, ascending, and the number of each voxel's value among them, from 1; 0 is background."""
    rounded = np.rint(labels.voxels)
    if not np.array_equal(rounded, labels.voxels) and float(np.abs(rounded - labels.voxels).max()) > _ROUNDING:
        do = "Give a label map; threshold a map of probabilities"
        raise ScanError("holds values that are not whole numbers", where=labels.source, do=do)
    whole = rounded.astype(np.int32)
    low, high = int(whole.min()), int(whole.max())
    if high - low >= 2**20:
        raise ScanError(f"its values reach from {low} to {high}", where=labels.source, do="Give a label map, not a scan")
    held = np.bincount((whole - low).ravel(), minlength=high - low + 1) > 0
    values = [int(value) for value in np.flatnonzero(held) + low if value != 0]
    if len(values) > _MOST_LABELS:
        do = "Give a label map of fewer structures"
        raise ScanError(f"holds {len(values)} values; {_MOST_LABELS} can be shown", where=labels.source, do=do)
    codes = np.zeros(high - low + 1, dtype=np.uint8)
    codes[[value - low for value in values]] = np.arange(1, len(values) + 1)
    return values, codes[whole - low]


def _find_middle(codes: NDArray[np.uint8], code: int, box: tuple[slice, ...] | None, affine: Affine) -> list[float] | None:
    """Find the voxel of a structure nearest to its centroid, in RAS mm; None if no voxel was left after subsampling."""
    if box is None:
        return None
    inside = np.argwhere(codes[box] == code)
    nearest = inside[np.argmin(((inside - inside.mean(axis=0)) ** 2).sum(axis=1))]
    world = affine.to_world([nearest + [part.start for part in box]])[0]
    return [round(float(value), 3) for value in world]
