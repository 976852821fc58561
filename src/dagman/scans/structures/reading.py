"""A structure of an RTSTRUCT or SEG file, by its name or number, as a label map of 0 and 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from dagman.errors import MissingExtraError, ScanError
from dagman.records.counts import list_some
from dagman.scans.affine import LPS_TO_RAS, Affine
from dagman.scans.dicom.headers import quiet_pydicom, read_data_set, resembles_dicom
from dagman.scans.dicom.values import read_items, read_numbers, read_text
from dagman.scans.faults import explain_faults
from dagman.scans.scan import Scan
from dagman.scans.structures.contours import fill_volume

Grid = tuple[Affine, tuple[int, int, int]]
"""Of a scan: its affine and shape."""
_RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
_SEGMENTS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_IN_PLANE = 0.1
"""Slices by which the points of a contour may leave its plane."""
_EXPORT_AGAIN = "Export it again"


def holds_structures(path: Path) -> bool:
    """Whether a file is an RTSTRUCT or a SEG, by its header; False for anything else, and for what cannot be read."""
    try:
        return path.is_file() and resembles_dicom(path) and _read_class(path) in (_RTSTRUCT, *_SEGMENTS)
    except (OSError, ScanError):
        return False


def read_structure(path: Path, name: str | int | None, find_grid: Callable[[], Grid]) -> Scan:
    """The structure `name` (its name or number; None: the only one) of a file as a label map of 0 and 1.

    Contours are drawn on the grid of their scan, which is asked for then alone; segments keep their own. Raises ScanError where the
    file cannot be read, holds no such structure, or its contours are not drawn in planes of the scan, MissingExtraError for a SEG
    without highdicom.
    """
    with explain_faults("is damaged, or not a readable RTSTRUCT or SEG", where=path, do=_EXPORT_AGAIN), quiet_pydicom():
        return _read_contours(path, name, find_grid) if _read_class(path) == _RTSTRUCT else _read_segment(path, name)


def list_structures(path: Path) -> dict[int, str]:
    """The structures of an RTSTRUCT or SEG: names by number. Raises as `read_structure`."""
    with explain_faults("is damaged, or not a readable RTSTRUCT or SEG", where=path, do=_EXPORT_AGAIN), quiet_pydicom():
        if _read_class(path) == _RTSTRUCT:
            return _name_contours(pydicom.dcmread(path, force=True))
        return _name_segments(_open_segments(path))


def read_structures(path: Path, find_grid: Callable[[], Grid]) -> tuple[Scan, dict[int, str]]:
    """All structures of a file as one label map, with the name of each number; where two overlap the later one counts.

    Contours that cannot be drawn on the scan are left out. Raises as `read_structure`, where none can be.
    """
    names = list_structures(path)
    map_of: Scan | None = None
    refused: ScanError | None = None
    for number in sorted(names):
        try:
            one = read_structure(path, number, find_grid)
        except ScanError as error:
            refused = error
            continue
        if map_of is None:
            map_of = Scan(voxels=number * one.voxels, affine=one.affine, modality="other", patient="", source=str(path))
        else:
            # Read anew for each, they lie on one grid: the scan's, or the segmentation's.
            map_of.voxels[one.voxels > 0] = number
    if map_of is None:
        raise refused or ScanError("holds no structures", where=path, do=_EXPORT_AGAIN)
    return map_of, names


def list_drawn(path: Path) -> list[str]:
    """The names of an RTSTRUCT's structures that have a closed contour, or of a SEG's segments. Raises as `read_structure`."""
    names = list_structures(path)
    with explain_faults("is damaged, or not a readable RTSTRUCT or SEG", where=path, do=_EXPORT_AGAIN), quiet_pydicom():
        if _read_class(path) != _RTSTRUCT:
            return list(names.values())
        drawn = set()
        for roi in read_items(pydicom.dcmread(path, force=True), "ROIContourSequence"):
            contours = read_items(roi, "ContourSequence")
            if any(read_text(one, "ContourGeometricType").startswith("CLOSED") for one in contours):
                drawn.add(int(roi.ReferencedROINumber))
        return [name for number, name in names.items() if number in drawn]


def read_disjoint(path: Path, names: Mapping[int, str], find_grid: Callable[[], Grid]) -> Scan:
    """Structures by name as one label map with the given values; raises as `read_structure`, and ScanError where two overlap."""
    joined: Scan | None = None
    for value, name in names.items():
        one = read_structure(path, name, find_grid)
        inside = one.voxels > 0
        if joined is None:
            joined = Scan(voxels=value * one.voxels, affine=one.affine, modality="other", patient="", source=str(path))
            continue
        if shared := np.unique(joined.voxels[inside & (joined.voxels > 0)]).tolist():
            others = list_some(f"'{names[before]}'" for before in shared)
            do = "A voxel has one label: choose structures that do not overlap, or correct the contours"
            raise ScanError(f"structure '{name}' overlaps {others}", where=path, do=do)
        joined.voxels[inside] = value
    if joined is None:
        raise ScanError("was given no structure to read", where=path, do="Name one of its structures")
    return joined


def _read_class(path: Path) -> str:
    with explain_faults("is damaged in its DICOM header", where=path, do=_EXPORT_AGAIN), open(path, "rb") as file:
        return read_text(read_data_set(file, stop_before_pixels=True, specific_tags=["SOPClassUID"]), "SOPClassUID")


def _choose(path: Path, name: str | int | None, names: dict[int, str]) -> int:
    """The number of the structure that is meant; a name counts without regard to case where that is not ambiguous."""
    held = list_some(f"'{one}'" for one in names.values()) or "none"
    if name is None:
        if len(names) == 1:
            return next(iter(names))
        raise ScanError(f"holds {len(names)} structures: {held}", where=path, do="Name one of them in the column label_value")
    if isinstance(name, int):
        meant = [number for number in names if number == name]
    else:
        wanted = name.strip()
        meant = [number for number, one in names.items() if one == wanted]
        meant = meant or [number for number, one in names.items() if one.casefold() == wanted.casefold()]
    if len(meant) != 1:
        what = f"holds {len(meant)} structures named '{name}'" if meant else f"holds no structure '{name}'"
        raise ScanError(f"{what} (it holds {held})", where=path, do="Correct label_value, or remove the row")
    return meant[0]


def _read_contours(path: Path, name: str | int | None, find_grid: Callable[[], Grid]) -> Scan:
    data = pydicom.dcmread(path, force=True)
    rois = _name_contours(data)
    number = _choose(path, name, rois)
    affine, shape = find_grid()
    contours = []
    for roi in read_items(data, "ROIContourSequence"):
        if int(roi.ReferencedROINumber) != number:
            continue
        for contour in read_items(roi, "ContourSequence"):
            points = np.reshape(read_numbers(contour, "ContourData"), (-1, 3))
            if read_text(contour, "ContourGeometricType").startswith("CLOSED") and len(points) >= 3:
                contours.append(affine.to_voxel(points @ LPS_TO_RAS[:3, :3].T))
    if not contours:
        raise ScanError(f"structure '{rois[number]}' has no closed contour", where=path, do="Contour it, or remove the row")
    # The axis across the planes: a scan may be stored with its slices along another axis than the last.
    spread = np.max([np.ptp(one, axis=0) for one in contours], axis=0)
    axis = int(spread.argmin())
    if spread[axis] > _IN_PLANE:
        what = f"the contours of '{rois[number]}' lie up to {spread[axis]:.2g} slices off the scan's"
        raise ScanError(what, where=path, do="Give the scan they were drawn on, or a label map")
    order = [*(one for one in range(3) if one != axis), axis]
    first, second, third = (shape[one] for one in order)
    filled = fill_volume([one[:, order] for one in contours], (first, second, third))
    if not filled.any():
        what = f"structure '{rois[number]}' contains no voxel of its scan"
        raise ScanError(what, where=path, do="Check that it was drawn on this scan")
    return _build_map(np.moveaxis(filled, (0, 1, 2), order), affine, path)


def _name_contours(data: pydicom.Dataset) -> dict[int, str]:
    return {int(one.ROINumber): read_text(one, "ROIName").strip() for one in read_items(data, "StructureSetROISequence")}


def _open_segments(path: Path) -> Any:
    try:
        import highdicom
    except ImportError:
        raise MissingExtraError("highdicom", "seg") from None
    return highdicom.seg.segread(path)


def _name_segments(segmentation: Any) -> dict[int, str]:
    return {one: segmentation.get_segment_description(one).segment_label.strip() for one in segmentation.segment_numbers}


def _read_segment(path: Path, name: str | int | None) -> Scan:
    segmentation = _open_segments(path)
    number = _choose(path, name, _name_segments(segmentation))
    volume = segmentation.get_volume(segment_numbers=[number], combine_segments=True)
    # highdicom counts slices first, then rows, then columns, in LPS.
    matrix = LPS_TO_RAS @ volume.affine[:, [2, 1, 0, 3]]
    return _build_map((volume.array > 0).transpose(2, 1, 0), Affine(matrix), path)


def _build_map(inside: np.ndarray, affine: Affine, path: Path) -> Scan:
    return Scan(voxels=inside.astype(np.int16), affine=affine, modality="other", patient="", source=str(path))
