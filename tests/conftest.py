"""What every test gets: no connection, one thread a process, plain output, repeatable examples, the shared scans if any."""

from __future__ import annotations

import os
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path

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
def write_ct_series() -> Callable[..., None]:
    """A function that writes HU X Y Z as a CT series: a file a slice, named as told, upright at 5 mm unless told otherwise."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    def write(
        folder: Path,
        hu: np.ndarray,
        names: Sequence[str],
        *,
        spacing: tuple[float, float, float] = (5.0, 5.0, 5.0),
        axes: np.ndarray | None = None,
        origin: Sequence[float] = (0.0, 0.0, 0.0),
    ) -> None:
        # axes: rows are the patient directions (LPS) of x, y and z.
        row, column, normal = np.eye(3) if axes is None else axes
        folder.mkdir(parents=True, exist_ok=True)
        study, series, frame = generate_uid(), generate_uid(), generate_uid()
        for number, name in zip(range(hu.shape[2]), names, strict=True):
            meta = FileMetaDataset()
            meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
            meta.TransferSyntaxUID = ExplicitVRLittleEndian
            data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
            data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
            data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study, series, frame
            data.PatientID, data.PatientName, data.PatientBirthDate, data.PatientSex = "P7", "", "", ""
            data.StudyID, data.StudyDate, data.StudyTime, data.AccessionNumber, data.ReferringPhysicianName = "1", "", "", "", ""
            data.Modality, data.SeriesNumber, data.InstanceNumber, data.Manufacturer = "CT", 3, number + 1, "none"
            data.ImageType, data.PositionReferenceIndicator = ["ORIGINAL", "PRIMARY", "AXIAL"], ""
            data.ImageOrientationPatient = [*row, *column]
            data.ImagePositionPatient = list(np.asarray(origin) + spacing[2] * number * normal)
            data.PixelSpacing, data.SliceThickness = [spacing[1], spacing[0]], spacing[2]
            data.Columns, data.Rows = hu.shape[:2]
            data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
            data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
            data.RescaleSlope, data.RescaleIntercept = 1, -1024
            data.PixelData = (hu[:, :, number].T.astype(np.int32) + 1024).astype(np.uint16).tobytes()
            data.save_as(folder / name, enforce_file_format=True)

    return write
