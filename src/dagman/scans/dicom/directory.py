"""DICOMDIR, the table of contents of a disc or an export: which files it lists (PS3.3, annex F)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import pydicom
from pydicom.multival import MultiValue

from dagman.errors import ScanError
from dagman.scans.faults import explain_faults

NAME = "DICOMDIR"


def is_directory_file(path: Path) -> bool:
    """Whether a path is a table of contents by its name, which the standard prescribes; discs are mounted in small letters, too."""
    return path.name.upper() == NAME and os.path.isfile(path)


def list_images(path: Path) -> tuple[list[Path], list[tuple[Path, ScanError]]]:
    """The files of images that a DICOMDIR lists, in its order, and those that are missing or do not lie beside it, with the reason.

    Raises ScanError where it cannot be read.
    """
    mend = "Give its folder: all scans below it are found"
    with explain_faults("is not a DICOMDIR, or is damaged", where=path, do=mend), warnings.catch_warnings():
        # Values that the standard does not allow are read as they stand.
        warnings.simplefilter("ignore")
        records = pydicom.dcmread(path, force=False).DirectoryRecordSequence
        names = [
            _split(one.ReferencedFileID) for one in records if one.DirectoryRecordType == "IMAGE" and "ReferencedFileID" in one
        ]
    images: list[Path] = []
    absent: list[tuple[Path, ScanError]] = []
    for parts in dict.fromkeys(names):
        place = path.parent.joinpath(*parts)
        if ".." in parts or any("/" in part for part in parts):
            error = ScanError("is listed outside the folder of the DICOMDIR", where=place, do="Give the folder that holds it")
            absent.append((place, error))
        elif (file := _find_file(path.parent, parts)) is not None:
            images.append(file)
        else:
            absent.append(
                (place, ScanError("is listed in the DICOMDIR, but missing", where=place, do="Copy the disc or export it again"))
            )
    return images, absent


def _split(name: str | Iterable[str]) -> tuple[str, ...]:
    """The parts of a file's name: one part is a text, several are a list."""
    return tuple(map(str, name)) if isinstance(name, MultiValue | list | tuple) else (str(name),)


def _find_file(folder: Path, parts: tuple[str, ...]) -> Path | None:
    """The file; a folder or a name may be in small letters, as discs are mounted and copied."""
    place = folder
    for part in parts:
        place = next((one for one in (place / part, place / part.lower()) if os.path.exists(one)), place / part)
    return place if os.path.isfile(place) else None
