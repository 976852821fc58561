"""NRRD (.nrrd, .nhdr with its data file) and MetaImage (.mha, .mhd with its data file), read by SimpleITK.

SimpleITK turns a negative spacing into a flip, fills damaged compressed data with zeros, and gives what the memory held before
where a header names the wrong size; all are looked for here.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import zlib
from pathlib import Path

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from dagman.errors import ScanError
from dagman.scans.affine import LPS_TO_RAS, Affine
from dagman.scans.scan import RawImage

SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")

_CONVERT_AGAIN = "Convert the scan again, or leave it out"
_DAMAGED = "is truncated or damaged, or its data file is missing"
_SPACING = re.compile(r"^\s*(?:ElementSpacing\s*=|ElementSize\s*=|spacings:)\s*(.+)$", re.MULTILINE)
_SPACE_DIRECTIONS = re.compile(r"^space directions:", re.MULTILINE)
_DATA_FILE = re.compile(r"^\s*(?:ElementDataFile\s*=|data ?file:)\s*(.+?)\s*$", re.MULTILINE | re.IGNORECASE)
_NRRD_GZIP = re.compile(r"^\s*encoding:\s*(?:gz|gzip)\s*$", re.MULTILINE)
_META_ZLIB = re.compile(r"^\s*CompressedData\s*=\s*True\s*$", re.MULTILINE | re.IGNORECASE)
_LOCAL = re.compile(r"^\s*ElementDataFile\s*=\s*LOCAL", re.MULTILINE | re.IGNORECASE)
_PACKED_SIZE = re.compile(r"^\s*CompressedDataSize\s*=\s*[1-9]", re.MULTILINE)
_RAW = re.compile(r"^\s*(?:encoding:\s*raw\s*$|ElementDataFile\s*=)", re.MULTILINE | re.IGNORECASE)
_DIRECTIONS = re.compile(
    r"^\s*(?:TransformMatrix|Rotation|Orientation)\s*=|^space:\s*(?:left|right|LPS|RAS|LAS)", re.MULTILINE | re.I
)
_HEADER_END = re.compile(rb"^ElementDataFile\s*=[^\n]*\n?|\r?\n\r?\n", re.MULTILINE)
_META_KEYS = ("NDims", "DimSize", "ElementType", "ElementDataFile")
_HEADER_BYTES = 64 * 1024


def check_itk(path: Path) -> None:
    """Read the header alone and raise ScanError when the file cannot be a volume."""
    _checked_reader(path)


def read_itk(path: Path) -> RawImage:
    """Values X Y Z and the affine, turned from ITK's LPS to RAS mm."""
    reader = _checked_reader(path)
    checksum = _check_data(path, reader)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        if "determinant is 0" in str(error):
            raise ScanError("two of its axes point the same way, or one nowhere", where=path, do="Mend the header") from error
        raise ScanError(_DAMAGED, where=path, do=_CONVERT_AGAIN) from error
    stored = SimpleITK.GetArrayFromImage(image)
    if checksum is not None and checksum not in (zlib.crc32(order.data.cast("B")) for order in (stored, stored.byteswap())):
        raise ScanError(_DAMAGED, where=path, do=_CONVERT_AGAIN)
    values = stored.T
    direction = np.array(image.GetDirection()).reshape(image.GetDimension(), -1)[:3, :3]
    matrix = np.eye(4)
    matrix[:3, :3] = direction * np.array(image.GetSpacing())[:3]
    matrix[:3, 3] = image.GetOrigin()[:3]
    try:
        affine = Affine(LPS_TO_RAS @ matrix)
    except ScanError as error:
        raise ScanError(error.what, where=path, do=error.do) from error
    return RawImage(_squeeze(values), affine, _judge_placement(path))


def _squeeze(values: NDArray) -> NDArray:
    return values.reshape(values.shape[:3], order="F")


def _checked_reader(path: Path) -> SimpleITK.ImageFileReader:
    _check_spacing(path)
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    kind = "NRRD" if path.suffix.lower() in (".nrrd", ".nhdr") else "MetaImage"
    try:
        if kind == "MetaImage" and (missing := _find_missing(path)):
            raise RuntimeError(f"the header lacks {missing}")
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ScanError(f"is no {kind} file, or damaged in its header", where=path, do=_CONVERT_AGAIN) from error
    size = reader.GetSize()
    while len(size) > 3 and size[-1] == 1:
        size = size[:-1]
    found = " x ".join(map(str, size))
    if "complex" in SimpleITK.GetPixelIDValueAsString(reader.GetPixelID()):
        raise ScanError("holds complex numbers", where=path, do="Give the magnitude image")
    if reader.GetNumberOfComponents() > 1:
        count = reader.GetNumberOfComponents()
        raise ScanError(f"holds {count} values a voxel (colours or vectors)", where=path, do="Give an image of one value a voxel")
    if len(size) > 3:
        raise ScanError(f"has {len(size)} axes ({found})", where=path, do="Give one 3D volume a file")
    if len(size) < 3 or min(size) == 1:
        raise ScanError(f"is one slice ({found})", where=path, do="Give a volume of at least 2 slices")
    header, _ = _read_header(path)
    if not (_SPACING.search(header) or _SPACE_DIRECTIONS.search(header)):
        # SimpleITK would take 1 mm in silence.
        raise ScanError("says nothing of its spacing", where=path, do="Mend the header, or convert the scan again")
    return reader


def _find_missing(path: Path) -> list[str]:
    """Keys without which SimpleITK refuses a MetaImage with five lines on stderr."""
    header, _ = _read_header(path)
    missing = [key for key in _META_KEYS if not re.search(rf"^\s*{key}\s*=\s*\S", header, re.MULTILINE)]
    if _META_ZLIB.search(header) and _LOCAL.search(header) and not _PACKED_SIZE.search(header):
        # Without it SimpleITK reads what the memory held before, or ends the process.
        missing.append("CompressedDataSize")
    return missing


def _check_spacing(path: Path) -> None:
    try:
        header, _ = _read_header(path)
    except OSError as error:
        raise ScanError("cannot be read", where=path, do="Check the path and its permissions") from error
    if not header:
        raise ScanError("is empty", where=path, do="Copy or convert the scan again")
    if match := _SPACING.search(header):
        words = match.group(1).split()
        try:
            numbers = [float(word) for word in words]
        except ValueError as error:
            raise ScanError(f"the spacing is {match.group(1)[:60]!r}, not numbers", where=path, do="Mend the header") from error
        if not all(np.isfinite(number) and number > 0 for number in numbers):
            raise ScanError(
                f"the spacing is {' x '.join(words)} mm; every axis needs more than 0", where=path, do="Mend the header"
            )


def _read_header(path: Path) -> tuple[str, int]:
    """The header's text, and where data in the same file would begin."""
    with open(path, "rb") as file:
        start = file.read(_HEADER_BYTES)
    match = _HEADER_END.search(start)
    end = match.end() if match else len(start)
    return start[:end].decode("latin-1"), end


def _check_data(path: Path, reader: SimpleITK.ImageFileReader) -> int | None:
    """Look at the data before SimpleITK does: it reads damaged compressed data as zeros, and complains of short raw data aloud.

    The checksum of the voxels where they are compressed, for what SimpleITK makes of them; else None.
    """
    header, start = _read_header(path)
    match = _DATA_FILE.search(header)
    name = match.group(1) if match else "LOCAL"
    if "%" in name:
        # A pattern for several files, which SimpleITK gives to printf as it is: it may end the process, or do as the file says.
        raise ScanError("names its data files by a pattern (%)", where=path, do="Convert the scan to one file")
    if name.upper().startswith("LIST"):
        return None
    unpack = zlib.decompress if _META_ZLIB.search(header) else gzip.decompress if _NRRD_GZIP.search(header) else None
    # The header was read byte by byte; a file's name is in the system's encoding.
    data, start = (path, start) if name.upper() == "LOCAL" else (path.parent / os.fsdecode(name.encode("latin-1")), 0)
    try:
        needed = _count_bytes(reader)
        if unpack is not None:
            unpacked = unpack(data.read_bytes()[start:])
            # The last bytes: NRRD may skip some at the beginning.
            return zlib.crc32(memoryview(unpacked)[-needed:])
        if _RAW.search(header) and data.stat().st_size - start < needed:
            raise ScanError(_DAMAGED, where=path, do=_CONVERT_AGAIN)
    except (OSError, EOFError, zlib.error, ValueError) as error:  # ValueError: a name with a null byte.
        raise ScanError(_DAMAGED, where=path, do=_CONVERT_AGAIN) from error
    return None


def _count_bytes(reader: SimpleITK.ImageFileReader) -> int:
    voxel = SimpleITK.Image([1, 1, 1], reader.GetPixelID())
    return math.prod(reader.GetSize()) * int(voxel.GetSizeOfPixelComponent())


def _judge_placement(path: Path) -> tuple[str, ...]:
    header, _ = _read_header(path)
    if _DIRECTIONS.search(header):
        return ()
    return ("the file does not say how the patient lies; its axes were taken as L P S",)
