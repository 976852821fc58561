"""Writes predicted label maps on the scan's own grid as NIfTI, and as DICOM SEG if the scan was DICOM."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from numpy.typing import NDArray

from dagman.errors import DagmanError, MissingExtraError, ScanError
from dagman.records.files import write_whole
from dagman.scans import dicom, nifti
from dagman.scans.archives import reach_place
from dagman.scans.dicom.derived import names_its_patient, write_segments
from dagman.scans.discovery import find_series
from dagman.scans.formats import DICOM, find_format
from dagman.scans.pseudonyms import name_file
from dagman.scans.scan import Scan


def name_outputs(sources: Sequence[str]) -> list[str]:
    """Return a file name without suffix for each source: its own name, after as many folder names as needed to make it unique.

    >>> name_outputs(["a/ct.nii.gz", "b/ct.nii.gz"])
    ['a_ct', 'b_ct']
    """
    parts = []
    for source in map(Path, sources):
        if dicom.parse_name(source):
            name = re.sub("[#:=,]", "_", source.name)
        else:
            name = source.name if source.is_dir() else name_file(source)
        parts.append([*(part for part in source.parent.parts if part not in ("/", "..", ".")), name])
    for depth in range(1, max(map(len, parts), default=1) + 1):
        names = ["_".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name}_{number}" for number, name in enumerate("_".join(part) for part in parts)]


def write_label_map(path: Path, labels: NDArray, scan: Scan) -> None:
    """Write labels (X Y Z, on the scan's own grid) as NIfTI, atomically.

    For a scan from NIfTI, sform, qform, their codes and units are copied from its header, bit by bit. For other scans, sform and
    qform are the scan's affine, with code 1 (scanner).
    """
    header = _copy_geometry(Path(scan.source), scan.shape)
    if header is None:
        image = nib.Nifti1Image(labels, scan.affine.matrix)
        image.set_sform(scan.affine.matrix, code=1)
        image.set_qform(scan.affine.matrix, code=1)
        image.header.set_xyzt_units("mm", "sec")
    else:
        kind = nib.Nifti2Image if isinstance(header, Nifti2Header) else nib.Nifti1Image
        # affine=None keeps the header's own matrices, to the last bit.
        header.set_data_dtype(labels.dtype)
        image = kind(labels, None, header=header)
    with write_whole(path) as temporary:
        nib.save(image, temporary)


def write_dicom_labels(path: Path, labels: NDArray, names: dict[int, str], source: str | Path, *, identified: bool = False) -> str:
    """Write labels as DICOM SEG if the scan was DICOM.

    Args:
        path: the output file.
        labels: X Y Z, on the scan's own grid.
        names: names of the label values.
        source: the path from which the scan was read. `Scan.source` does not suffice: it may be a folder with other series.
        identified: see `write_segments`.

    Returns:
        A note if the file could not be written, otherwise "".
    """
    try:
        files = find_dicom_files(source)
        if files:
            write_segments(path, labels, names, files, identified=identified)
    except MissingExtraError as error:
        return f"predictions are written as NIfTI only: DICOM SEG {error}"
    except DagmanError as error:
        return f"{path.stem}: no DICOM SEG was written: {error}"
    return ""


def renew_dicom_labels(path: Path, names: dict[int, str], source: str | Path, *, identified: bool = False) -> str:
    """Rewrite a DICOM SEG from the NIfTI next to it if it identifies the patient and should not, or the other way round.

    Returns:
        A note if that failed, otherwise "".
    """
    try:
        if not path.is_file() or names_its_patient(path) == identified:
            return ""
        labels = nifti.read_nifti(path.with_suffix(".nii.gz")).values
    except DagmanError as error:
        return f"{path.stem}: the DICOM SEG was not written again: {error}"
    return write_dicom_labels(path, labels, names, source, identified=identified)


def describe_identity(folder: Path, *, identified: bool) -> str:
    """Return a note on whether the DICOM SEGs in a folder identify patients; "" if there are none."""
    if not any(folder.glob("*.dcm")):
        return ""
    if identified:
        return "DICOM SEG: identified, as requested (--identified): the files contain the patient's and the study's identifiers"
    return "DICOM SEG: not identified: they contain a pseudonym, no free text, and the UIDs that link them to their series"


def find_dicom_files(source: str | Path) -> tuple[Path, ...]:
    """Return the files that `read_scan` reads for this path if they are DICOM, otherwise ().

    Raises:
        ScanError: if the folder contains several series, so that it is not clear which one is meant.
    """
    source = Path(source)
    if not dicom.source_exists(source) or ((known := find_format(source)) is not None and known.is_file):
        return ()
    series = find_series(source).series
    if len(series) > 1:
        raise ScanError(f"holds {len(series)} series", where=source, do="Give the name of one of them")
    return series[0].files if series and series[0].kind == DICOM.name else ()


def _copy_geometry(source: Path, shape: tuple[int, ...]) -> Nifti1Header | None:
    if not source.name.lower().endswith(nifti.SUFFIXES) or not (source := reach_place(source)).exists():
        return None
    old = nifti.read_header(source)
    if old.get_data_shape()[:3] != shape:
        # The scan was sheared by a tilted gantry, so it was resampled to an orthogonal grid with a different shape.
        return None
    header = (Nifti2Header if isinstance(old, Nifti2Header) else Nifti1Header)()
    for name in ("xyzt_units", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z"):
        header[name] = old[name]
    for name in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"):
        header[name] = old[name]
    header.set_data_shape(old.get_data_shape()[:3])
    header["pixdim"][:4] = np.asarray(old["pixdim"])[:4]
    return header
