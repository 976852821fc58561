"""What every test gets: no connection, one thread a process, plain output, repeatable examples, the shared scans if any."""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from jaxtyping import install_import_hook

_TESTS = Path(__file__).parent
_SHARED_DATA = _TESTS.parents[1] / "shared" / "data"

# Before any library counts the cores: two workers with two threads each would only wait for one another.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "BLOSC_NTHREADS"):
    os.environ[_variable] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["NO_COLOR"] = "1"
# A key of the tests' own, the same for all, so that none is made in the user's home.
os.environ["DAGMAN_KEY"] = str(_TESTS / "pseudonyms.key")
# Rich takes any of these for a terminal and puts colour codes into what a test compares.
for _variable in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS"):
    os.environ.pop(_variable, None)

# For this process, and by PYTHONPATH for those it starts.
runpy.run_path(str(_TESTS / "offline" / "sitecustomize.py"))
os.environ["PYTHONPATH"] = os.pathsep.join([str(_TESTS / "offline"), *filter(None, [os.environ.get("PYTHONPATH")])])

# Axes in signatures are checked in tests, and cost nothing outside. Here, not by pytest's option, whose parser cannot take
# a checker with settings: an int must do for a float, as type checkers have it.
_CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
install_import_hook(["dagman.model", "dagman.method"], _CHECKER)

hypothesis.settings.register_profile(
    "dagman",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=30,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("dagman")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real scans beside the checkout; read only."""
    if not _SHARED_DATA.is_dir():
        pytest.skip("needs ../shared/data beside the checkout")
    return _SHARED_DATA


@pytest.fixture(scope="session")
def write_dicom():
    """Write voxels X Y Z as one DICOM file a slice along Z; returns the paths. `tags` go into every slice."""

    from pydicom.uid import generate_uid

    from dagman.scans.affine import LPS_TO_RAS

    def write(folder: Path, voxels: np.ndarray, matrix: np.ndarray, *, suffix: str = ".dcm", slices=None, **tags) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        lps = LPS_TO_RAS @ matrix
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        series = tags.pop("SeriesInstanceUID", generate_uid())
        start = len(list(folder.iterdir()))
        paths = []
        for index in range(voxels.shape[2]) if slices is None else slices:
            data = _build_slice(voxels[:, :, index], series)
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


def _build_slice(pixels: np.ndarray, series: str) -> Any:
    """A CT slice with an intercept of -1024, pixels X Y in HU."""
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
