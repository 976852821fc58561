"""Prepares the series that a derived DICOM object (SEG, Parametric Map) refers to: order of slices, UIDs, pseudonyms.

An object keeps the UIDs of its source, by which an archive links the two. Unless the object is to identify the patient, everything
else that names a person, place or date is removed, and the patient is a pseudonym.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.valuerep import format_number_as_ds

from dagman.errors import MissingExtraError, ScanError
from dagman.records.files import write_whole
from dagman.scans.dicom.geometry import order_planes
from dagman.scans.dicom.headers import quiet_pydicom, read_planes
from dagman.scans.dicom.values import read_text
from dagman.scans.faults import explain_faults
from dagman.scans.pseudonyms import name_patient

NAME = "dagman"
_MAY_BE_EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)
"""Elements that must exist but may be empty (type 2); they are added, empty, if an anonymisation has removed them."""
_KEPT = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SeriesNumber"),
    *("Modality", "Rows", "Columns", "NumberOfFrames", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    *("ImagePositionPatient", "ImageOrientationPatient"),
)
"""The elements of a source that reach an object, besides the positions of its frames; no others can."""
_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality")
"""Elements by which an object refers to its source."""
_GEOMETRY = {
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
}
_EXPORT_AGAIN = "Export the series again, with its UIDs kept"
_METHOD = "dagman: pseudonym; UIDs kept"


Build = Callable[[Sequence[pydicom.FileDataset], NDArray], Any]
"""Builds an object of highdicom from the source's data sets and the corresponding frames (frame, row, column)."""


def write_derived(path: str | Path, volume: NDArray, files: Sequence[Path], build: Build, *, kind: str, identified: bool) -> None:
    """Write the object that `build` makes of a volume, atomically.

    Args:
        path: the output file.
        volume: X Y Z, on the grid of the series as dagman reads it.
        files: files of the series, in any order.
        build: makes the object.
        kind: name of the object in messages, such as "a DICOM SEG".
        identified: identify the patient and study like the source. Otherwise the patient is dagman's usual pseudonym, and only
            UIDs and geometry of the source are kept.

    Raises:
        ScanError: if the volume does not fit the series, or its headers lack required elements.
    """
    written = BytesIO()
    with explain_faults(f"its headers do not allow {kind}", where=files[0].parent, do=_EXPORT_AGAIN), quiet_pydicom():
        sources, frames = _order_sources(files, volume, kind)
        if not identified:
            sources = [_keep_geometry(source) for source in sources]
        derived = build(sources, frames)
        if not identified:
            derived.PatientIdentityRemoved = "YES"
            derived.DeidentificationMethod = _METHOD
        derived.save_as(written)
    with write_whole(path) as temporary:
        temporary.write_bytes(written.getbuffer())


def import_highdicom() -> Any:
    """Import highdicom; raises MissingExtraError if it is not installed."""
    try:
        import highdicom
    except ImportError:
        raise MissingExtraError("highdicom", "seg") from None
    return highdicom


def describe_equipment(source: pydicom.Dataset) -> dict[str, Any]:
    """Return the elements about the new series and the program, which all derived objects share."""
    from dagman import __version__

    uid = import_highdicom().UID
    return {
        "series_instance_uid": uid(),
        "series_number": _count_series(source),
        "sop_instance_uid": uid(),
        "instance_number": 1,
        "manufacturer": NAME,
        "manufacturer_model_name": NAME,
        "software_versions": __version__,
        "device_serial_number": "0",
    }


def _keep_geometry(source: pydicom.FileDataset) -> pydicom.FileDataset:
    """Return a data set with only the source's UIDs and geometry, and the patient's pseudonym."""
    kept = pydicom.FileDataset("", {}, file_meta=source.file_meta)
    for keyword in _KEPT:
        if keyword in source:
            kept[keyword] = source[keyword]
    for keyword in _MAY_BE_EMPTY:
        setattr(kept, keyword, "")
    kept.PatientID = name_patient(read_text(source, "PatientID").strip() or read_text(source, "StudyInstanceUID"))
    kept.PatientName = kept.PatientID
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        if groups in source:
            setattr(kept, groups, [_keep_positions(group) for group in source[groups].value])
    return kept


def _keep_positions(group: pydicom.Dataset) -> pydicom.Dataset:
    kept = pydicom.Dataset()
    for name, keywords in _GEOMETRY.items():
        items = []
        for item in group.get(name) or ():
            geometry = pydicom.Dataset()
            for keyword in keywords:
                if keyword in item:
                    geometry[keyword] = item[keyword]
            items.append(geometry)
        if items:
            setattr(kept, name, items)
    return kept


def _order_sources(files: Sequence[Path], volume: NDArray, kind: str) -> tuple[list[pydicom.FileDataset], NDArray]:
    """Return the source's data sets and the volume's frames (frame, row, column) in matching order."""
    data = [pydicom.dcmread(path, force=True) for path in files]
    _check_references(data, kind)
    planes = [read_planes(source) for source in data]
    order, affine = order_planes([plane for group in planes for plane in group])
    _fill_gaps(data, gap=affine.spacing[2])
    frames = np.ascontiguousarray(volume.transpose(2, 1, 0))
    if len(frames) != len(order):
        # The scan was resampled because of a tilted gantry or uneven slices, or the series has changed.
        what = f"{kind} would have {len(frames)} slices, but the series has {len(order)}"
        raise ScanError(what, where=files[0].parent, do="Run dagman predict again; resampled slices cannot be written as DICOM")
    if len(data) == 1:
        # One multi-frame file keeps its own order of frames.
        placed = np.empty_like(frames)
        placed[order] = frames
        return data, placed
    return [data[index] for index in order], frames


def _check_references(sources: Sequence[pydicom.Dataset], kind: str) -> None:
    lacking = [keyword for keyword in _NEEDED if not all(read_text(source, keyword).strip() for source in sources)]
    if lacking:
        raise ScanError(f"its headers lack {' and '.join(lacking)}, which {kind} must contain", do=_EXPORT_AGAIN)


def _fill_gaps(sources: Sequence[pydicom.Dataset], gap: float) -> None:
    for source in sources:
        for keyword in _MAY_BE_EMPTY:
            if keyword not in source:
                setattr(source, keyword, "")
        if "PixelSpacing" in source and not source.get("SliceThickness"):
            source.SliceThickness = format_number_as_ds(float(gap))


def _count_series(source: pydicom.Dataset) -> int:
    """Return a series number that sorts after the source's own."""
    number = source.get("SeriesNumber")
    return int(number) * 100 + 1 if number is not None and 0 < int(number) < 10**6 else 1
