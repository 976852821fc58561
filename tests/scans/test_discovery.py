"""Discovery lists what may be a scan and what is refused; one bad file never costs the others."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from dagman.errors import ScanError
from dagman.scans.discovery import Refusal, find_series
from dagman.scans.pseudonyms import name_patient
from dagman.scans.reading import read_scan, read_series


def test_all_formats_are_found_at_any_depth_and_other_files_ignored(tmp_path, write_nifti, write_dicom, ct, placement):
    write_nifti(tmp_path / "a" / "b" / "c" / "deep.nii.gz", ct)
    write_dicom(tmp_path / "a" / "dicom", ct, placement)
    image = SimpleITK.GetImageFromArray(ct.T)
    for name in ("x.nrrd", "y.mhd", "z.mha"):
        SimpleITK.WriteImage(image, str(tmp_path / name))
    for name in ("readme.txt", "table.csv", "meta.json", "page.xml", "picture.png", "DICOMDIR", "weights.bin"):
        (tmp_path / "a" / name).write_bytes(b"something else")
    write_nifti(tmp_path / ".hidden" / "no.nii.gz", ct)
    shutil.copy(tmp_path / "x.nrrd", tmp_path / "._x.nrrd")
    found = find_series(tmp_path)
    names = [series.source.removeprefix(f"{tmp_path}/") for series in found.series]
    assert names == ["a/b/c/deep.nii.gz", "a/dicom", "x.nrrd", "y.mhd", "z.mha"]
    assert [series.kind for series in found.series] == ["nifti", "dicom", "itk", "itk", "itk"]
    assert found.refused == ()
    for series in found.series:
        assert read_series(series).shape == ct.shape


def test_archives_and_unread_formats_are_named_and_not_passed_over(tmp_path, write_nifti, ct):
    write_nifti(tmp_path / "good.nii.gz", ct)
    for name in ("old.7z", "new.RAR", "bad.zip", "pair.img", "pair.hdr", "brain.mgz", "old.gipl", "a.nii.bz2"):
        (tmp_path / name).write_bytes(b"something else")
    pair = "is Analyze 7.5, or a NIfTI pair of .hdr and .img: convert it to .nii.gz; Analyze does not state which side is left"
    assert {refusal.source.rsplit("/")[-1]: refusal.reason for refusal in find_series(tmp_path).refused} == {
        "a.nii.bz2": "is compressed in a format that dagman does not read: decompress it, or compress it as .nii.gz",
        "brain.mgz": "is in FreeSurfer's format: convert it: mri_convert SCAN.mgz SCAN.nii.gz",
        "old.gipl": "is in a format that dagman does not read: convert it to NIfTI, NRRD, MetaImage or DICOM",
        "bad.zip": "is damaged, or is not an archive: download or export it again",
        "new.RAR": "is an archive: unpack it first",
        "old.7z": "is an archive: unpack it first",
        "pair.hdr": pair,
        "pair.img": pair,
    }


def test_linked_folders_are_followed_and_loops_end(tmp_path, write_nifti, ct):
    write_nifti(tmp_path / "elsewhere" / "a.nii.gz", ct)
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "patient").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "scans")
    found = find_series(tmp_path / "scans")
    assert [series.source for series in found.series] == [str(tmp_path / "scans" / "patient" / "a.nii.gz")]
    assert found.refused == ()


def test_pipes_and_names_that_no_table_can_hold_are_refused(tmp_path, write_nifti, ct):
    write_nifti(tmp_path / "good.nii.gz", ct)
    os.mkfifo(tmp_path / "pipe.dcm")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "new\nline.nrrd").write_bytes(b"")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/latin\xfc.nrrd")).write_bytes(b"")
    name = "its path contains characters that are not valid UTF-8, or line breaks: rename it"
    assert {refusal.source.rsplit("/")[-1]: refusal.reason for refusal in find_series(tmp_path).refused} == {
        "latin\\xfc.nrrd": name,
        "new\\x0aline.nrrd": name,
        "pipe.dcm": "cannot be read: check the path and its permissions",
    }


def test_a_folder_that_cannot_be_opened_is_named(tmp_path, write_nifti, ct, monkeypatch):
    write_nifti(tmp_path / "good.nii.gz", ct)
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    # The superuser, who may run the tests, can open everything.
    monkeypatch.setattr(os, "scandir", refuse)
    found = find_series(tmp_path)
    assert len(found.series) == 1
    assert found.refused == (
        Refusal(source=str(tmp_path / "closed"), reason="cannot be opened (Permission denied): check its permissions"),
    )


@pytest.fixture
def closed_to_us(write_nifti, write_dicom, ct, placement):
    """A folder with files that may not be read, while this process is not the superuser, who may read all."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_nifti(folder / "good.nii.gz", ct)
        write_nifti(folder / "secret.nii.gz", ct).chmod(0)
        for index, path in enumerate(write_dicom(folder / "dicom", ct, placement)):
            path.chmod(0 if index == 3 else 0o644)
        (folder / "bare").write_bytes(b"x" * 200)
        (folder / "bare").chmod(0)
        write_nifti(folder / "listed" / "inside.nii.gz", ct)
        (folder / "listed" / "bare").write_bytes(b"x" * 200)
        (folder / "listed").chmod(0o444)
        folder.chmod(0o755)
        before = os.geteuid()
        if before == 0:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(before)
            (folder / "listed").chmod(0o755)


def test_files_that_may_not_be_read_are_refused_and_the_others_found(closed_to_us):
    found = find_series(closed_to_us)
    assert [series.source.removeprefix(f"{closed_to_us}/") for series in found.series] == ["dicom", "good.nii.gz"]
    reasons = {refusal.source.removeprefix(f"{closed_to_us}/"): refusal.reason for refusal in found.refused}
    assert reasons.pop("listed/inside.nii.gz") == "cannot be read: check the path and its permissions"
    assert reasons.pop("secret.nii.gz") == "cannot be read: check the path and its permissions"
    assert [name.partition("/")[0] for name in reasons] == ["bare", "dicom"]
    assert set(reasons.values()) == {"cannot be read: check its permissions"}


@pytest.mark.parametrize("name", ["secret.nii.gz", "listed/inside.nii.gz", "listed/absent.nii.gz", "bare"])
def test_a_file_that_may_not_be_read_is_one_line(closed_to_us, name):
    with pytest.raises(ScanError, match=r"cannot be (read|opened)") as caught:
        read_scan(closed_to_us / name)
    assert "\n" not in str(caught.value)


def test_raw_data_are_not_taken_for_dicom(tmp_path, write_nifti, ct):
    write_nifti(tmp_path / "good.nii.gz", ct)
    (tmp_path / "labels.raw").write_bytes(np.full(500, 8, np.int16).tobytes())
    assert find_series(tmp_path).refused == ()


def test_bad_files_are_listed_beside_the_good_ones(tmp_path, write_nifti, ct):
    write_nifti(tmp_path / "good.nii.gz", ct)
    (tmp_path / "zero.nii.gz").write_bytes(b"")
    (tmp_path / "text.nii").write_text("text")
    (tmp_path / "text.dcm").write_text("text " * 100)
    (tmp_path / "zero.dcm").write_bytes(b"")
    (tmp_path / "gone.nii").symlink_to(tmp_path / "nowhere")
    write_nifti(tmp_path / "flat.nii.gz", np.zeros((5, 5), np.int16))
    found = find_series(tmp_path)
    assert [series.source for series in found.series] == [str(tmp_path / "good.nii.gz")]
    assert {refusal.source.rsplit("/")[-1]: refusal.reason for refusal in found.refused} == {
        "flat.nii.gz": "is one slice (5 x 5): give a volume of at least 2 slices",
        "gone.nii": "cannot be read: check the path and its permissions",
        "text.dcm": "is not a DICOM file, despite its name: copy or export it again, or exclude it",
        "text.nii": "is empty or cut off in its header: copy or convert the scan again",
        "zero.dcm": "is empty: copy or export the series again",
        "zero.nii.gz": "is empty or cut off in its header: copy or convert the scan again",
    }


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: path.mkdir(), "contains no scans. Give files or folders with NIfTI, NRRD, MetaImage or DICOM."),
        (lambda path: None, "does not exist. Check the path."),
    ],
)
def test_nothing_to_read_is_one_line(tmp_path, make, text):
    make(tmp_path / "scans")
    with pytest.raises(ScanError) as caught:
        find_series(tmp_path / "scans")
    assert str(caught.value) == f"{tmp_path / 'scans'}: {text}"


def test_a_file_given_by_name_is_never_ignored(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    with pytest.raises(ScanError, match=r"a\.png: is not in a format that dagman reads: give NIfTI, NRRD, MetaImage or DICOM\."):
        read_scan(tmp_path / "a.png")


def test_two_scans_of_one_name_never_collide(tmp_path, write_nifti, ct):
    for patient, change in (("anna", 0), ("bert", 7)):
        write_nifti(tmp_path / patient / "ct.nii.gz", ct + np.int16(change))
    found = find_series(tmp_path)
    assert [series.patient for series in found.series] == [name_patient("anna"), name_patient("bert")]
    first, second = (read_series(series) for series in found.series)
    assert first.source != second.source
    assert not np.array_equal(first.voxels, second.voxels)


def test_a_file_given_twice_is_found_once(tmp_path, write_nifti, ct):
    path = write_nifti(tmp_path / "a.nii.gz", ct)
    assert len(find_series([path, tmp_path, path]).series) == 1


def test_a_word_on_the_modality_goes_before_the_values(tmp_path, write_nifti, ct):
    path = write_nifti(tmp_path / "a.nii.gz", ct)
    assert read_scan(path).modality == "CT"
    assert read_scan(path, modality="MR").modality == "MR"
    assert find_series(path).series[0].modality is None
    assert find_series(path, modality="MR").series[0].modality == "MR"


def test_a_mask_is_readable_although_it_is_no_scan(tmp_path, write_nifti):
    scan = read_scan(write_nifti(tmp_path / "mask.nii.gz", np.ones((4, 5, 6), np.uint8)))
    assert scan.modality == "other"
    assert scan.voxels.dtype == np.int16


def test_a_refusal_names_the_file_that_an_error_names():
    error = ScanError("cannot be decoded", where="/x/IM7", do="Export it again")
    assert Refusal.from_error("/x", error).reason == "IM7: cannot be decoded: export it again"
    assert Refusal.from_error("/x/IM7", error).reason == "cannot be decoded: export it again"
