"""What one command names every command reads; several volumes in a series are parted and named; copies are counted once."""

from __future__ import annotations

import os

import numpy as np
import pytest
from pydicom.uid import generate_uid

from dagman.errors import ScanError
from dagman.scans.discovery import find_series
from dagman.scans.label_files import find_dicom_files, name_outputs
from dagman.scans.reading import read_scan, read_series
from dagman.scans.scan import hash_scan, reorient_scan
from dagman.tables.table import read_table


def write_several(write_dicom, folder, voxels, placement, tags, **shared) -> str:
    """Volumes of one series, each with its own tags and a value of its own; returns the UID."""
    uid = generate_uid()
    for number, own in enumerate(tags):
        write_dicom(folder, voxels + number, placement, SeriesInstanceUID=uid, **shared, **own)
    return uid


def upright(source) -> np.ndarray:
    return reorient_scan(read_scan(source)).voxels


def test_every_name_that_is_printed_is_read_again_and_means_the_same(tmp_path, write_dicom, ct, placement):
    write_dicom(tmp_path / "alone", ct, placement)
    for change in (1, 2):
        write_dicom(tmp_path / "pair", ct + change, placement)
    write_several(write_dicom, tmp_path / "passes", ct + 3, placement, [{"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}])
    found = find_series(tmp_path).series
    assert len(found) == 5
    for series in found:
        again = find_series(series.source).series
        assert [one.source for one in again] == [series.source]
        assert set(again[0].files) == set(series.files)
        assert find_dicom_files(series.source) == again[0].files
        assert hash_scan(read_scan(series.source)) == hash_scan(read_series(series))
    table = tmp_path / "table.csv"
    table.write_text("scan,patient\n" + "".join(f"{os.path.relpath(one.source, tmp_path)},{i}\n" for i, one in enumerate(found)))
    assert [hash_scan(read_scan(item.scan)) for item in read_table(table).items] == [hash_scan(read_series(one)) for one in found]
    names = name_outputs([one.source for one in found])
    assert len(set(names)) == 5
    assert not any(sign in name for name in names for sign in "#:=/\\")


def test_any_file_of_a_series_means_the_volume_that_it_is_a_slice_of(tmp_path, write_dicom, ct, placement):
    first = write_dicom(tmp_path, ct, placement, AcquisitionNumber=1, SeriesInstanceUID="1.2.3")
    second = write_dicom(tmp_path, ct + 5, placement, AcquisitionNumber=2, SeriesInstanceUID="1.2.3")
    other = write_dicom(tmp_path, ct + 9, placement)
    for paths, change in ((first, 0), (second, 5), (other, 9)):
        for path in paths[::4]:
            assert np.array_equal(upright(path), ct + change)
            found = find_series(path)
            assert [one.source for one in found.series] == [str(path)]
            assert not found.refused
    assert len(find_series([first[0], first[3], second[1]]).series) == 2
    # All files, as a shell's * gives them, are what the folder is.
    assert len(find_series([*first, *second, *other]).series) == 3


def test_the_name_of_a_series_of_several_volumes_means_all_of_them(tmp_path, write_dicom, ct, placement):
    uid = write_several(write_dicom, tmp_path, ct, placement, [{"EchoNumbers": 1}, {"EchoNumbers": 2}])
    write_dicom(tmp_path, ct + 9, placement)
    assert [one.source for one in find_series(f"{tmp_path}#{uid}").series] == [f"{tmp_path}#{uid}:echo={n}" for n in (1, 2)]
    with pytest.raises(ScanError, match=f"holds 2 series: {tmp_path}#{uid}:echo=1, {tmp_path}#{uid}:echo=2. Give the name of one"):
        read_scan(f"{tmp_path}#{uid}")
    assert np.array_equal(upright(f"{tmp_path}#{uid}:echo=2"), ct + 1)


def test_a_series_that_a_folder_does_not_hold_is_said(tmp_path, write_dicom, ct, placement):
    write_dicom(tmp_path, ct, placement)
    with pytest.raises(ScanError) as caught:
        read_scan(f"{tmp_path}#1.2.3")
    assert str(caught.value) == f"{tmp_path}: there is no series #1.2.3. Run dagman inspect {tmp_path} for the names of its series."
    with pytest.raises(ScanError, match="does not exist"):
        read_scan(f"{tmp_path / 'absent'}#1.2.3")


def test_a_folder_with_a_number_sign_is_a_folder(tmp_path, write_dicom, ct, placement):
    write_dicom(tmp_path / "case#7", ct, placement)
    assert np.array_equal(upright(tmp_path / "case#7"), ct)


@pytest.mark.parametrize(
    ("tags", "parts"),
    [
        (
            [{"NominalPercentageOfCardiacPhase": p} for p in (40, 70, 75)],
            ["cardiac-phase=40", "cardiac-phase=70", "cardiac-phase=75"],
        ),
        ([{"TemporalPositionIdentifier": p} for p in (1, 2)], ["time-point=1", "time-point=2"]),
        ([{"AcquisitionTime": t} for t in ("101500.2", "101507.9")], ["acquisition-time=1", "acquisition-time=2"]),
        (
            [{"EchoNumbers": e, "TemporalPositionIdentifier": t} for e in (1, 2) for t in (1, 2)],
            [f"echo={e},time-point={t}" for e in (1, 2) for t in (1, 2)],
        ),
    ],
)
def test_phases_are_named_and_counted(tmp_path, write_dicom, ct, placement, tags, parts):
    uid = write_several(write_dicom, tmp_path, ct, placement, tags)
    found = find_series(tmp_path)
    assert [one.source for one in found.series] == [f"{tmp_path}#{uid}:{part}" for part in parts]
    assert not found.refused
    for number, one in enumerate(found.series):
        assert np.array_equal(reorient_scan(read_series(one)).voxels, ct + number)


def test_time_points_whose_slices_each_have_a_time_are_parted_by_the_order_at_each_place(
    tmp_path, write_dicom, edit_dicom, ct, placement
):
    uid = generate_uid()
    for phase in range(3):
        paths = write_dicom(tmp_path, ct + phase, placement, SeriesInstanceUID=uid)
        for index, path in enumerate(paths):
            edit_dicom(path, AcquisitionTime=f"{101500 + 9 * phase + index}.5")
    found = find_series(tmp_path).series
    assert [one.source for one in found] == [f"{tmp_path}#{uid}:acquisition-time={n}" for n in (1, 2, 3)]
    for phase, one in enumerate(found):
        assert np.array_equal(reorient_scan(read_series(one)).voxels, ct + phase)


@pytest.mark.parametrize("slices", [[4], [0, 3, 8], None])
def test_a_slice_exported_twice_is_counted_once_and_noted(tmp_path, write_dicom, ct, placement, slices):
    uid = generate_uid()
    write_dicom(tmp_path, ct, placement, SeriesInstanceUID=uid)
    copies = write_dicom(tmp_path, ct, placement, SeriesInstanceUID=uid, slices=slices)
    scan = read_scan(tmp_path)
    assert np.array_equal(reorient_scan(scan).voxels, ct)
    count = "1 slice" if len(copies) == 1 else f"{len(copies)} slices"
    assert scan.notes == (f"{count} exported twice with identical pixels; counted once",)
    assert np.array_equal(upright(copies[0]), ct)


def test_one_slice_twice_with_other_pixels_is_refused(tmp_path, write_dicom, ct, placement):
    uid = generate_uid()
    write_dicom(tmp_path, ct, placement, SeriesInstanceUID=uid)
    write_dicom(tmp_path, ct + 1, placement, SeriesInstanceUID=uid, slices=[4])
    with pytest.raises(ScanError, match=r"10 slices lie at 9 positions \(the first shared by slices 5 and 6\)"):
        read_scan(tmp_path)


def test_equal_slices_of_two_phases_are_no_copies(tmp_path, write_dicom, ct, placement):
    uid = generate_uid()
    for phase in (1, 2):
        voxels = ct.copy()
        voxels[6, 6, 1:] += phase
        write_dicom(tmp_path, voxels, placement, SeriesInstanceUID=uid, TemporalPositionIdentifier=phase)
    scans = [read_series(one) for one in find_series(tmp_path).series]
    assert [scan.shape for scan in scans] == [ct.shape, ct.shape]
    assert all(scan.notes == () for scan in scans)


@pytest.mark.parametrize("start", [20.7, 150.0])
def test_acquisitions_part_a_series_that_is_uneven_as_a_whole(tmp_path, write_dicom, ct, placement, start):
    second = placement.copy()
    second[2, 3] += start
    uid = generate_uid()
    write_dicom(tmp_path, ct, placement, SeriesInstanceUID=uid, AcquisitionNumber=1)
    write_dicom(tmp_path, ct + 1, second, SeriesInstanceUID=uid, AcquisitionNumber=2)
    found = find_series(tmp_path).series
    assert [one.source for one in found] == [f"{tmp_path}#{uid}:acquisition={n}" for n in (1, 2)]
    assert [reorient_scan(read_series(one)).affine.origin[2] for one in found] == pytest.approx([100, 100 + start])


def test_acquisitions_that_make_one_even_series_stay_together(tmp_path, write_dicom, ct, placement):
    uid = generate_uid()
    for number, slices in enumerate((range(5), range(5, 9)), start=1):
        write_dicom(tmp_path, ct, placement, SeriesInstanceUID=uid, AcquisitionNumber=number, slices=slices)
    assert np.array_equal(upright(tmp_path), ct)


def test_frames_at_one_position_are_said(tmp_path, write_dicom, edit_dicom, ct, placement):
    path = write_dicom(tmp_path, ct, placement, slices=[0])[0]
    edit_dicom(path, NumberOfFrames=24, PixelData=b"\0" * (24 * 16 * 14 * 2))
    with pytest.raises(ScanError, match="holds 24 frames, but states only the position of the first"):
        read_scan(tmp_path)
