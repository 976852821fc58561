"""Reads the files of one DICOM volume as values and an affine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dagman.errors import ScanError
from dagman.scans.dicom.geometry import Plane, Stack, stack_planes
from dagman.scans.dicom.headers import quiet_pydicom, read_data_set, read_planes
from dagman.scans.dicom.pixels import PIXEL_TAGS, Frames, decode_frames, decode_plain
from dagman.scans.dicom.plain.header_values import read_plain_slice
from dagman.scans.dicom.values import read_count, read_number, read_numbers
from dagman.scans.faults import explain_faults
from dagman.scans.scan import RawImage

_READ = [*PIXEL_TAGS, "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"]
"""A header has about a hundred elements; parsing only these takes two thirds of the time."""
_MOST_PADDED = 0.9
"""Largest share of padded voxels; around a circular field of view it is 21 %."""


def read_volume(files: Sequence[Path], *, source: str, tilted: bool = False, widest_gap: float = 0.0) -> RawImage:
    """Read values (column, row, slice), rescaled slice by slice, and the affine to RAS mm.

    Args:
        files: the files of the volume, in any order.
        source: name of the series, for messages.
        tilted: accept slices of a tilted gantry; they are returned unchanged, with a sheared affine.
        widest_gap: interpolate uneven slices to even ones if no gap is wider than this (mm); it is noted.

    Raises:
        ScanError: naming the file, if one is truncated or cannot be decoded; or if the geometry is wrong (see
            `geometry.stack_planes`).
    """
    parts: list[Frames] = []
    planes: list[Plane] = []
    with quiet_pydicom():
        for path in files:
            frames, frame_planes = _read_file(path)
            parts.append(frames)
            planes.extend(frame_planes)
    with explain_faults("cannot be assembled into a volume", where=source, do="Export the series again"):
        stack = stack_planes(planes, tilted=tilted, widest_gap=widest_gap)
        slices = [frame for part in parts for frame in part.values]
        values = _even_out(np.stack([slices[index] for index in stack.order]), stack)
    return RawImage(values.transpose(2, 1, 0), stack.affine, (*stack.notes, *_note_padding(parts, values.size, source)))


def _even_out(slices: NDArray, stack: Stack) -> NDArray:
    """Interpolate slices linearly to the stack's even positions; integers are rounded."""
    if stack.places is None:
        return slices
    targets = np.arange(round(stack.places[-1]) + 1)
    below = np.clip(np.searchsorted(stack.places, targets + 1e-6) - 1, 0, len(slices) - 2)
    weights = np.clip((targets - stack.places[below]) / (stack.places[below + 1] - stack.places[below]), 0, 1)
    mixed = np.stack([slices[at] * (1 - weight) + slices[at + 1] * weight for at, weight in zip(below, weights, strict=True)])
    return (np.rint(mixed) if np.issubdtype(slices.dtype, np.integer) else mixed).astype(slices.dtype)


def measure_volume(files: Sequence[Path]) -> tuple[Sequence[int], Sequence[float]]:
    """Read shape (columns, rows, slices) and spacing (mm) from the first file's header; 2 mm if it states no slice distance."""
    tags = ["Rows", "Columns", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices", "NumberOfFrames"]
    with (
        explain_faults("is damaged in its DICOM header", where=files[0], do="Export the series again"),
        open(files[0], "rb") as file,
    ):
        data = read_data_set(file, stop_before_pixels=True, specific_tags=tags)
        slices = len(files) * read_count(data, "NumberOfFrames", 1)
        depth = read_number(data, "SpacingBetweenSlices") or read_number(data, "SliceThickness") or 2.0
        row, column = read_numbers(data, "PixelSpacing") or (1.0, 1.0)
        return (read_count(data, "Columns", 0), read_count(data, "Rows", 0), slices), (column, row, depth)


def _read_file(path: Path) -> tuple[Frames, tuple[Plane, ...]]:
    with explain_faults("is damaged or cut off in its DICOM header", where=path, do="Export the series again"):
        with open(path, "rb") as file, quiet_pydicom():
            plain = read_plain_slice(file)
            frames = None if plain is None else decode_plain(plain)
            data = read_data_set(file, specific_tags=_READ) if frames is None else cast(Dataset, plain)
            planes = read_planes(data)
        if frames is None:
            frames = decode_frames(data)
        if len(frames.values) != len(planes):
            what = f"holds {len(frames.values)} frames, but positions for {len(planes)}"
            raise ScanError(what, do="Export the series again")
    return frames, planes


def _note_padding(parts: Sequence[Frames], voxels: int, source: str) -> tuple[str, ...]:
    padded, kept = sum(part.padded for part in parts), sum(part.kept for part in parts)
    share = padded / voxels
    if share > _MOST_PADDED:
        what = f"{share:.0%} of its voxels are padding (PixelPaddingValue)"
        raise ScanError(what, where=source, do="Export the series again, or exclude it")
    notes = []
    if padded:
        notes.append(f"{padded} of {voxels} voxels ({share:.1%}) are padding (PixelPaddingValue), set to -1024 HU")
    if kept:
        notes.append(
            f"{kept} voxels within the image equal the padding value, which is also a plausible tissue value; they were kept"
        )
    return tuple(notes)
