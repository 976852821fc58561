"""Label maps as DICOM Segmentation objects (SEG) that refer to the series they were made from; needs highdicom.

A SEG keeps the UIDs of its source, by which an archive joins the two. Everything else that names a person, place or day is left
out, and the patient is a pseudonym, unless the file is to be identified.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from dagman.scans.dicom.headers import quiet_pydicom, read_data_set, read_planes
from dagman.scans.dicom.values import read_text
from dagman.scans.faults import explain_faults
from dagman.scans.pseudonyms import name_patient

_NAME = "dagman"
_MAY_BE_EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)
"""What the standard lets be empty (type 2), but an anonymisation may have removed: a SEG is then as silent as its source."""
_KEPT = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SeriesNumber"),
    *("Modality", "Rows", "Columns", "NumberOfFrames", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    *("ImagePositionPatient", "ImageOrientationPatient"),
)
"""All of a source that a SEG is made from, beside the places of its frames; what is not listed cannot reach the file."""
_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality")
"""What a SEG refers to its source by."""
_PLACES = {
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
}
_NOT_A_SOURCE, _EXPORT_AGAIN = "its headers do not allow a DICOM SEG", "Export the series again, with its UIDs kept"
_METHOD = "dagman: pseudonym; UIDs kept"


def write_segments(
    path: str | Path, labels: NDArray, names: Mapping[int, str], files: Sequence[Path], *, identified: bool = False
) -> None:
    """Write labels (X Y Z on the grid of the series as dagman reads it) as a binary SEG, a segment for each value of `names`.

    files: those of the series, in any order. identified: name the patient and the study as the source does; otherwise the patient
    is the pseudonym that dagman gives everywhere, and of the source UIDs and geometry alone are kept. Raises MissingExtraError
    without highdicom, ScanError when the labels or the source do not fit.
    """
    written = BytesIO()
    with explain_faults(_NOT_A_SOURCE, where=files[0].parent, do=_EXPORT_AGAIN), quiet_pydicom():
        sources, frames = _order_sources(files, labels)
        if not identified:
            sources = [_keep_geometry(source) for source in sources]
        values = sorted(names)
        segmentation = _build_segmentation(sources, np.isin(frames, values) * frames, values, names)
        if not identified:
            segmentation.PatientIdentityRemoved = "YES"
            segmentation.DeidentificationMethod = _METHOD
        segmentation.save_as(written)
    with write_whole(path) as temporary:
        temporary.write_bytes(written.getbuffer())


def names_its_patient(path: Path) -> bool:
    """Whether a SEG names its patient as the source does; raises ScanError when it cannot be read."""
    with explain_faults("cannot be read", where=path, do="Delete it, and repeat the command"), open(path, "rb") as file:
        data = read_data_set(file, stop_before_pixels=True, specific_tags=["PatientIdentityRemoved"])
        return read_text(data, "PatientIdentityRemoved") != "YES"


def _keep_geometry(source: pydicom.FileDataset) -> pydicom.FileDataset:
    """A data set with the source's UIDs and places, its patient's pseudonym, and nothing else."""
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
            setattr(kept, groups, [_keep_places(group) for group in source[groups].value])
    return kept


def _keep_places(group: pydicom.Dataset) -> pydicom.Dataset:
    kept = pydicom.Dataset()
    for name, keywords in _PLACES.items():
        items = []
        for item in group.get(name) or ():
            place = pydicom.Dataset()
            for keyword in keywords:
                if keyword in item:
                    place[keyword] = item[keyword]
            items.append(place)
        if items:
            setattr(kept, name, items)
    return kept


def _order_sources(files: Sequence[Path], labels: NDArray) -> tuple[list[pydicom.FileDataset], NDArray]:
    """The source data sets and the labels' frames (frame, row, column), one belonging to the other."""
    data = [pydicom.dcmread(path, force=True) for path in files]
    _check_references(data)
    planes = [read_planes(one) for one in data]
    order, affine = order_planes([plane for group in planes for plane in group])
    _fill_gaps(data, gap=affine.spacing[2])
    frames = np.ascontiguousarray(labels.transpose(2, 1, 0))
    if len(frames) != len(order):
        raise ScanError(f"labels have {len(frames)} slices, the series {len(order)}", where=files[0].parent, do="Predict it again")
    if len(data) == 1:
        # One multi-frame file keeps its own order of frames.
        placed = np.empty_like(frames)
        placed[order] = frames
        return data, placed
    return [data[index] for index in order], frames


def _check_references(sources: Sequence[pydicom.Dataset]) -> None:
    lacking = [keyword for keyword in _NEEDED if not all(read_text(source, keyword).strip() for source in sources)]
    if lacking:
        raise ScanError(f"its headers lack {' and '.join(lacking)}, which a DICOM SEG must name", do=_EXPORT_AGAIN)


def _fill_gaps(sources: Sequence[pydicom.Dataset], gap: float) -> None:
    for source in sources:
        for keyword in _MAY_BE_EMPTY:
            if keyword not in source:
                setattr(source, keyword, "")
        if "PixelSpacing" in source and not source.get("SliceThickness"):
            source.SliceThickness = format_number_as_ds(float(gap))


def _build_segmentation(
    sources: Sequence[pydicom.Dataset], frames: NDArray, values: Sequence[int], names: Mapping[int, str]
) -> Any:
    try:
        import highdicom
        from pydicom.sr.codedict import codes
    except ImportError:
        raise MissingExtraError("highdicom", "seg") from None
    from dagman import __version__

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=_NAME, version=__version__, family=codes.cid7162.ArtificialIntelligence
    )
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=names[value][:64],
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=codes.SCT.AnatomicalStructure,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, value in enumerate(values, start=1)
    ]
    pixels = np.stack([frames == value for value in values], axis=-1).astype(np.uint8)
    return highdicom.seg.Segmentation(
        source_images=list(sources),
        pixel_array=pixels,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=highdicom.UID(),
        series_number=_count_series(sources[0]),
        series_description="Segmentation by dagman; not for diagnosis",
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer=_NAME,
        manufacturer_model_name=_NAME,
        software_versions=__version__,
        device_serial_number="0",
        omit_empty_frames=bool(pixels.any()),
    )


def _count_series(source: pydicom.Dataset) -> int:
    """A number behind the source's own, as archives sort by it."""
    number = source.get("SeriesNumber")
    return int(number) * 100 + 1 if number is not None and 0 < int(number) < 10**6 else 1
