"""Reads the header of a DICOM file, without its pixels, as the few values that grouping and geometry need."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import pydicom
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import UID

from dagman.errors import ScanError
from dagman.scans.dicom.geometry import Plane
from dagman.scans.dicom.plain.header_values import QUICK_BYTES, read_plain_values
from dagman.scans.dicom.values import read_count, read_items, read_numbers, read_text, read_texts
from dagman.scans.faults import explain_faults
from dagman.scans.pseudonyms import name_patient

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
_DAMAGED, _EXPORT_AGAIN = "is damaged or cut off in its DICOM header", "Export the series again"
_META_BYTES, _META_START = 4096, 144
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_MOST_DEFLATED, _MOST_DEFLATED_RATIO = 64 << 20, 20
"""Limits on a deflated data set, in bytes and as compression ratio: a slice of 512 x 512 takes 0.5 MiB, an enhanced file more."""
_COMPRESSED_OR_UNKNOWN = -1
_PLAIN_SYNTAXES = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")


@dataclass(frozen=True, kw_only=True)
class Header:
    """The values of one file that grouping needs; identifying ones are used only for grouping and never shown."""

    path: Path
    patient_id: str = field(repr=False)
    patient: str = field(repr=False)
    "Pseudonym of the patient, or of the study if there is no PatientID."
    names_patient: bool
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
    "One per frame; empty if the file has no geometry."
    volume_keys: tuple[tuple[str, str], ...]
    "Names and values of the tags that may distinguish volumes of a series."


@contextlib.contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Silence the warnings and log messages of pydicom and highdicom about files that are unusual but readable."""
    # Setting a level clears the caches of all loggers, so only the outermost of several nested calls per file does it.
    loggers = [logger for logger in map(logging.getLogger, ("pydicom", "highdicom")) if logger.level != logging.ERROR]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def resembles_dicom(path: Path) -> bool:
    """Return whether a file has the preamble of DICOM, or begins with a plausible first element."""
    with open(path, "rb") as file:
        start = file.read(132)
    # Without a preamble, a data set begins with group 0002 or 0008, an element below 0x100, and a type or a small length.
    bare = start[:2] in (b"\x02\x00", b"\x08\x00") and start[3:4] == b"\x00"
    plausible = (start[4:6].isalpha() and start[4:6].isupper()) or int.from_bytes(start[4:8], "little") <= 256
    return start[128:132] == b"DICM" or (len(start) == 132 and bare and plausible)


def read_header(path: Path) -> Header:
    """Read a header without pixels.

    Raises:
        ScanError: if the file is not DICOM, or ends within its header.
    """
    with explain_faults(_DAMAGED, where=path, do=_EXPORT_AGAIN), open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if (quick := read_plain_values(file.read(QUICK_BYTES), size)) is not None:
            return _summarise(path, cast(Dataset, quick), quick.left)
        file.seek(0)
        data = read_data_set(file, stop_before_pixels=True, specific_tags=_TAGS)
        left = os.fstat(file.fileno()).st_size - file.tell()
        with quiet_pydicom():
            return _summarise(path, data, left)


def read_data_set(file: BinaryIO, **options: Any) -> FileDataset:
    """Read the data set of an open file with pydicom, without warnings.

    Args:
        file: the open file.
        options: passed to `pydicom.dcmread`.

    Raises:
        ScanError: if the data set is deflated as a whole and larger than any image, since pydicom would inflate it without limit.
    """
    file.seek(0)
    start = file.read(_META_BYTES)
    if _DEFLATED in start and start[128:132] == b"DICM":
        file.seek(_META_START + int.from_bytes(start[140:144], "little"))
        packed = file.read()
        most = max(_MOST_DEFLATED, _MOST_DEFLATED_RATIO * len(packed))
        if len(zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, most + 1)) > most:
            raise ScanError(f"decompresses to more than {most >> 20} MiB from {len(packed) >> 10} KiB", do="Exclude it")
    file.seek(0)
    with quiet_pydicom():
        return pydicom.dcmread(file, force=True, **options)


def read_planes(data: Dataset) -> tuple[Plane, ...]:
    """Read one plane per frame, from the tags of a classic file or the functional groups of an enhanced one; () if absent.

    Raises:
        ScanError: if a position, direction, spacing or size is not a number.
    """
    frames = read_items(data, "PerFrameFunctionalGroupsSequence")
    shared = (read_items(data, "SharedFunctionalGroupsSequence") or [Dataset()])[0]
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
    items = read_items(frame, name) or read_items(shared, name)
    return items[0] if items else Dataset()


def _build_plane(position: Dataset, orientation: Dataset, measures: Dataset, data: Dataset) -> Plane | None:
    origin = read_numbers(position, "ImagePositionPatient")
    axes = read_numbers(orientation, "ImageOrientationPatient")
    spacing = read_numbers(measures, "PixelSpacing")
    if (len(origin), len(axes), len(spacing)) != (3, 6, 2):
        return None
    if not all(map(math.isfinite, (*origin, *axes, *spacing))):
        raise ScanError("position, orientation or pixel spacing is not a number", do="Correct the header, or exclude the series")
    return Plane(
        position=origin,
        orientation=axes,
        pixel_spacing=(spacing[0], spacing[1]),
        rows=read_count(data, "Rows", 0),
        columns=read_count(data, "Columns", 0),
    )


def _summarise(path: Path, data: Dataset, left: int) -> Header:
    """Collect the values of a header; `left` is the number of bytes from the pixel data to the end of the file."""
    class_uid = read_text(data, "SOPClassUID")
    if not class_uid and not read_text(data, "Modality") and "Rows" not in data:
        raise ScanError("is not a DICOM file", where=path, do="Exclude it, or correct its suffix")
    is_image = "Rows" in data and "Columns" in data
    needed = _count_pixel_bytes(data) if is_image else 0
    patient_id, study_uid = read_text(data, "PatientID"), read_text(data, "StudyInstanceUID")
    keys = (
        ("acquisition", read_text(data, "AcquisitionNumber")),
        ("echo", read_text(data, "EchoNumbers") or read_text(data, "EchoTime")),
        ("cardiac phase", read_text(data, "NominalPercentageOfCardiacPhase")),
        ("time point", read_text(data, "TemporalPositionIdentifier")),
        ("trigger time", read_text(data, "TriggerTime")),
        ("b-value", read_text(data, "DiffusionBValue")),
        ("image type", "/".join(read_texts(data, "ImageType"))),
        ("kernel", read_text(data, "ConvolutionKernel")),
        ("acquisition time", read_text(data, "AcquisitionTime")),
        ("folder", path.parent.as_posix()),
    )
    return Header(
        path=path,
        patient_id=patient_id,
        patient=name_patient(patient_id.strip() or study_uid),
        names_patient=bool(patient_id.strip()),
        study_uid=study_uid,
        series_uid=read_text(data, "SeriesInstanceUID"),
        instance_uid=read_text(data, "SOPInstanceUID"),
        class_name=UID(class_uid).name if class_uid else "unknown object",
        modality=read_text(data, "Modality"),
        image_type=tuple(part.upper() for part in read_texts(data, "ImageType")),
        samples=read_count(data, "SamplesPerPixel", 1),
        is_image=is_image,
        is_truncated=left < needed,
        frames=read_count(data, "NumberOfFrames", 1),
        planes=read_planes(data) if is_image else (),
        volume_keys=keys,
    )


def _count_pixel_bytes(data: Dataset) -> int:
    """Return the number of bytes of uncompressed pixel data; -1 if the file is compressed, so that the number is unknown."""
    if not is_uncompressed(data):
        return _COMPRESSED_OR_UNKNOWN
    values = read_count(data, "Rows", 0) * read_count(data, "Columns", 0) * read_count(data, "NumberOfFrames", 1)
    return values * read_count(data, "SamplesPerPixel", 1) * read_count(data, "BitsAllocated", 8) // 8


def is_uncompressed(data: Dataset) -> bool:
    """Return whether pixels are stored uncompressed; this is assumed if the file does not state it."""
    syntax = read_text(getattr(data, "file_meta", Dataset()), "TransferSyntaxUID")
    return syntax in ("", *_PLAIN_SYNTAXES)
