"""One DICOM file's header, read without its pixels, as the few plain values that grouping and geometry need."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset

from dagman.errors import ScanError
from dagman.scans.dicom.geometry import Plane

SUFFIXES = (".dcm", ".dicom", ".ima")

_TAGS: list[Any] = [
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "PatientID",
    "Modality",
    "ImageType",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "BitsAllocated",
    "PixelSpacing",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "AcquisitionNumber",
    "EchoNumbers",
    "EchoTime",
    "TemporalPositionIdentifier",
    "TriggerTime",
    "NominalPercentageOfCardiacPhase",
    "DiffusionBValue",
    "ConvolutionKernel",
    "AcquisitionTime",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
_COMPRESSED_OR_UNKNOWN = -1
_PLAIN_SYNTAXES = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")


@dataclass(frozen=True, kw_only=True)
class Header:
    """What grouping needs of one file; `planes` has one entry a frame and is empty where the file has no geometry.

    Identifying fields are kept for grouping alone and never shown.
    """

    path: Path
    patient_id: str = field(repr=False)
    study_uid: str = field(repr=False)
    series_uid: str = field(repr=False)
    instance_uid: str = field(repr=False)
    class_name: str
    modality: str
    image_type: tuple[str, ...]
    samples: int
    is_image: bool
    is_truncated: bool
    frames: int
    planes: tuple[Plane, ...]
    volume_keys: tuple[tuple[str, str], ...]


@contextlib.contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Silence pydicom's remarks on files that are odd but readable."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def looks_like_dicom(path: Path) -> bool:
    """Whether the bytes are DICOM: the preamble, or a data set that starts with a plausible first tag."""
    with open(path, "rb") as file:
        start = file.read(132)
    # Without preamble a data set opens with group 0002 or 0008, element below 0x100, and a type or a short length.
    bare = start[:2] in (b"\x02\x00", b"\x08\x00") and start[3:4] == b"\x00"
    plausible = (start[4:6].isalpha() and start[4:6].isupper()) or int.from_bytes(start[4:8], "little") <= 256
    return start[128:132] == b"DICM" or (len(start) == 132 and bare and plausible)


def read_header(path: Path) -> Header:
    """Read a header without pixels. Raises ScanError when the file is no DICOM or is cut off."""
    try:
        with quiet_pydicom(), open(path, "rb") as file:
            data = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=_TAGS)
            left = os.fstat(file.fileno()).st_size - file.tell()
            return _summarise(path, data, left)
    except Exception as error:  # pydicom raises many kinds on damaged bytes; each means that this file is damaged.
        raise ScanError("is damaged or cut off in its DICOM header", where=path, do="Export the series again") from error


def read_planes(data: Dataset) -> tuple[Plane, ...]:
    """One plane a frame, from the file's own tags (classic) or its functional groups (enhanced); empty where absent."""
    frames = data.get("PerFrameFunctionalGroupsSequence")
    shared = (data.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    if not frames:
        plane = _build_plane(data, data, data, data)
        return (plane,) if plane else ()
    planes = []
    for frame in frames:
        plane = _build_plane(
            _functional_group("PlanePositionSequence", frame, shared),
            _functional_group("PlaneOrientationSequence", frame, shared),
            _functional_group("PixelMeasuresSequence", frame, shared),
            data,
        )
        if plane is None:
            return ()
        planes.append(plane)
    return tuple(planes)


def _functional_group(name: str, frame: Dataset, shared: Dataset) -> Dataset:
    found = frame.get(name) or shared.get(name)
    return found[0] if found else Dataset()


def _build_plane(position: Dataset, orientation: Dataset, measures: Dataset, data: Dataset) -> Plane | None:
    where, axes, spacing = (
        position.get("ImagePositionPatient"),
        orientation.get("ImageOrientationPatient"),
        measures.get("PixelSpacing"),
    )
    if not (where and axes and spacing) or (len(where), len(axes), len(spacing)) != (3, 6, 2):
        return None
    return Plane(
        position=tuple(float(value) for value in where),
        orientation=tuple(float(value) for value in axes),
        pixel_spacing=(float(spacing[0]), float(spacing[1])),
        rows=int(data.Rows),
        columns=int(data.Columns),
    )


def _summarise(path: Path, data: Dataset, left: int) -> Header:
    """`left`: bytes of the file from its pixel data on."""
    if not data.get("SOPClassUID") and not data.get("Modality") and "Rows" not in data:
        raise ScanError("is no DICOM file", where=path)
    is_image = "Rows" in data and "Columns" in data
    needed = _count_pixel_bytes(data) if is_image else 0
    kernel = data.get("ConvolutionKernel")
    keys = (
        ("acquisition", data.get("AcquisitionNumber")),
        ("echo", data.get("EchoNumbers") or data.get("EchoTime")),
        ("cardiac phase", data.get("NominalPercentageOfCardiacPhase")),
        ("time point", data.get("TemporalPositionIdentifier")),
        ("trigger time", data.get("TriggerTime")),
        ("b-value", data.get("DiffusionBValue")),
        ("image type", "/".join(data.get("ImageType") or ())),
        ("kernel", kernel),
        ("acquisition time", data.get("AcquisitionTime")),
        ("folder", path.parent.as_posix()),
    )
    return Header(
        path=path,
        patient_id=str(data.get("PatientID") or ""),
        study_uid=str(data.get("StudyInstanceUID") or ""),
        series_uid=str(data.get("SeriesInstanceUID") or ""),
        instance_uid=str(data.get("SOPInstanceUID") or ""),
        class_name=data.SOPClassUID.name if data.get("SOPClassUID") else "unknown object",
        modality=str(data.get("Modality") or ""),
        image_type=tuple(str(part).upper() for part in data.get("ImageType") or ()),
        samples=int(data.get("SamplesPerPixel") or 1),
        is_image=is_image,
        is_truncated=left < needed,
        frames=int(data.get("NumberOfFrames") or 1),
        planes=read_planes(data) if is_image else (),
        volume_keys=tuple((name, str(value)) for name, value in keys),
    )


def _count_pixel_bytes(data: Dataset) -> int:
    """Bytes that uncompressed pixel data need; -1 where the file is compressed and nothing can be said."""
    syntax = data.file_meta.get("TransferSyntaxUID") if hasattr(data, "file_meta") else None
    if syntax is not None and str(syntax) not in _PLAIN_SYNTAXES:
        return _COMPRESSED_OR_UNKNOWN
    values = int(data.Rows) * int(data.Columns) * int(data.get("NumberOfFrames") or 1) * int(data.get("SamplesPerPixel") or 1)
    return values * int(data.get("BitsAllocated") or 8) // 8
