"""DICOM series written by the test: equal to their NIfTI in every orientation, told apart, and refused where they should be."""

from __future__ import annotations

import itertools
import shutil

import numpy as np
import pydicom
import pytest
from pydicom.uid import EncapsulatedPDFStorage, SecondaryCaptureImageStorage, generate_uid

from dagman.errors import ScanError
from dagman.scans.affine import Affine
from dagman.scans.discovery import find_series
from dagman.scans.reading import read_scan, read_series
from dagman.scans.scan import hash_scan, reorient_scan

TURNS = [(order, flips) for order in itertools.permutations(range(3)) for flips in itertools.product([False, True], repeat=3)]


def turn(voxels, matrix, order, flips):
    voxels, affine = voxels.transpose(order), Affine(matrix).permute(order)
    for axis in np.flatnonzero(flips):
        affine = affine.flip(int(axis), voxels.shape[axis])
        voxels = np.flip(voxels, axis)
    return voxels, affine.matrix


def reasons(folder) -> list[str]:
    return [refusal.reason for refusal in find_series(folder).refused]


@pytest.mark.parametrize(("order", "flips"), TURNS)
def test_nifti_and_dicom_of_one_scan_agree_in_all_orientations(tmp_path, write_dicom, write_nifti, ct, placement, order, flips):
    small = ct[4:9, 3:10, 2:6]
    voxels, matrix = turn(small, placement, order, flips)
    write_dicom(tmp_path / "d", voxels, matrix)
    dicom = read_scan(tmp_path / "d")
    nifti = read_scan(write_nifti(tmp_path / "a.nii.gz", voxels, matrix))
    upright = reorient_scan(dicom)
    assert np.array_equal(upright.voxels, small)
    assert upright.affine.matrix == pytest.approx(placement, abs=1e-6)
    assert np.array_equal(reorient_scan(nifti).voxels, small)
    assert hash_scan(dicom) == hash_scan(nifti)
    assert (dicom.modality, nifti.modality) == ("CT", "CT")


def test_an_oblique_series_keeps_its_place(tmp_path, write_dicom, ct, placement):
    angle = np.radians(20)
    spin = np.eye(4)
    spin[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    write_dicom(tmp_path, ct, spin @ placement)
    scan = reorient_scan(read_scan(tmp_path))
    assert scan.affine.is_oblique
    assert scan.affine.matrix == pytest.approx(spin @ placement, abs=1e-6)
    assert np.array_equal(scan.voxels, ct)


def test_several_series_in_one_folder_are_told_apart_whatever_the_suffix(tmp_path, write_dicom, ct, placement):
    write_dicom(tmp_path, ct, placement, suffix="")
    write_dicom(tmp_path, ct[:, :, ::-1], placement, suffix=".IMA")
    (tmp_path / "notes.txt").write_text("not an image")
    found = find_series(tmp_path)
    assert len(found.series) == 2
    assert not found.refused
    assert len({series.source for series in found.series}) == 2
    with pytest.raises(ScanError, match=f"{tmp_path}: holds 2 series: .*Give the name of one of them"):
        read_scan(tmp_path)
    for series in found.series:
        # The source is a path that gives the whole series again.
        assert hash_scan(read_scan(series.source)) == hash_scan(read_series(series))


@pytest.mark.parametrize("tag", ["AcquisitionNumber", "EchoNumbers", "TemporalPositionIdentifier"])
def test_two_volumes_in_one_series_are_split_by_the_tag_that_tells_them_apart(tmp_path, write_dicom, ct, placement, tag):
    uid = generate_uid()
    write_dicom(tmp_path, ct, placement, SeriesInstanceUID=uid, **{tag: 1})
    write_dicom(tmp_path, ct + 5, placement, SeriesInstanceUID=uid, **{tag: 2})
    scans = [read_series(series) for series in find_series(tmp_path).series]
    assert sorted(int(scan.voxels[8, 7, 4]) for scan in scans) == [ct[8, 7, 4], ct[8, 7, 4] + 5]


def test_repeated_positions_without_a_telling_tag_are_refused(tmp_path, write_dicom, ct, placement):
    uid = generate_uid()
    for change in (0, 1):
        write_dicom(tmp_path, ct + change, placement, SeriesInstanceUID=uid)
    with pytest.raises(ScanError, match="18 slices lie at 9 positions"):
        read_scan(tmp_path)


def test_a_copy_of_a_series_is_counted_once(tmp_path, write_dicom, ct, placement):
    write_dicom(tmp_path / "a", ct, placement)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    found = find_series(tmp_path)
    assert [series.source for series in found.series] == [str(tmp_path / "a")]
    assert reasons(tmp_path) == [f"the same images as in {(tmp_path / 'a').as_posix()}; counted once"]


def test_two_scans_with_the_same_uids_are_both_read(tmp_path, write_dicom, edit_dicom, ct, placement):
    for path in write_dicom(tmp_path / "a", ct, placement):
        (tmp_path / "b").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "b" / path.name)
        edit_dicom(tmp_path / "b" / path.name, RescaleIntercept=-1014)
    scans = [reorient_scan(read_series(series)) for series in find_series(tmp_path).series]
    assert [scan.voxels[8, 7, 4] - ct[8, 7, 4] for scan in scans] == [0, 10]


def test_slices_that_share_one_instance_uid_are_still_a_volume(tmp_path, write_dicom, ct, placement):
    write_dicom(tmp_path, ct, placement, SOPInstanceUID="1.2.3.4")
    assert np.array_equal(reorient_scan(read_scan(tmp_path)).voxels, ct)


def test_a_series_spread_over_folders_is_one(tmp_path, write_dicom, ct, placement):
    for index, path in enumerate(write_dicom(tmp_path / "all", ct, placement)):
        (tmp_path / f"{index % 3}").mkdir(exist_ok=True)
        path.rename(tmp_path / f"{index % 3}" / path.name)
    assert np.array_equal(reorient_scan(read_scan(tmp_path)).voxels, ct)


def test_the_order_of_files_changes_nothing(tmp_path, write_dicom, write_nifti, ct, placement, monkeypatch):
    write_dicom(tmp_path / "d", ct, placement)
    write_nifti(tmp_path / "n" / "a.nii.gz", ct, placement)
    write_nifti(tmp_path / "m" / "b.nii.gz", ct, placement)
    import os

    first, walk = find_series(tmp_path), os.walk

    def backwards(root, **options):
        for folder, folders, names in walk(root, **options):
            folders.reverse()
            yield folder, folders, names[::-1]

    monkeypatch.setattr(os, "walk", backwards)
    assert find_series(tmp_path) == first
    assert find_series([tmp_path / "n", tmp_path / "m", tmp_path / "d"]).series == first.series


def test_slope_and_intercept_may_differ_from_slice_to_slice(tmp_path, write_dicom, edit_dicom, ct, placement):
    paths = write_dicom(tmp_path, ct, placement)
    for index, path in enumerate(paths):
        edit_dicom(path, RescaleSlope=2 if index % 2 else 0.5, RescaleIntercept=-1024 + index)
    scan = reorient_scan(read_scan(tmp_path, modality="MR"))
    stored = ct.astype(np.float64) + 1024
    for index in range(len(paths)):
        assert np.array_equal(scan.voxels[:, :, index], stored[:, :, index] * (2 if index % 2 else 0.5) - 1024 + index)


def test_the_padding_value_becomes_outside_air(tmp_path, write_dicom, ct, placement):
    voxels = ct.copy()
    voxels[0, 0, :] = 1976
    write_dicom(tmp_path, voxels, placement, PixelPaddingValue=3000)
    assert (reorient_scan(read_scan(tmp_path)).voxels[0, 0, :] == -1024).all()


def test_mr_is_mr_by_its_tag_and_keeps_its_values(tmp_path, write_dicom, ct, placement, mr_tags):
    write_dicom(tmp_path, ct, placement, RescaleIntercept=0, **mr_tags)
    scan = read_scan(tmp_path)
    assert scan.modality == "MR"
    assert scan.voxels.min() >= 0


@pytest.mark.parametrize(
    ("tags", "text"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer, not a volume: nothing to do"),
        ({"SOPClassUID": SecondaryCaptureImageStorage}, "secondary capture (a picture of the screen), not a scan: nothing to do"),
        ({"Modality": "PT"}, "modality PT, neither CT nor MR: exclude it, or pass --modality ct or mr"),
        ({"SamplesPerPixel": 3}, "holds RGB colours, not one value per pixel: give the scan itself, not a rendering"),
    ],
)
def test_what_is_no_scan_is_refused_once_with_its_reason(tmp_path, write_dicom, ct, placement, tags, text):
    write_dicom(tmp_path / "good", ct, placement)
    write_dicom(tmp_path / "bad", ct[:, :, :3], placement, **tags)
    found = find_series(tmp_path)
    assert [series.source for series in found.series] == [str(tmp_path / "good")]
    assert [refusal.reason for refusal in found.refused] == [text]


def test_another_modality_is_read_when_the_user_says_what_it_is(tmp_path, write_dicom, ct, placement):
    write_dicom(tmp_path, ct, placement, Modality="OT")
    assert read_scan(tmp_path, modality="CT").modality == "CT"


def test_an_object_that_is_no_image_is_named(tmp_path, write_dicom, edit_dicom, ct, placement):
    path = write_dicom(tmp_path, ct, placement, slices=[0])[0]
    edit_dicom(path, Rows=None, PixelData=None, Modality="RTSTRUCT", SOPClassUID=EncapsulatedPDFStorage)
    assert reasons(tmp_path) == ["RTSTRUCT object, not an image: nothing to do"]


def test_missing_places_are_refused(tmp_path, write_dicom, edit_dicom, ct, placement):
    for path in write_dicom(tmp_path, ct, placement):
        edit_dicom(path, ImagePositionPatient=None)
    assert "has no position in the patient" in reasons(tmp_path)[0]


def test_one_missing_slice_is_said_with_its_place(tmp_path, write_dicom, ct, placement):
    write_dicom(tmp_path, ct, placement, slices=[0, 1, 2, 3, 5, 6, 7, 8])
    with pytest.raises(ScanError) as caught:
        read_scan(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: slices are 2.5 mm apart, but 5 mm after slice 4 (allowed: within 0.1 mm of even): 1 slice is missing. "
        "Export the complete series, exclude it, or prepare it with --widest-gap 5."
    )
    assert read_scan(tmp_path, widest_gap=5).notes


def test_one_slice_is_refused(tmp_path, write_dicom, ct, placement):
    write_dicom(tmp_path, ct, placement, slices=[4])
    assert reasons(tmp_path) == ["is one slice: give a volume of at least 2 slices"]


def test_truncated_pixels_are_refused_with_the_files_name(tmp_path, write_dicom, ct, placement):
    path = write_dicom(tmp_path, ct, placement)[3]
    path.write_bytes(path.read_bytes()[:-50])
    assert reasons(tmp_path) == [f"{path.name}: pixel data are cut short: copy or export the series again"]


@pytest.mark.parametrize("broken", ["a", "b"])
def test_a_copy_that_broke_off_does_not_cost_the_series(tmp_path, write_dicom, ct, placement, broken):
    name = write_dicom(tmp_path / "a", ct, placement)[3].name
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    path = tmp_path / broken / name
    path.write_bytes(path.read_bytes()[:-50])
    found = find_series(tmp_path)
    (series,) = found.series
    assert np.array_equal(reorient_scan(read_series(series)).voxels, ct)
    cut = "pixel data are cut short; another file contains the complete image: nothing to do"
    assert {refusal.source: refusal.reason for refusal in found.refused}[str(path)] == cut


def test_a_refusal_is_listed_for_every_folder_that_it_concerns(tmp_path, write_dicom, ct, placement):
    uid = generate_uid()
    for name in ("a", "b"):
        write_dicom(tmp_path / name, ct, placement, SeriesInstanceUID=uid, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    found = find_series(tmp_path)
    assert [refusal.source for refusal in found.refused] == [str(min((tmp_path / name).iterdir())) for name in ("a", "b")]
    assert {refusal.reason for refusal in found.refused} == {"localizer, not a volume: nothing to do"}


@pytest.mark.parametrize("size", [0, 100, 140, 300])
def test_a_file_cut_in_its_header_never_stops_the_others(tmp_path, write_dicom, ct, placement, size):
    write_dicom(tmp_path / "good", ct, placement)
    path = write_dicom(tmp_path / "bad", ct, placement, slices=[0])[0]
    path.write_bytes(path.read_bytes()[:size])
    found = find_series(tmp_path)
    assert len(found.series) == 1
    assert [refusal.source for refusal in found.refused] == [str(path)]


def test_damaged_compressed_pixels_are_refused_with_the_files_name(tmp_path, write_dicom, ct, placement):
    from pydicom.uid import RLELossless

    paths = write_dicom(tmp_path, ct, placement)
    for path in paths:
        data = pydicom.dcmread(path)
        data.compress(RLELossless)
        data.save_as(path)
    assert np.array_equal(reorient_scan(read_scan(tmp_path)).voxels, ct)
    data = pydicom.dcmread(paths[2])
    data.PixelData = data.PixelData[:40]
    data.save_as(paths[2])
    with pytest.raises(ScanError, match=f"{paths[2].name}: pixel data are cut short or cannot be decoded"):
        read_scan(tmp_path)


def test_no_name_or_number_of_a_patient_is_shown(tmp_path, write_dicom, ct, placement):
    write_dicom(tmp_path, ct, placement)
    write_dicom(tmp_path / "one", ct, placement, slices=[0])
    found = find_series(tmp_path)
    scan = read_series(found.series[0])
    shown = repr(found) + repr(scan) + scan.patient + scan.source + str(scan.notes)
    assert "4711" not in shown
    assert "Doe" not in shown
    assert scan.patient.startswith("P-")
