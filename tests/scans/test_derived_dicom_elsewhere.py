"""Proves that SEG and Parametric Map lie where they should in other programs' hands: pydicom, highdicom, and Slicer's dcmqi.

dcmqi's programs are asked where they are installed (`pip install dcmqi`).
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.uid import generate_uid

from dagman.errors import ScanError
from dagman.scans.affine import LPS_TO_RAS, Affine
from dagman.scans.dicom.derived import write_parametric_map, write_segments
from dagman.scans.reading import read_scan
from dagman.scans.structures.colors import color_structures, split_color

highdicom = pytest.importorskip("highdicom")

_CENTER, _RADIUS = np.array([-14.0, -22.0, 112.0]), 9.0
"""Of a blob, in RAS mm."""


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory, write_dicom) -> Path:
    """An oblique series of 24 x 20 voxels and 9 slices; the files' names are not in the order of the slices."""
    tilt = np.radians(20)
    matrix = np.eye(4)
    matrix[:3, :3] = [[-1, 0, 0], [0, -np.cos(tilt), np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]] * np.array([2.0, 2.5, 4.0])
    matrix[:3, 3] = (10, -5, 90)
    folder = tmp_path_factory.mktemp("derived") / "series"
    named = {"PatientName": "", "PatientBirthDate": "", "PatientSex": "", "ReferringPhysicianName": "", "StudyID": "1"}
    named |= {"StudyDate": "", "StudyTime": "", "AccessionNumber": "", "SeriesNumber": 3, "SliceThickness": 4.0}
    write_dicom(folder, np.zeros((24, 20, 9), np.int16), matrix, FrameOfReferenceUID=generate_uid(), **named)
    return folder


@pytest.fixture(scope="module")
def blob(series: Path) -> np.ndarray:
    """1 plus a bell around the centre, on the grid of the scan."""
    scan = read_scan(series)
    places = scan.affine.to_world(np.stack(np.indices(scan.shape), axis=-1).reshape(-1, 3)).reshape(*scan.shape, 3)
    distance = np.linalg.norm(places - _CENTER, axis=-1)
    return (1 + np.exp(-((distance / _RADIUS) ** 2))).astype(np.float32)


@pytest.fixture(scope="module")
def written(series: Path, blob: np.ndarray) -> dict[str, Path]:
    folder, files = series.parent, tuple(series.iterdir())
    write_parametric_map(
        folder / "map.dcm", blob, files, meaning="attention; 1 = uniform", description="made up", window=(0.0, 2.0)
    )
    write_segments(folder / "seg.dcm", (blob > 1 + np.exp(-1)).astype(np.uint8) * 5, {5: "blob", 7: "none"}, files)
    return {"map": folder / "map.dcm", "seg": folder / "seg.dcm"}


def _place_frames(data: pydicom.Dataset, affine: Affine) -> list[tuple[int, np.ndarray]]:
    """Each frame's slice in the scan, by the frame's own position."""
    placed = []
    for frame, pixels in zip(data.PerFrameFunctionalGroupsSequence, data.pixel_array, strict=True):
        position = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, dtype=float) * (-1, -1, 1)
        x, y, z = affine.to_voxel([position])[0]
        assert (x, y) == (pytest.approx(0, abs=1e-4), pytest.approx(0, abs=1e-4))
        placed.append((round(z), pixels.T))
    return placed


def test_a_map_holds_its_numbers_at_their_place_and_names_its_slices(series, blob, written):
    data, scan = pydicom.dcmread(written["map"]), read_scan(series)
    assert data.SOPClassUID.name == "Parametric Map Storage"
    assert data.pixel_array.dtype == np.float32
    placed = _place_frames(data, scan.affine)
    assert sorted(z for z, _ in placed) == list(range(9))
    for z, pixels in placed:
        np.testing.assert_array_equal(pixels, blob[:, :, z])
    normal = np.cross(
        *np.reshape(data.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3))
    )
    heights = [np.dot(normal, one.PlanePositionSequence[0].ImagePositionPatient) for one in data.PerFrameFunctionalGroupsSequence]
    assert heights == sorted(heights), "as dcmqi takes for granted"
    sources = {str(one.SOPInstanceUID): one for one in map(pydicom.dcmread, series.iterdir())}
    first = next(iter(sources.values()))
    assert (data.FrameOfReferenceUID, data.StudyInstanceUID) == (first.FrameOfReferenceUID, first.StudyInstanceUID)
    assert data.ReferencedSeriesSequence[0].SeriesInstanceUID == first.SeriesInstanceUID
    for frame in data.PerFrameFunctionalGroupsSequence:
        # A viewer lays a frame over the slice that it names.
        named = sources[frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID]
        at = frame.PlanePositionSequence[0].ImagePositionPatient
        assert at == pytest.approx(named.ImagePositionPatient, abs=1e-4)
    mapping = data.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept, mapping.LUTExplanation) == (
        1,
        0,
        "attention; 1 = uniform",
    )
    assert "MRN-4711" not in written["map"].read_bytes().decode("latin-1"), "the patient is a pseudonym"


def test_highdicom_finds_the_top_of_the_blob_where_it_is(written):
    volume = highdicom.imread(written["map"]).get_volume(apply_real_world_transform=True)
    top = np.unravel_index(volume.array.argmax(), volume.array.shape)
    world = (LPS_TO_RAS @ volume.affine @ [*top, 1])[:3]
    assert np.linalg.norm(world - _CENTER) < 3.0, "within a voxel"


def test_a_segment_has_the_colour_that_pages_give_its_structure(written):
    data = pydicom.dcmread(written["seg"])
    for segment, color in zip(data.SegmentSequence, color_structures(2), strict=True):
        shown = highdicom.color.CIELabColor.from_dicom_value(tuple(segment.RecommendedDisplayCIELabValue)).to_rgb()
        assert shown == pytest.approx(split_color(color), abs=2)


def test_other_slices_than_the_series_has_are_refused(series, tmp_path):
    with pytest.raises(ScanError, match="a Parametric Map would have 8 slices, but the series has 9"):
        write_parametric_map(
            tmp_path / "map.dcm", np.ones((24, 20, 8), np.float32), tuple(series.iterdir()),
            meaning="m", description="d", window=(0, 1),
        )  # fmt: skip
    assert not (tmp_path / "map.dcm").exists()


def _convert(program: str, *options: str) -> None:
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"needs {program} (pip install dcmqi)")
    ended = subprocess.run([path, *options], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_dcmqi_reads_the_map_at_its_place(written, tmp_path):
    _convert("paramap2itkimage", "--inputDICOM", str(written["map"]), "--outputDirectory", str(tmp_path), "--outputType", "nrrd")
    (path,) = tmp_path.glob("*.nrrd")
    image = SimpleITK.ReadImage(str(path))
    # Its voxels lie where the image places them, and hold the bell's closed form there.
    values = SimpleITK.GetArrayFromImage(image)
    for index in ((12, 6, 5), (15, 9, 4), (3, 2, 0), (12, 8, 6)):
        point = np.array(image.TransformIndexToPhysicalPoint(index)) * (-1, -1, 1)
        wanted = 1 + np.exp(-((np.linalg.norm(point - _CENTER) / _RADIUS) ** 2))
        assert values[index[::-1]] == pytest.approx(wanted, abs=1e-4)
    assert values.max() > 1.9


def test_dcmqi_reads_the_segment_at_its_place(written, tmp_path):
    _convert("segimage2itkimage", "--inputDICOM", str(written["seg"]), "--outputDirectory", str(tmp_path), "--outputType", "nrrd")
    image = SimpleITK.ReadImage(str(min(tmp_path.glob("*.nrrd"))))
    inside = np.argwhere(SimpleITK.GetArrayFromImage(image) > 0)[:, ::-1]
    middle = np.mean([image.TransformIndexToPhysicalPoint([int(i) for i in voxel]) for voxel in inside], axis=0) * [-1, -1, 1]
    assert np.linalg.norm(middle - _CENTER) < 1.0
    assert len(inside) * 2.0 * 2.5 * 4.0 == pytest.approx(4 / 3 * np.pi * _RADIUS**3, rel=0.05)
