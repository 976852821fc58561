"""Reads NIfTI files (.nii, .nii.gz), with geometry and scaling as in nibabel.

The header is read without nibabel's repairs, which silently change a spacing of zero. A .nii.gz is decompressed only as far as its
header claims; its checksum is verified, and so is its length.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import math
import os
import struct
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.volumeutils import apply_read_scaling
from numpy.typing import NDArray

from dagman.errors import ScanError
from dagman.scans.affine import Affine, show_apart
from dagman.scans.faults import explain_faults
from dagman.scans.inflating import GZIP, check_length, find_smallest_error, inflate
from dagman.scans.scan import RawImage

SUFFIXES = (".nii", ".nii.gz")

_CONVERT_AGAIN = "Convert the scan again, or exclude it"
_DAMAGED = "is truncated or damaged"
_MM_PER_UNIT = {1: 1000.0, 3: 0.001}
"""Factors for metres and microns by unit code; all other codes, including unknown ones, are treated as mm."""


def check_nifti(path: Path) -> None:
    """Raise ScanError if the header shows that the file is not a volume; voxels are not read."""
    read_header(path)


def read_nifti(path: Path) -> RawImage:
    """Read the scaled values (X Y Z, the file's own axis order) and the affine to RAS mm.

    The sform has priority over the qform; without either, the axes are interpreted as in nibabel, which is noted.
    """
    header = read_header(path, one_slice=True)
    with explain_faults(_DAMAGED, where=path, do=_CONVERT_AGAIN), _quiet_nibabel():
        # With the repairs that nibabel makes on loading, such as of invalid form codes.
        checked = type(header)(header.binaryblock, header.endianness, check=True)
        values = apply_read_scaling(_read_stored(path, header), *_read_scaling(checked))
        matrix = np.array(checked.get_best_affine(), dtype=np.float64)
    matrix[:3] *= _MM_PER_UNIT.get(int(header["xyzt_units"]) % 8, 1.0)
    # Drops trailing axes of length 1; NIfTI stores X fastest, which is order F in numpy.
    return RawImage(values.reshape(values.shape[:3], order="F"), _build_affine(matrix, path), _note_placement(header))


def measure_nifti(path: Path) -> tuple[Sequence[int], Sequence[float]]:
    """Read the shape and spacing (mm) from the header only."""
    header = read_header(path)
    return header.get_data_shape(), header.get_zooms()


@contextlib.contextmanager
def _quiet_nibabel() -> Iterator[None]:
    """Silence nibabel's warnings about headers that are unusual but readable."""
    # nibabel's LoggingOutputSuppressor removes the handler, but then Python's handler of last resort prints the messages.
    logger = logging.getLogger("nibabel.global")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def read_header(path: Path, *, one_slice: bool = False) -> Nifti1Header:
    """Read the header without nibabel's repairs, which silently change a spacing of zero.

    Args:
        path: the file.
        one_slice: accept three axes of which one has length 1.

    Raises:
        ScanError: if the file is not a volume.
    """
    with (
        explain_faults("is not a NIfTI file", where=path, do="Copy or convert the scan again"),
        _open(path) as file,
        _quiet_nibabel(),
    ):
        start = file.read(540)
        kind = Nifti2Header if _names_nifti2(start) else Nifti1Header
        size = kind.sizeof_hdr
        if len(start) < size:
            raise ScanError("is empty or cut off in its header", where=path, do="Copy or convert the scan again")
        header = kind(start[:size], check=False)
        magic = bytes(header["magic"].tobytes())[:2]
        if magic == b"n+":
            # Each of these raises on invalid numbers: better here than while voxels are read.
            _ = header.get_data_dtype(), header.get_slope_inter(), header.get_data_shape(), header.get_data_offset()
    if magic != b"n+":
        raise ScanError("is not a NIfTI file, despite its name", where=path, do="Exclude it, or correct its suffix")
    if header.get_data_offset() < size:
        # nibabel would accept an offset of 0 and read the header's own bytes as the first voxels.
        what = f"its voxels would begin at byte {header.get_data_offset()}, within the header"
        raise ScanError(what, where=path, do="Correct the header (vox_offset), or convert the scan again")
    _check_shape(header, path, one_slice)
    _check_spacing(header, path)
    return header


def _names_nifti2(start: bytes) -> bool:
    return len(start) >= 4 and 540 in struct.unpack("<i", start[:4]) + struct.unpack(">i", start[:4])


def _check_shape(header: Nifti1Header, path: Path, one_slice: bool) -> None:
    shape = tuple(int(n) for n in header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    shown = " x ".join(map(str, shape))
    kind = header.get_data_dtype()
    if kind.fields is not None:
        raise ScanError("holds RGB colours, not one value per voxel", where=path, do="Give the scan itself, not a rendering")
    if kind.kind == "c":
        raise ScanError("holds complex numbers", where=path, do="Give the magnitude image")
    if len(shape) > 3:
        raise ScanError(f"has {len(shape)} axes ({shown})", where=path, do="Give one 3D volume per file")
    if len(shape) < 3 or (min(shape) == 1 and not one_slice):
        raise ScanError(f"is one slice ({shown})", where=path, do="Give a volume of at least 2 slices")
    if min(shape) < 1:
        raise ScanError(f"holds no voxels ({shown})", where=path, do=_CONVERT_AGAIN)


def _check_spacing(header: Nifti1Header, path: Path) -> None:
    spacing = np.array(header["pixdim"][1:4], dtype=np.float64)
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        shown = " x ".join(f"{value:.4g}" for value in spacing)
        what = f"the spacing is {shown} mm; it must be above 0 on every axis"
        raise ScanError(what, where=path, do="Correct the header (pixdim)")


def _read_stored(path: Path, header: Nifti1Header) -> NDArray:
    """Read the stored values (X Y Z, order F); raises ScanError if the file does not hold exactly as many as its header claims."""
    shape, kind, offset = header.get_data_shape(), header.get_data_dtype(), int(header.get_data_offset())
    claimed = math.prod(map(int, shape)) * kind.itemsize
    with open(path, "rb") as file:
        length = os.fstat(file.fileno()).st_size
        if _is_packed(path):
            held = inflate(file, offset + claimed, wrapper=GZIP)
            # A longer file was not decompressed to its end, where gzip stores its length.
            file.seek(-4, os.SEEK_END)
            length = len(held) if len(held) <= offset + claimed else max(len(held), *struct.unpack("<I", file.read(4)))
            stored, rest = held[offset : offset + claimed], held[offset + claimed :]
        else:
            file.seek(min(offset, length))
            stored = np.fromfile(file, np.uint8, min(claimed, max(length - offset, 0)))
            rest = np.frombuffer(file.read(512), np.uint8)
    check_length(length - offset, claimed, rest, find_smallest_error(shape, kind.itemsize))
    return stored.view(kind).reshape(shape, order="F")


def _read_scaling(header: Nifti1Header) -> tuple[float, float]:
    slope, inter = header.get_slope_inter()
    return 1.0 if slope is None else slope, 0.0 if inter is None else inter


def _is_packed(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if _is_packed(path) else open(path, "rb")  # type: ignore[return-value]


def _build_affine(matrix: NDArray[np.float64], path: Path) -> Affine:
    try:
        return Affine(matrix)
    except ScanError as error:
        raise ScanError(error.what, where=path, do=error.do) from error


def _note_placement(header: Nifti1Header) -> tuple[str, ...]:
    """Note a header without sform and qform, or whose sform, qform and pixdim contradict each other."""
    has_sform, has_qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    if not has_sform and not has_qform:
        return ("the file does not state the patient's orientation (no sform, no qform); its axes were assumed to be L A S",)
    if not has_sform:
        return ()
    sform = np.array(header.get_sform(), dtype=np.float64)
    spacing, stated = np.linalg.norm(sform[:3, :3], axis=0), np.array(header["pixdim"][1:4], dtype=np.float64)
    if not np.allclose(spacing, stated, rtol=1e-3, atol=0):
        first, second = show_apart(spacing, stated, " x ")
        return (f"the sform's spacing is {first}, pixdim's is {second}; the sform was used",)
    try:
        qform = np.array(header.get_qform(), dtype=np.float64) if has_qform else sform
    except Exception as error:  # nibabel raises several kinds for quaternions that are not a rotation.
        return (f"the qform is not a rotation ({type(error).__name__}); the sform was used",)
    corners = np.column_stack([np.array(list(np.ndindex(2, 2, 2))) * (np.array(header.get_data_shape()[:3]) - 1), np.ones(8)])
    distance_mm = float(np.linalg.norm(corners @ (sform - qform).T, axis=1).max())
    if not distance_mm > 0.1 * spacing.min():
        return ()
    first, second = show_apart(sform[:3].ravel(), qform[:3].ravel(), " ")
    return (f"sform ({first}) and qform ({second}) place voxels up to {distance_mm:.3g} mm apart; the sform was used",)
