"""The 30 real odd cases of `dicom-quirks`: each does what its table's `expect` says. Skipped where the data are absent."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pydicom
import pytest

from dagman.errors import ScanError
from dagman.scans.dicom.geometry import stack_planes
from dagman.scans.dicom.headers import read_header
from dagman.scans.dicom.pixels import decode_frames
from dagman.scans.discovery import find_series
from dagman.scans.reading import read_scan, read_series
from dagman.scans.scan import hash_scan, reorient_scan


@pytest.fixture
def quirks(data):
    return data / "dicom-quirks"


def decode(folder):
    (path,) = folder.iterdir()
    return decode_frames(pydicom.dcmread(path)).values


@pytest.mark.parametrize("name", ["compressed", "compressed_j2k", "compressed_jpeg", "compressed_jpegls", "compressed_rle"])
def test_every_compression_gives_the_voxels_of_the_truth(quirks, name):
    scan, truth = (reorient_scan(read_scan(path)) for path in (quirks / name, quirks / "truth" / "compressed.nii.gz"))
    assert scan.modality == "MR"
    assert np.array_equal(scan.voxels, truth.voxels)
    assert scan.affine.is_close(truth.affine)
    assert hash_scan(scan) == hash_scan(truth)


@pytest.mark.parametrize("name", ["two-slices", "enhanced-mr-philips"])
def test_a_thin_volume_and_a_multi_frame_file_equal_their_truth(quirks, name):
    scan, truth = reorient_scan(read_scan(quirks / name)), reorient_scan(read_scan(quirks / "truth" / f"{name}.nii.gz"))
    assert scan.voxels == pytest.approx(truth.voxels, abs=1e-3)
    assert scan.affine.is_close(truth.affine)


def test_an_enhanced_ct_of_a_blood_flow_map_is_read_but_not_called_ct(quirks):
    scan = read_scan(quirks / "enhanced-ct")
    assert scan.shape == (512, 512, 2)
    assert scan.modality == "other"


@pytest.mark.parametrize("kind", ["rle", "j2k", "jpeg-ls"])
def test_multi_frame_pixels_are_equal_in_every_encoding(quirks, kind):
    truth = decode(quirks / "enhanced-mr-small-raw")
    assert truth.shape == (10, 64, 64)
    assert np.array_equal(decode(quirks / f"enhanced-mr-small-{kind}"), truth)
    (refusal,) = find_series(quirks / f"enhanced-mr-small-{kind}").refused
    assert "has no position in the patient" in refusal.reason


@pytest.mark.parametrize("kind", ["rle", "j2k", "jpegls", "bigendian", "implicit", "raw"])
def test_single_slices_decode_alike_and_are_refused_as_volumes(quirks, kind):
    assert np.array_equal(decode(quirks / f"single-mr-{kind}"), decode(quirks / "single-mr-raw"))
    with pytest.raises(ScanError, match="is one slice"):
        read_scan(quirks / f"single-mr-{kind}")


@pytest.mark.parametrize(
    ("name", "low", "high"), [("single-ct", -1024, 1200), ("single-ct-j2k", -1024, 2500), ("ct-j2k-pixelrep", -2000, 3100)]
)
def test_single_ct_slices_decode_to_hu(quirks, name, low, high):
    values = decode(quirks / name)
    assert low <= values.min() < -500
    assert 200 < values.max() <= high
    # Wrapped values would leave nothing near water.
    assert np.mean((values > -200) & (values < 200)) > 0.1


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("missing-slice-5mm", ["slices are 5 mm apart, but 10 mm after slice 3", "1 slice is missing"]),
        ("missing-slice", ["tilted by 15.5 degrees", "0.7497 mm apart, but 1.499 mm after slice 3", "1 slice is missing"]),
        ("unequal-spacing-tilt", ["tilted by 18.5 degrees", "4.002 mm apart, but 1.081 mm after slice 4"]),
        ("same-position", ["2 slices lie at 1 position "]),
        ("truncated", ["MR_truncated.dcm", "pixel data are cut short"]),
        ("mixed-planes", ["contains no usable series; 3 refused, the first: is one slice"]),
    ],
)
def test_what_is_no_volume_is_refused_by_name(quirks, name, texts):
    with pytest.raises(ScanError) as caught:
        read_scan(quirks / name, tilt="refuse", widest_gap=0)
    for text in texts:
        assert text in str(caught.value)


def test_a_tilted_gantry_keeps_each_pixel_at_its_place_in_the_patient(quirks):
    scan = read_scan(quirks / "gantry-tilt")
    assert any("tilted by 14.0 degrees" in note for note in scan.notes)
    files = find_series(quirks / "gantry-tilt").series[0].files
    stack = stack_planes([read_header(path).planes[0] for path in files], tilted=True)
    for place, index in enumerate(stack.order):
        pixels = decode_frames(pydicom.dcmread(files[index])).values[0].T.clip(-1024)
        corner = scan.affine.to_voxel(stack.affine.to_world([[0, 0, place]]))[0]
        # Along rows nothing moved; along columns by a part of a voxel, which linear interpolation says again.
        assert corner[[0, 2]] == pytest.approx([round(corner[0]), place], abs=1e-3)
        row, share = int(np.floor(corner[1])), corner[1] % 1
        below, above = (scan.voxels[:, row + i : row + i + pixels.shape[1] - 4, place].astype(float) for i in (2, 3))
        # The pixels are noise, of which interpolation keeps little; a row beside them has nothing in common with them.
        assert np.corrcoef((below * (1 - share) + above * share).ravel(), pixels[:, 2:-2].ravel())[0, 1] > 0.85


def test_mixed_orientations_are_split(quirks):
    scans = [read_series(series) for series in find_series(quirks / "mixed-orientation").series]
    assert sorted(scan.shape for scan in scans) == [(288, 288, 2), (288, 288, 2)]
    assert {scan.affine.axis_codes for scan in scans} == {"PIR", "LPS"}


def test_two_series_a_localizer_and_a_capture_in_one_folder_are_told_apart(quirks):
    found = find_series(quirks / "multi-series")
    assert [len(series.files) for series in found.series] == [4, 4]
    assert [refusal.reason.split(",")[0].split(" (")[0] for refusal in found.refused] == ["localizer", "secondary capture"]
    straight, tilted = found.series
    assert read_series(straight).spacing[2] == pytest.approx(5)
    with pytest.raises(ScanError, match=r"tilted by 18\.5 degrees"):
        read_series(replace(tilted, tilt="refuse"))
    scan = read_series(tilted)
    assert scan.affine.skew < 0.1
    assert scan.notes[-1] == "the gantry was tilted by 18.5 degrees; its slices were resampled to an orthogonal grid"


def test_every_folder_is_named_in_a_test_above(quirks):
    assert len([folder for folder in quirks.iterdir() if folder.is_dir() and folder.name != "truth"]) == 30


def test_a_chest_ct_is_the_crop_of_the_same_patient(data):
    scan = read_scan(data / "chest-dicom" / "LIDC-IDRI-0314")
    assert scan.shape == (512, 512, 55)
    assert scan.spacing == pytest.approx((0.78125, 0.78125, 5))
    # The nodule's crop was cut from all slices of this scan: voxels at the same place in the patient are equal.
    crop = read_scan(data / "lidc-nodules" / "scans" / "LIDC-IDRI-0314_R_1.nii.gz")
    indices = np.moveaxis(np.indices(crop.shape), 0, -1).reshape(-1, 3)
    there = scan.affine.to_voxel(crop.affine.to_world(indices))
    on_slice = np.abs(there[:, 2] - np.rint(there[:, 2])) < 0.05
    assert on_slice.sum() > 1000
    x, y, z = np.rint(there[on_slice]).astype(int).T
    here = tuple(indices[on_slice].T)
    assert np.array_equal(scan.voxels[x, y, z], crop.voxels[here])
