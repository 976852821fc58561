"""Reads a DICOMDIR, the table of contents of a disc or export (PS3.3, annex F)."""

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
    """Return whether a file is named DICOMDIR, as the standard prescribes, or in lower case, as discs are sometimes mounted."""
    return path.name.upper() == NAME and os.path.isfile(path)


def list_images(path: Path) -> tuple[list[Path], list[tuple[Path, ScanError]]]:
    """List the image files of a DICOMDIR, in its order, and those that are missing or outside its folder, with reasons.

    Raises:
        ScanError: if the DICOMDIR cannot be read.
    """
    remedy = "Give its folder instead: all scans in it are found"
    with explain_faults("is not a DICOMDIR, or is damaged", where=path, do=remedy), warnings.catch_warnings():
        # Values that the standard does not allow are accepted.
        warnings.simplefilter("ignore")
        records = pydicom.dcmread(path, force=False).DirectoryRecordSequence
        image_records = [record for record in records if record.DirectoryRecordType == "IMAGE" and "ReferencedFileID" in record]
        names = [_split(record.ReferencedFileID) for record in image_records]
    images: list[Path] = []
    absent: list[tuple[Path, ScanError]] = []
    for parts in dict.fromkeys(names):
        listed = path.parent.joinpath(*parts)
        if ".." in parts or any("/" in part for part in parts):
            error = ScanError("is listed outside the folder of the DICOMDIR", where=listed, do="Give the folder that contains it")
            absent.append((listed, error))
        elif (file := _find_file(path.parent, parts)) is not None:
            images.append(file)
        else:
            error = ScanError("is listed in the DICOMDIR, but missing", where=listed, do="Copy the disc or export it again")
            absent.append((listed, error))
    return images, absent


def _split(name: str | Iterable[str]) -> tuple[str, ...]:
    """Split a ReferencedFileID into folder and file names: pydicom returns a single one as text."""
    return tuple(map(str, name)) if isinstance(name, MultiValue | list | tuple) else (str(name),)


def _find_file(folder: Path, parts: tuple[str, ...]) -> Path | None:
    """Find a listed file; its name and folders may be in lower case, since discs are mounted or copied like that."""
    path = folder
    for part in parts:
        path = next((candidate for candidate in (path / part, path / part.lower()) if os.path.exists(candidate)), path / part)
    return path if os.path.isfile(path) else None
