"""A series and its NIfTI by the real dcm2niix are one scan: voxels and world positions, on all shared DICOM. Skipped without it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from dagman.scans.dicom.pixels import decode_frames
from dagman.scans.discovery import find_series
from dagman.scans.reading import read_scan, read_series
from dagman.scans.scan import Scan, hash_scan, reorient_scan

PROGRAM = getattr(pytest.importorskip("dcm2niix"), "bin", None) or shutil.which("dcm2niix")
STRAIGHT = {
    "chest-dicom/LIDC-IDRI-0314": 1,
    "dicom-quirks/compressed": 1,
    "dicom-quirks/compressed_j2k": 1,
    "dicom-quirks/compressed_jpeg": 1,
    "dicom-quirks/compressed_jpegls": 1,
    "dicom-quirks/compressed_rle": 1,
    "dicom-quirks/enhanced-ct": 1,
    "dicom-quirks/enhanced-mr-philips": 1,
    "dicom-quirks/mixed-orientation": 2,
    "dicom-quirks/multi-series": 2,
    "dicom-quirks/two-slices": 1,
}
"""Volumes that dagman finds in each folder, all of which have one of dcm2niix."""
LEFT_OUT = {
    "ct-j2k-pixelrep": "is one slice",
    "single-ct": "is one slice",
    "single-ct-j2k": "is one slice",
    "single-mr-bigendian": "is one slice",
    "single-mr-implicit": "is one slice",
    "single-mr-j2k": "is one slice",
    "single-mr-jpegls": "is one slice",
    "single-mr-raw": "is one slice",
    "single-mr-rle": "is one slice",
    "mixed-planes": "is one slice",
    "enhanced-mr-small-j2k": "has no position in the patient",
    "enhanced-mr-small-jpeg-ls": "has no position in the patient",
    "enhanced-mr-small-raw": "has no position in the patient",
    "enhanced-mr-small-rle": "has no position in the patient",
}
"""Folders of no volume, whose pixels are compared all the same."""
SEPARATE = {"gantry-tilt", "missing-slice", "missing-slice-5mm", "same-position", "truncated", "unequal-spacing-tilt"}
"""Each has a test of its own below."""


def convert(folder: Path, out: Path) -> list[Path]:
    """The files that dcm2niix makes of a folder; the values are those shown, not Philips' own floating point ones."""
    out.mkdir()
    command = [PROGRAM, "-b", "n", "-z", "n", "-p", "n", "-f", "%j_%s", "-o", str(out), str(folder)]
    subprocess.run(command, capture_output=True, check=False, timeout=600)
    return sorted(out.glob("*.nii"))


def read_converted(path: Path, modality: str) -> Scan:
    (series,) = find_series(path, modality=modality).series
    return reorient_scan(read_series(series))


def show_frames(folder: Path) -> np.ndarray:
    """Every frame of a folder as dagman decodes it, rows x columns, in an order that does not depend on names or directions."""
    frames = [frame for path in folder.rglob("*") if path.is_file() for frame in decode_frames(pydicom.dcmread(path)).values]
    return np.stack(sorted(frames, key=lambda frame: frame.astype(np.float64).sum()))


def show_converted(paths: list[Path]) -> np.ndarray:
    volumes = [np.asanyarray(nibabel.load(path).dataobj) for path in paths]
    frames = [np.moveaxis(volume.reshape(*volume.shape[:2], -1), -1, 0) for volume in volumes]
    # A NIfTI counts columns first, and rows from below.
    return np.stack(sorted((one.T[::-1] for part in frames for one in part), key=lambda frame: frame.astype(np.float64).sum()))


def test_every_shared_folder_is_compared(data):
    folders = {path.name for path in (data / "dicom-quirks").iterdir() if path.is_dir()} - {"truth"}
    assert folders == {Path(name).name for name in STRAIGHT if name.startswith("dicom-quirks")} | set(LEFT_OUT) | SEPARATE


@pytest.mark.parametrize("name", STRAIGHT)
def test_a_series_and_its_nifti_are_one_scan(data, tmp_path, name):
    ours = [reorient_scan(read_series(series)) for series in find_series(data / name).series]
    assert len(ours) == STRAIGHT[name]
    made = convert(data / name, tmp_path / "made")
    for scan in ours:
        if any("tilted" in note for note in scan.notes):
            made_straight = [path for path in made if "_Tilt_" in path.name]
            agree_but_for_edges(scan, read_converted(made_straight[0], scan.modality))
            continue
        theirs = [
            read_converted(path, scan.modality) for path in made if nibabel.load(path).shape[-1] > 1 and "Tilt" not in path.name
        ]
        (same,) = [one for one in theirs if one.shape == scan.shape and one.affine.is_close(scan.affine)]
        if scan.voxels.dtype == np.int16:
            assert hash_scan(scan) == hash_scan(same)
        # dcm2niix keeps slope and intercept in float32.
        assert np.allclose(scan.voxels, same.voxels, rtol=1e-6, atol=1e-4 if scan.voxels.dtype == np.float32 else 0)


def agree_but_for_edges(scan: Scan, theirs: Scan) -> None:
    """Half a voxel beyond the outermost row dagman gives that row's value, dcm2niix none."""
    assert scan.affine.is_close(theirs.affine)
    differ = scan.voxels != theirs.voxels.clip(-1024)
    at_edge = (scan.voxels == -1024) | (theirs.voxels <= -1024)
    assert np.abs(scan.voxels - theirs.voxels.astype(np.int32))[~at_edge].max() <= 1, "rounded otherwise at most"
    assert differ.mean() < 0.002


def test_a_tilted_gantry_is_straightened_to_the_same_voxels(data, tmp_path):
    scan = reorient_scan(read_scan(data / "dicom-quirks" / "gantry-tilt"))
    (straight,) = [path for path in convert(data / "dicom-quirks" / "gantry-tilt", tmp_path / "made") if "_Tilt_" in path.name]
    theirs = read_converted(straight, "CT")
    assert scan.shape == theirs.shape
    assert scan.affine.is_close(theirs.affine)
    agree_but_for_edges(scan, theirs)


def test_a_missing_slice_is_put_where_dcm2niix_puts_it(data, tmp_path):
    scan = reorient_scan(read_scan(data / "dicom-quirks" / "missing-slice"))
    (even,) = [path for path in convert(data / "dicom-quirks" / "missing-slice", tmp_path / "made") if "_Eq_" in path.name]
    theirs = read_converted(even, "CT")
    assert scan.affine.is_close(theirs.affine)
    measured = [0, 1, 2, 4]
    differ = scan.voxels[:, :, measured] != theirs.voxels[:, :, measured].clip(-1024)
    edge = (scan.voxels[:, :, measured] == -1024) | (theirs.voxels[:, :, measured] <= -1024)
    assert not (differ & ~edge).any()
    # The fourth is interpolated: by dagman along the table, by dcm2niix across the slices. Both lie between their neighbours.
    low, high = (side(scan.voxels[:, 4:-4, [2, 4]], axis=2) for side in (np.minimum.reduce, np.maximum.reduce))
    assert np.mean((scan.voxels[:, 4:-4, 3] >= low - 60) & (scan.voxels[:, 4:-4, 3] <= high + 60)) > 0.9


def test_a_wide_gap_is_refused_and_bridged_on_demand_with_the_same_slices(data, tmp_path):
    folder = data / "dicom-quirks" / "missing-slice-5mm"
    scan = reorient_scan(read_scan(folder, widest_gap=10))
    (plain,) = [path for path in convert(folder, tmp_path / "made") if "_Eq_" not in path.name]
    theirs = read_converted(plain, "CT")
    assert np.array_equal(scan.voxels[:, :, [0, 1, 2, 4]], theirs.voxels.clip(-1024))
    assert scan.affine.is_close(theirs.affine)


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_no_volume_has_the_same_pixels_and_is_refused_as_both(data, tmp_path, name):
    folder = data / "dicom-quirks" / name
    found = find_series(folder)
    assert not found.series
    assert all(LEFT_OUT[name] in refusal.reason for refusal in found.refused)
    made = convert(folder, tmp_path / "made")
    ours, theirs = show_frames(folder), show_converted(made)
    if name == "ct-j2k-pixelrep":
        # Its 13 bits are signed, which dcm2niix does not see: dagman's HU are right, dcm2niix's are wrapped.
        theirs = theirs - 8192 * (theirs.astype(np.int32) - ours > 4096)
    # Without a place in the patient dcm2niix keeps the file's own order of rows.
    assert np.array_equal(ours, theirs[:, ::-1] if "no position" in LEFT_OUT[name] else theirs)
    if LEFT_OUT[name] == "is one slice":
        for path in made:
            assert "is one slice" in find_series(path).refused[0].reason


@pytest.mark.parametrize("name", ["same-position", "unequal-spacing-tilt"])
def test_what_is_refused_for_its_places_has_the_same_pixels(data, tmp_path, name):
    folder = data / "dicom-quirks" / name
    made = [path for path in convert(folder, tmp_path / "made") if "_Tilt_" not in path.name]
    assert np.array_equal(show_frames(folder).clip(-1024), show_converted(made).clip(-1024))


def test_what_is_cut_short_is_converted_by_neither(data, tmp_path):
    assert convert(data / "dicom-quirks" / "truncated", tmp_path / "made") == []
    assert not find_series(data / "dicom-quirks" / "truncated").series
