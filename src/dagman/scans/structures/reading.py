"""Reads structures of an RTSTRUCT or SEG file, by name or number, as label maps."""

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
"""Affine and shape of a scan."""
_RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
_SEGMENTS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_IN_PLANE = 0.1
"""Distance in slices by which the points of a contour may deviate from its plane."""
_EXPORT_AGAIN = "Export it again"


def holds_structures(path: Path) -> bool:
    """Return whether a file is an RTSTRUCT or SEG according to its header; False if it cannot be read."""
    try:
        return path.is_file() and resembles_dicom(path) and _read_class(path) in (_RTSTRUCT, *_SEGMENTS)
    except (OSError, ScanError):
        return False


def read_structure(path: Path, name: str | int | None, find_grid: Callable[[], Grid]) -> Scan:
    """Read one structure as a label map of 0 and 1.

    Args:
        path: an RTSTRUCT or SEG file.
        name: name or number of the structure; None for the only one.
        find_grid: returns the grid of the scan. It is called only for contours, which are drawn on this grid; segments have their
            own.

    Raises:
        ScanError: if the file cannot be read or does not contain the structure, or contours are not in planes of the scan.
        MissingExtraError: for a SEG, if highdicom is not installed.
    """
    with explain_faults("is damaged, or not a readable RTSTRUCT or SEG", where=path, do=_EXPORT_AGAIN), quiet_pydicom():
        return _read_contours(path, name, find_grid) if _read_class(path) == _RTSTRUCT else _read_segment(path, name)


def list_structures(path: Path) -> dict[int, str]:
    """Return the names of the structures of an RTSTRUCT or SEG, by number; raises as `read_structure`."""
    with explain_faults("is damaged, or not a readable RTSTRUCT or SEG", where=path, do=_EXPORT_AGAIN), quiet_pydicom():
        if _read_class(path) == _RTSTRUCT:
            return _name_contours(pydicom.dcmread(path, force=True))
        return _name_segments(_open_segments(path))


def read_structures(path: Path, find_grid: Callable[[], Grid]) -> tuple[Scan, dict[int, str]]:
    """Read all structures of a file as one label map, and their names by number; if two overlap, the later one wins.

    Contours that cannot be drawn on the scan are skipped; if none can be, this raises as `read_structure`.
    """
    names = list_structures(path)
    label_map: Scan | None = None
    failure: ScanError | None = None
    for number in sorted(names):
        try:
            structure = read_structure(path, number, find_grid)
        except ScanError as error:
            failure = error
            continue
        if label_map is None:
            voxels = number * structure.voxels
            label_map = Scan(voxels=voxels, affine=structure.affine, modality="other", patient="", source=str(path))
        else:
            # All structures are on the same grid, the scan's or the segmentation's.
            label_map.voxels[structure.voxels > 0] = number
    if label_map is None:
        raise failure or ScanError("contains no structures", where=path, do=_EXPORT_AGAIN)
    return label_map, names


def list_drawn(path: Path) -> list[str]:
    """List the names of an RTSTRUCT's structures that have a closed contour, or of a SEG's segments; raises as `read_structure`."""
    names = list_structures(path)
    with explain_faults("is damaged, or not a readable RTSTRUCT or SEG", where=path, do=_EXPORT_AGAIN), quiet_pydicom():
        if _read_class(path) != _RTSTRUCT:
            return list(names.values())
        drawn = set()
        for roi in read_items(pydicom.dcmread(path, force=True), "ROIContourSequence"):
            contours = read_items(roi, "ContourSequence")
            if any(read_text(contour, "ContourGeometricType").startswith("CLOSED") for contour in contours):
                drawn.add(int(roi.ReferencedROINumber))
        return [name for number, name in names.items() if number in drawn]


def read_disjoint(path: Path, names: Mapping[int, str], find_grid: Callable[[], Grid]) -> Scan:
    """Read structures by name as one label map with the given values.

    Raises as `read_structure`, and ScanError if two structures overlap.
    """
    label_map: Scan | None = None
    for value, name in names.items():
        structure = read_structure(path, name, find_grid)
        inside = structure.voxels > 0
        if label_map is None:
            voxels = value * structure.voxels
            label_map = Scan(voxels=voxels, affine=structure.affine, modality="other", patient="", source=str(path))
            continue
        if shared := np.unique(label_map.voxels[inside & (label_map.voxels > 0)]).tolist():
            others = list_some(f"'{names[other]}'" for other in shared)
            do = "A voxel has one label: choose structures that do not overlap, or correct the contours"
            raise ScanError(f"structure '{name}' overlaps {others}", where=path, do=do)
        label_map.voxels[inside] = value
    if label_map is None:
        raise ScanError("no structure was selected", where=path, do="Name one of its structures")
    return label_map


def _read_class(path: Path) -> str:
    with explain_faults("is damaged in its DICOM header", where=path, do=_EXPORT_AGAIN), open(path, "rb") as file:
        return read_text(read_data_set(file, stop_before_pixels=True, specific_tags=["SOPClassUID"]), "SOPClassUID")


def _choose(path: Path, name: str | int | None, names: dict[int, str]) -> int:
    """Return the number of a structure; upper and lower case are distinguished only if the name is otherwise ambiguous."""
    available = list_some(f"'{other}'" for other in names.values()) or "none"
    if name is None:
        if len(names) == 1:
            return next(iter(names))
        raise ScanError(f"holds {len(names)} structures: {available}", where=path, do="Name one of them in the column label_value")
    if isinstance(name, int):
        matching = [number for number in names if number == name]
    else:
        wanted = name.strip()
        matching = [number for number, other in names.items() if other == wanted]
        matching = matching or [number for number, other in names.items() if other.casefold() == wanted.casefold()]
    if len(matching) != 1:
        what = f"holds {len(matching)} structures named '{name}'" if matching else f"has no structure '{name}'"
        raise ScanError(f"{what} (available: {available})", where=path, do="Correct label_value, or remove the row")
    return matching[0]


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
    # Find the slice axis, since a scan may be stored with its slices along another axis than the last.
    spread = np.max([np.ptp(contour, axis=0) for contour in contours], axis=0)
    axis = int(spread.argmin())
    if spread[axis] > _IN_PLANE:
        what = f"the contours of '{rois[number]}' deviate by up to {spread[axis]:.2g} slices from the scan's planes"
        raise ScanError(what, where=path, do="Give the scan they were drawn on, or a label map")
    order = [*(other for other in range(3) if other != axis), axis]
    first, second, third = (shape[index] for index in order)
    filled = fill_volume([contour[:, order] for contour in contours], (first, second, third))
    if not filled.any():
        what = f"structure '{rois[number]}' contains no voxel of its scan"
        raise ScanError(what, where=path, do="Check that it was drawn on this scan")
    return _build_map(np.moveaxis(filled, (0, 1, 2), order), affine, path)


def _name_contours(data: pydicom.Dataset) -> dict[int, str]:
    return {int(roi.ROINumber): read_text(roi, "ROIName").strip() for roi in read_items(data, "StructureSetROISequence")}


def _open_segments(path: Path) -> Any:
    try:
        import highdicom
    except ImportError:
        raise MissingExtraError("highdicom", "seg") from None
    return highdicom.seg.segread(path)


def _name_segments(segmentation: Any) -> dict[int, str]:
    numbers = segmentation.segment_numbers
    return {number: segmentation.get_segment_description(number).segment_label.strip() for number in numbers}


def _read_segment(path: Path, name: str | int | None) -> Scan:
    segmentation = _open_segments(path)
    number = _choose(path, name, _name_segments(segmentation))
    volume = segmentation.get_volume(segment_numbers=[number], combine_segments=True)
    # highdicom orders axes as slices, rows, columns, in LPS.
    matrix = LPS_TO_RAS @ volume.affine[:, [2, 1, 0, 3]]
    return _build_map((volume.array > 0).transpose(2, 1, 0), Affine(matrix), path)


def _build_map(inside: np.ndarray, affine: Affine, path: Path) -> Scan:
    return Scan(voxels=inside.astype(np.int16), affine=affine, modality="other", patient="", source=str(path))
