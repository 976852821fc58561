"""Parses and checks the header of an NRRD or MetaImage file before SimpleITK reads it.

For lines, dimensions and sizes that no scan has, SimpleITK's readers crash the process or return arbitrary values.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dagman.errors import ScanError

Number = TypeVar("Number", int, float)

_MOST_BYTES = 1 << 20
_LONGEST_LINE = 16_384
_MOST_AXES = 8
_MOST_VALUES = 1 << 40
"""About a cube with a side of 10,000 voxels."""
_HEADER_END = {
    "NRRD": re.compile(rb"\r?\n[ \t]*\r?\n"),
    "MetaImage": re.compile(rb"^[ \t]*ElementDataFile[ \t]*[=:][^\n]*(?:\n|\Z)", re.MULTILINE),
}
_META_KEYS = ("NDims", "DimSize", "ElementType", "ElementDataFile")
_SPACE_DIRECTION = re.compile(r"\(([^)]*)\)|none")
_VOLUME_KINDS = ("list", "time")
"""Kinds of an axis along which whole volumes are stored, at any position among the axes."""
_REMEDY = "Correct the header, or convert the scan again"


@dataclass(frozen=True, kw_only=True)
class Header:
    """The fields of a header."""

    format: str
    '"NRRD" or "MetaImage".'
    fields: dict[str, str]
    "By name, in lower case."
    end: int
    "Offset at which data in the same file begin."

    @property
    def data_file(self) -> str:
        """Name of the data file as written in the header; LOCAL means the same file."""
        return self.fields.get("elementdatafile") or self.fields.get("data file") or self.fields.get("datafile") or "LOCAL"

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of voxels along each axis, the fastest first; in NRRD, one may be an axis of components."""
        return _read_numbers(self.fields.get("sizes" if self.format == "NRRD" else "dimsize", ""), int)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distances between voxels (mm) as stated; empty if not stated."""
        if directions := self.fields.get("space directions"):
            vectors = [
                _read_numbers(match[1].replace(",", " "), float) for match in _SPACE_DIRECTION.finditer(directions) if match[1]
            ]
            return tuple(math.hypot(*vector) for vector in vectors)
        names = ("spacings",) if self.format == "NRRD" else ("elementspacing", "elementsize")
        return _read_numbers(next((self.fields[name] for name in names if name in self.fields), ""), float)

    @property
    def is_compressed(self) -> bool:
        """Whether the voxels are compressed with gzip (NRRD) or zlib (MetaImage)."""
        if self.format == "NRRD":
            return self.fields.get("encoding", "").lower() in ("gz", "gzip")
        return self.fields.get("compresseddata", "").lower() == "true"

    @property
    def is_raw(self) -> bool:
        """Whether the voxels are stored uncompressed, in binary."""
        if self.format == "NRRD":
            return self.fields.get("encoding", "").lower() == "raw"
        return not self.is_compressed and self.fields.get("binarydata", "true").lower() != "false"

    @property
    def states_orientation(self) -> bool:
        """Whether the header states the patient's orientation."""
        if self.format == "NRRD":
            return re.match(r"left|right|LPS|RAS|LAS", self.fields.get("space", ""), re.IGNORECASE) is not None
        return any(name in self.fields for name in ("transformmatrix", "rotation", "orientation"))

    def find_number(self, *names: str) -> int:
        """Return the whole number in the first of these fields that exists, or 0; raises ValueError if it is not a number."""
        return int(next((self.fields[name] for name in names if name in self.fields), "0"))


def read_header(path: Path) -> Header:
    """Read and check a header.

    Raises:
        ScanError: if the file has no such header, or it has lines, dimensions, sizes or a spacing that no scan has.
    """
    kind = "NRRD" if path.suffix.lower() in (".nrrd", ".nhdr") else "MetaImage"
    try:
        with open(path, "rb") as file:
            start = file.read(_MOST_BYTES)
    except OSError as error:
        raise ScanError("cannot be read", where=path, do="Check the path and its permissions") from error
    if not start:
        raise ScanError("is empty", where=path, do="Copy or convert the scan again")
    header = _parse_header(start, kind, path)
    _check_axes(header, path)
    _check_sequence(header, path)
    _check_spacing(header, path)
    return header


def _parse_header(start: bytes, kind: str, path: Path) -> Header:
    match = _HEADER_END[kind].search(start)
    detached = len(start) < _MOST_BYTES and path.suffix.lower() == ".nhdr"
    if kind == "NRRD" and not start.startswith(b"NRRD00"):
        raise _refuse(kind, "it does not begin with NRRD00", path)
    if match is None and not detached:
        raise _refuse(kind, "it has no end" if kind == "NRRD" else "it lacks ElementDataFile", path)
    end = match.end() if match else len(start)
    fields: dict[str, str] = {}
    # Decoded as latin-1, which accepts any bytes; only file names may be in another encoding.
    for number, line in enumerate(start[:end].decode("latin-1").splitlines(), start=1):
        # Comments and custom keys (":=") may be long.
        if len(line) > _LONGEST_LINE and not (kind == "NRRD" and (line.startswith("#") or ":=" in line)):
            raise _refuse(kind, f"line {number} has {len(line)} characters", path)
        field = re.match(r"\s*([^:=#][^:=]*?)\s*(?::=|[:=])\s*(.*?)\s*$", line)
        if field:
            fields.setdefault(field[1].lower(), field[2])
    return Header(format=kind, fields=fields, end=end)


def _check_axes(header: Header, path: Path) -> None:
    missing = [name for name in _META_KEYS if not header.fields.get(name.lower())]
    if header.format == "NRRD":
        missing = [name for name in ("dimension", "type", "encoding", "sizes") if not header.fields.get(name)]
    elif header.is_compressed and header.data_file.upper() == "LOCAL" and header.fields.get("compresseddatasize", "0") == "0":
        # Without it, SimpleITK returns uninitialised memory or crashes.
        missing.append("CompressedDataSize")
    if missing:
        raise _refuse(header.format, f"it lacks {', '.join(missing)}", path)
    name = "dimension" if header.format == "NRRD" else "NDims"
    try:
        axes, sizes = int(header.fields[name.lower()]), header.sizes
        components = header.find_number("elementnumberofchannels")
    except ValueError as error:
        raise _refuse(header.format, "its dimensions or sizes are not whole numbers", path) from error
    if not 1 <= axes <= _MOST_AXES:
        raise _refuse(header.format, f"{name} is {axes}", path)
    if len(sizes) != axes or min(sizes) < 1 or not 0 <= components <= 1024 or math.prod(sizes) > _MOST_VALUES:
        raise _refuse(header.format, f"its sizes are {' x '.join(map(str, sizes[:_MOST_AXES]))}, its {name} {axes}", path)


def _check_sequence(header: Header, path: Path) -> None:
    """Refuse an NRRD of several volumes: a sequence, or a segmentation with overlapping structures (3D Slicer)."""
    kinds = header.fields.get("kinds", "").lower().split() if header.format == "NRRD" else []
    count = math.prod(size for size, kind in zip(header.sizes, kinds, strict=False) if kind in _VOLUME_KINDS)
    if count < 2:
        return
    # Programs other than 3D Slicer omit its segment fields, but use the same file names.
    if path.name.lower().endswith(".seg.nrrd") or any(name.startswith("segment0_") for name in header.fields):
        do = "Export it from 3D Slicer as DICOM SEG, or each structure as a separate label map"
        raise ScanError(f"is a segmentation of {count} layers, since its structures overlap", where=path, do=do)
    named = next(kind for kind in kinds if kind in _VOLUME_KINDS)
    do = "Save each volume as a separate file (3D Slicer: choose its time in Sequences, then save the volume)"
    raise ScanError(f"is a sequence of {count} volumes (it has an axis of kind '{named}')", where=path, do=do)


def _check_spacing(header: Header, path: Path) -> None:
    try:
        spacing = header.spacing
    except ValueError as error:
        stated = next(header.fields[name] for name in _SPACING_FIELDS if name in header.fields)
        raise ScanError(f"the spacing is {stated[:60]!r}, not numbers", where=path, do="Correct the header") from error
    if not spacing:
        # SimpleITK would silently assume 1 mm.
        raise ScanError("does not state its spacing", where=path, do="Correct the header, or convert the scan again")
    # Negative numbers are possible only in space directions, from which lengths are computed.
    if "space directions" not in header.fields and not all(math.isfinite(number) and number > 0 for number in spacing):
        shown = " x ".join(f"{number:.4g}" for number in spacing)
        raise ScanError(f"the spacing is {shown} mm; it must be above 0 on every axis", where=path, do="Correct the header")


_SPACING_FIELDS = ("space directions", "spacings", "elementspacing", "elementsize")


def _refuse(kind: str, why: str, path: Path) -> ScanError:
    article = "an NRRD" if kind == "NRRD" else "a MetaImage"
    return ScanError(f"is not {article} file, or its header is damaged: {why}", where=path, do=_REMEDY)


def _read_numbers(text: str, kind: Callable[[str], Number]) -> tuple[Number, ...]:
    return tuple(kind(word) for word in text.split())
