"""Reads NRRD and MetaImage files as values and an affine: header and data are checked before SimpleITK reads them.

SimpleITK turns a negative spacing into a flip, fills damaged compressed data with zeros, and returns uninitialised memory if a
header states a wrong size. The checks here prevent all of this.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dagman.errors import ScanError
from dagman.scans.affine import LPS_TO_RAS, Affine
from dagman.scans.faults import explain_faults
from dagman.scans.inflating import GZIP, GZIP_OR_ZLIB, check_length, find_smallest_error, inflate
from dagman.scans.itk.child import ItkImage, UnreadableError, count_bytes, read_with_itk
from dagman.scans.itk.header import Header, read_header
from dagman.scans.scan import RawImage

SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")

_CONVERT_AGAIN = "Convert the scan again, or exclude it"
_DAMAGED = "is truncated or damaged, or its data file is missing"
_MOST_SKIPPED = 1 << 20


def check_itk(path: Path) -> None:
    """Raise ScanError if the header shows that the file is not a volume; voxels are not read."""
    with explain_faults(_DAMAGED, where=path, do=_CONVERT_AGAIN):
        read_header(path)


def measure_itk(path: Path) -> tuple[Sequence[int], Sequence[float]]:
    """Read shape and spacing (mm) from the header only."""
    header = read_header(path)
    return header.sizes, header.spacing


def read_itk(path: Path) -> RawImage:
    """Read values (X Y Z) and the affine, converted from ITK's LPS to RAS mm."""
    with explain_faults(_DAMAGED, where=path, do=_CONVERT_AGAIN):
        header = read_header(path)
        image = _read_image(path, header)
        stored = image.voxels
        assert stored is not None
        direction = np.array(image.direction).reshape(len(image.size), -1)[:3, :3]
        matrix = np.eye(4)
        matrix[:3, :3] = direction * np.array(image.spacing)[:3]
        matrix[:3, 3] = image.origin[:3]
        values: NDArray = stored.T
        unoriented = "the file does not state the patient's orientation; its axes were assumed to be L P S"
        notes = () if header.states_orientation else (unoriented,)
        return RawImage(values.reshape(values.shape[:3], order="F"), Affine(LPS_TO_RAS @ matrix), notes)


def _read_image(path: Path, header: Header) -> ItkImage:
    try:
        stated = read_with_itk(path, voxels=False)
        _check_volume(stated)
        claimed = count_bytes(stated)
        checksum = _check_data(path, header, stated, claimed)
        image = read_with_itk(path, voxels=True, claimed=claimed)
    except UnreadableError as error:
        if "determinant is 0" in str(error):
            raise ScanError("its axes are not linearly independent", do="Correct the header") from error
        raise ScanError(_DAMAGED, do=_CONVERT_AGAIN) from error
    if checksum is not None and image.voxels is not None:
        orders = (image.voxels, image.voxels.byteswap())
        if checksum not in (zlib.crc32(order.data.cast("B")) for order in orders):
            raise ScanError(_DAMAGED, do=_CONVERT_AGAIN)
    return image


def _check_volume(image: ItkImage) -> None:
    size = image.size
    while len(size) > 3 and size[-1] == 1:
        size = size[:-1]
    shown = " x ".join(map(str, size))
    if "complex" in image.pixel:
        raise ScanError("holds complex numbers", do="Give the magnitude image")
    if image.components > 1:
        what = f"holds {image.components} values per voxel (colours or vectors)"
        raise ScanError(what, do="Give an image with one value per voxel")
    if len(size) > 3:
        raise ScanError(f"has {len(size)} axes ({shown})", do="Give one 3D volume per file")
    if len(size) < 3:
        raise ScanError(f"is one slice ({shown})", do="Give a volume of at least 2 slices")


def _check_data(path: Path, header: Header, image: ItkImage, claimed: int) -> int | None:
    """Check the data, since SimpleITK reads damaged compressed data as zeros, and data of the wrong length scrambled.

    Returns:
        For compressed voxels their checksum, to be compared with what SimpleITK reads; otherwise None.
    """
    name = header.data_file
    if "%" in name:
        # A pattern for several files, which SimpleITK passes to printf unchecked: it may crash the process, or be an exploit.
        raise ScanError("names its data files by a pattern (%)", do="Convert the scan to a single file")
    if name.upper().startswith("LIST") or not (header.is_raw or header.is_compressed):
        return None
    # The header was decoded byte by byte (latin-1), but file names are in the encoding of the system.
    is_local = name.upper() == "LOCAL"
    data = path if is_local else path.parent / os.fsdecode(name.encode("latin-1"))
    try:
        with open(data, "rb") as file:
            file.seek(header.end if is_local else 0)
            for _ in range(header.find_number("line skip", "lineskip")):
                file.readline(_MOST_SKIPPED)
            skipped = header.find_number("byte skip", "byteskip", "headersize")
            smallest = find_smallest_error(image.size, max(1, claimed // max(1, int(np.prod(image.size)))))
            if header.is_compressed:
                wrapper = GZIP if header.format == "NRRD" else GZIP_OR_ZLIB
                unpacked = inflate(file, claimed + max(skipped, 0), wrapper=wrapper)[max(skipped, 0) :]
                check_length(len(unpacked), claimed, unpacked[claimed:], smallest, complete=False)
                return zlib.crc32(unpacked[:claimed].data)
            held = os.fstat(file.fileno()).st_size - file.tell() - max(skipped, 0)
            if skipped < 0:
                # The data are the last bytes of the file, whatever precedes them.
                held = min(held, claimed)
            file.seek(max(skipped, 0) + min(claimed, max(held, 0)), os.SEEK_CUR)
            check_length(held, claimed, np.frombuffer(file.read(512), np.uint8), smallest)
    except (OSError, ValueError) as error:  # ValueError: a null byte in a name, or an invalid number.
        raise ScanError(_DAMAGED, do=_CONVERT_AGAIN) from error
    return None
