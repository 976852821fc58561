"""Write a CT series as DICOM files, one per slice."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dagman.scans.affine import LPS_TO_RAS


def write_dicom_series(
    folder: Path,
    voxels: np.ndarray,
    matrix: np.ndarray,
    *,
    suffix: str = ".dcm",
    slices: Iterable[int] | None = None,
    **tags: Any,
) -> list[Path]:
    """Write a CT as DICOM files, one per slice along the third axis; returns the paths.

    The order of the file names differs from that of the slices, as in real exports. Existing files in the folder are kept.

    Args:
        folder: Output folder, created if it is missing.
        voxels: HU of -1024 or more, of shape X Y Z.
        matrix: 4 x 4 matrix from voxels to RAS in mm; the third column must be perpendicular to the slices.
        suffix: Suffix of the file names; may be empty.
        slices: Indices of the slices to write. Default: all.
        tags: Values by DICOM keyword, which override the defaults (a chest CT of patient MRN-4711) in every slice.
    """
    from pydicom.uid import generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    lps = LPS_TO_RAS @ matrix
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    series = tags.pop("SeriesInstanceUID", None) or generate_uid()
    start = len(list(folder.iterdir()))
    paths = []
    for index in range(voxels.shape[2]) if slices is None else slices:
        data = _build_slice(voxels[:, :, index], series)
        data.ImageOrientationPatient = [float(f"{v:.10g}") for v in (lps[:3, :2] / spacing[:2]).T.ravel()]
        data.ImagePositionPatient = [float(f"{v:.10g}") for v in lps[:3, 3] + index * lps[:3, 2]]
        data.PixelSpacing = [float(f"{spacing[1]:.10g}"), float(f"{spacing[0]:.10g}")]
        for name, value in tags.items():
            setattr(data, name, value)
        paths.append(folder / f"im{(7 * index + 3) % 1000:04d}_{start}{suffix}")
        data.save_as(paths[-1], enforce_file_format=True)
    return paths


def _build_slice(pixels: np.ndarray, series: str) -> Any:
    """Build a CT slice with a rescale intercept of -1024 from pixels in HU, of shape X Y."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID = "1.2.3", series
    data.PatientID, data.PatientName, data.Modality = "MRN-4711", "Doe^Jane", "CT"
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.Columns, data.Rows = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    data.PixelData = (pixels.T.astype(np.int32) + 1024).astype(np.uint16).tobytes()
    return data
