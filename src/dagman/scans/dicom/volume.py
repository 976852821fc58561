"""Files of one DICOM volume to values and an affine."""

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
"""A header has a hundred elements; to parse these alone takes two thirds of the time."""
_MOST_PADDED = 0.9
"""Share of padded voxels above which nothing is left to see; a round field of view leaves 21 %."""


def read_volume(files: Sequence[Path], *, source: str, tilted: bool = False, widest_gap: float = 0.0) -> RawImage:
    """Values (column, row, slice), rescaled slice by slice, and the affine to RAS mm; `files` in any order.

    tilted: slices of a tilted gantry are given as they are, with a sheared affine. widest_gap: uneven slices are interpolated to
    even ones if no two neighbours are farther apart (mm); a note says so.
    Raises ScanError: a file that is cut short or cannot be decoded is named; for what is wrong with the geometry see
    `geometry.order_planes`.
    """
    parts: list[Frames] = []
    planes: list[Plane] = []
    with quiet_pydicom():
        for path in files:
            frames, places = _read_file(path)
            parts.append(frames)
            planes.extend(places)
    with explain_faults("cannot be assembled into a volume", where=source, do="Export the series again"):
        stack = stack_planes(planes, tilted=tilted, widest_gap=widest_gap)
        slices = [frame for part in parts for frame in part.values]
        values = _even_out(np.stack([slices[index] for index in stack.order]), stack)
    return RawImage(values.transpose(2, 1, 0), stack.affine, (*stack.notes, *_note_padding(parts, values.size, source)))


def _even_out(slices: NDArray, stack: Stack) -> NDArray:
    """Slices at the stack's even places: linear between neighbours, rounded where they were whole numbers."""
    if stack.places is None:
        return slices
    wanted = np.arange(round(stack.places[-1]) + 1)
    below = np.clip(np.searchsorted(stack.places, wanted + 1e-6) - 1, 0, len(slices) - 2)
    shares = np.clip((wanted - stack.places[below]) / (stack.places[below + 1] - stack.places[below]), 0, 1)
    mixed = [slices[at] * (1 - share) + slices[at + 1] * share for at, share in zip(below, shares, strict=True)]
    return np.stack([(np.rint(one) if np.issubdtype(slices.dtype, np.integer) else one).astype(slices.dtype) for one in mixed])


def measure_volume(files: Sequence[Path]) -> tuple[Sequence[int], Sequence[float]]:
    """Shape (columns, rows, slices) and spacing (mm) by the first file's header; 2 mm where it gives no depth."""
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
            what = f"holds {len(frames.values)} frames, but places for {len(planes)}"
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
