"""The registry of file formats: one entry has everything that finding, reading and estimating need to know about a format.

To add a format, call `register_format(Format(...))`; see docs/guides/own-parts.md.
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

    Its functions raise ScanError if a file is not a volume; any other exception becomes the reason why the file is refused.
    """

    name: str
    "Name printed by `inspect` and written to its CSV."
    title: str
    "Name used in messages, such as NIfTI."
    suffixes: tuple[str, ...]
    "In lower case, with the dot."
    check: Callable[[Path], object]
    "Checks the header of one file quickly, without reading voxels."
    read: Callable[[Series], RawImage]
    "Reads the values and affine of a series."
    measure: Callable[[Series], Measure]
    "Reads shape and spacing (mm) from headers only, for the estimate of costs."
    list_files: Callable[[Path], tuple[Path, ...]] = lambda path: (path,)
    "Lists the file itself, then other files with its voxels: if any of them changes, the scan has changed."
    is_file: bool = True
    "Whether each file is a volume, which is then the first file of its series; otherwise files are grouped by series (DICOM)."


FORMATS: dict[str, Format] = {}
"""All formats by name."""


def register_format(new: Format) -> Format:
    """Add a format; it replaces an existing one of the same name."""
    FORMATS[new.name] = new
    return new


def find_format(path: Path) -> Format | None:
    """Return the format that belongs to a file's suffix, or None."""
    name = path.name.lower()
    return next((known for known in FORMATS.values() if name.endswith(known.suffixes)), None)


def list_titles() -> str:
    """List the titles of all formats, for a message."""
    *others, last = (known.title for known in FORMATS.values())
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
