"""Label maps as DICOM Segmentation objects (SEG) that refer to the series they were made from; needs highdicom.

A SEG names its patient and study as its source does: that is what makes it findable in an archive. It is no anonymous file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

_NAME = "dagman"
_MAY_BE_EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)
"""What the standard lets be empty (type 2), but an anonymisation may have removed: a SEG is then as silent as its source."""


def write_segments(path: str | Path, labels: NDArray, names: Mapping[int, str], files: Sequence[Path]) -> None:
    """Write labels (X Y Z on the grid of the series as dagman reads it) as a binary SEG, a segment for each value of `names`.

    files: those of the series, in any order. Raises MissingExtraError without highdicom, ScanError when the labels or the
    source do not fit.
    """
    sources, frames = _order_sources(files, labels)
    values = sorted(names)
    segmentation = _build_segmentation(sources, np.isin(frames, values) * frames, values, names)
    with write_whole(path) as temporary, quiet_pydicom():
        segmentation.save_as(temporary)


def _order_sources(files: Sequence[Path], labels: NDArray) -> tuple[list[pydicom.FileDataset], NDArray]:
    """The source data sets and the labels' frames (frame, row, column), one belonging to the other."""
    with quiet_pydicom():
        data = [pydicom.dcmread(path, force=True) for path in files]
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
    with quiet_pydicom():
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
