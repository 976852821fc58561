"""The file formats that dagman reads: one entry holds all that finding, reading, estimating and predicting must know of one.

A further format is one `register_format(Format(...))`; see docs/guides/own-parts.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dagman.scans import dicom, itk, nifti
from dagman.scans.dicom import headers as dicom_headers
from dagman.scans.scan import RawImage

if TYPE_CHECKING:
    from dagman.scans.discovery import Series

Measure = tuple[Sequence[int], Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Format:
    """One file format.

    Every function raises ScanError where a file cannot be a volume; what else it raises is that file's reason too. The first
    file of a series is the volume where `is_file` says that each file is one.
    """

    name: str
    "As printed by `inspect`, and kept in its CSV."
    title: str
    "As written in messages: NIfTI."
    suffixes: tuple[str, ...]
    "In lower case, with the dot."
    check: Callable[[Path], object]
    "Judges the header of one file, quickly and without its voxels."
    read: Callable[[Series], RawImage]
    "Values and affine of a series."
    measure: Callable[[Series], Measure]
    "Shape and spacing (mm) by headers alone, for the estimate of cost."
    list_files: Callable[[Path], tuple[Path, ...]] = lambda path: (path,)
    "The file itself first, then others that hold its voxels: a change of any of them is a change of the scan."
    is_file: bool = True
    "Each file is a volume; otherwise the files of a folder are grouped (DICOM)."


FORMATS: dict[str, Format] = {}
"""By name."""


def register_format(new: Format) -> Format:
    """Add a format, or put another in the place of one of the same name."""
    FORMATS[new.name] = new
    return new


def find_format(path: Path) -> Format | None:
    """The format that a file's name stands for; None where it names none."""
    name = path.name.lower()
    return next((one for one in FORMATS.values() if name.endswith(one.suffixes)), None)


def list_titles() -> str:
    """The titles of the formats, for a message."""
    *others, last = (one.title for one in FORMATS.values())
    return f"{', '.join(others)} or {last}"


register_format(
    Format(
        name="nifti",
        title="NIfTI",
        suffixes=nifti.SUFFIXES,
        check=nifti.check_nifti,
        read=lambda series: nifti.read_nifti(series.files[0]),
        measure=lambda series: nifti.measure_nifti(series.files[0]),
    )
)
register_format(
    Format(
        name="itk",
        title="NRRD, MetaImage",
        suffixes=itk.SUFFIXES,
        check=itk.check_itk,
        list_files=itk.list_files,
        read=lambda series: itk.read_itk(series.files[0]),
        measure=lambda series: itk.measure_itk(series.files[0]),
    )
)
DICOM = register_format(
    Format(
        name="dicom",
        title="DICOM",
        suffixes=dicom_headers.SUFFIXES,
        check=dicom_headers.read_header,
        read=lambda series: dicom.read_volume(
            series.files, source=series.source, tilted=series.tilt == "resample", widest_gap=series.widest_gap
        ),
        measure=lambda series: dicom.measure_volume(series.files),
        is_file=False,
    )
)
