"""A small CT, and writers of it in every format, as users bring them."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from dagman.scans.affine import LPS_TO_RAS

DATA = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real scans; the test is skipped where it is absent."""
    if not DATA.is_dir():
        pytest.skip("no real scans here")
    return DATA


@pytest.fixture(scope="session")
def ct() -> np.ndarray:
    """16 x 14 x 9 voxels in HU: air around a body of fat and muscle, every voxel a little different."""
    rng = np.random.default_rng(3)
    voxels = np.full((16, 14, 9), -1000.0)
    voxels[3:13, 3:12, :] = -100
    voxels[5:11, 5:10, 1:8] = 50
    return (voxels + rng.normal(0, 15, voxels.shape)).round().astype(np.int16).clip(-1024, None)


@pytest.fixture(scope="session")
def placement() -> np.ndarray:
    """An affine in RAS+ with three different spacings."""
    matrix = np.diag([0.8, 0.9, 2.5, 1.0])
    matrix[:3, 3] = [-30, 12, 100]
    return matrix


@pytest.fixture(scope="session")
def write_nifti():
    """Write voxels as NIfTI, with an affine; returns the path."""

    def write(path: Path, voxels: np.ndarray, matrix: np.ndarray | None = None) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4) if matrix is None else matrix), path)
        return path

    return write


@pytest.fixture(scope="session")
def write_dicom():
    """Write voxels X Y Z as one DICOM file a slice along Z; returns the paths. `tags` go into every slice."""

    def write(folder: Path, voxels: np.ndarray, matrix: np.ndarray, *, suffix: str = ".dcm", slices=None, **tags) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        lps = LPS_TO_RAS @ matrix
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        series = tags.pop("SeriesInstanceUID", generate_uid())
        start = len(list(folder.iterdir()))
        paths = []
        for index in range(voxels.shape[2]) if slices is None else slices:
            data = build_slice(voxels[:, :, index], series)
            data.ImageOrientationPatient = [float(f"{v:.10g}") for v in (lps[:3, :2] / spacing[:2]).T.ravel()]
            data.ImagePositionPatient = [float(f"{v:.10g}") for v in lps[:3, 3] + index * lps[:3, 2]]
            data.PixelSpacing = [float(f"{spacing[1]:.10g}"), float(f"{spacing[0]:.10g}")]
            for name, value in tags.items():
                setattr(data, name, value)
            # The file order is not the slice order.
            paths.append(folder / f"im{(7 * index + 3) % 1000:04d}_{start}{suffix}")
            data.save_as(paths[-1], enforce_file_format=True)
        return paths

    return write


def build_slice(pixels: np.ndarray, series: str) -> Dataset:
    """A CT slice with an intercept of -1024, pixels X Y in HU."""
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


@pytest.fixture(scope="session")
def mr_tags() -> dict:
    """Tags that turn a written slice into MR without rescaling."""
    return {"SOPClassUID": MRImageStorage, "Modality": "MR"}


@pytest.fixture
def edit_dicom():
    """Change tags of one written file; None deletes."""

    def edit(path: Path, **tags) -> None:
        data = pydicom.dcmread(path)
        for name, value in tags.items():
            if value is None:
                delattr(data, name)
            else:
                setattr(data, name, value)
        data.save_as(path)

    return edit
