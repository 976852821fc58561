"""An archive gives what its unpacked folder gives, and nothing in it can harm the machine or the others."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest

from dagman.errors import ScanError
from dagman.records.csv_file import read_csv
from dagman.scans.archives import places, unpacking
from dagman.scans.discovery import find_series
from dagman.scans.label_files import write_label_map
from dagman.scans.reading import read_scan
from dagman.store.manifest import Store
from dagman.store.writer import prepare_store


@pytest.fixture
def folder(tmp_path: Path, write_nifti, write_dicom, ct, placement) -> Path:
    """Two DICOM series, two NIfTI files whose folders name their patients, and a file that is no scan."""
    root = tmp_path / "export"
    write_dicom(root / "a" / "chest", ct, placement)
    write_dicom(root / "b", ct + np.int16(7), placement, uid="1.2.826.0.1.3680043.8.498.7")
    write_nifti(root / "c" / "ct.nii.gz", ct + np.int16(20), placement)
    write_nifti(root / "d" / "ct.nii.gz", ct + np.int16(30), placement)
    (root / "d" / "broken.nii.gz").write_bytes(b"no scan")
    return root


def _pack(folder: Path, kind: str) -> Path:
    return Path(shutil.make_archive(str(folder.with_suffix("")), kind, folder))


@pytest.mark.parametrize("kind", ["zip", "gztar"])
def test_an_archive_gives_what_its_folder_gives(folder, kind):
    archive = _pack(folder, kind)
    inside, beside = find_series(archive), find_series(folder)

    def describe(found, root):
        return [(one.source.removeprefix(str(root)), one.patient, one.modality, one.uid, one.kind) for one in found.series]

    assert describe(inside, archive) == describe(beside, folder)
    assert len(inside.series) == 4
    by_uid = find_series(f"{archive}#{inside.series[0].uid}").series
    assert [one.source for one in by_uid] == [f"{archive}#{inside.series[0].uid}"]
    assert [one.source for one in inside.refused] == [f"{archive}/d/broken.nii.gz"]
    assert [one.reason for one in inside.refused] == [one.reason for one in beside.refused]
    for one, other in zip(inside.series, beside.series, strict=True):
        assert read_scan(one.source).voxels.tobytes() == read_scan(other.source).voxels.tobytes()


def test_an_archive_in_a_folder_is_found_and_named_below_it(folder, tmp_path, write_nifti, ct):
    top = tmp_path / "top"
    top.mkdir()
    _pack(folder, "zip").rename(top / "export.zip")
    write_nifti(top / "e" / "ct.nii.gz", ct)
    folder.rename(tmp_path / "kept")
    found = find_series(top)
    names = [one.source.removeprefix(f"{top}/") for one in found.series]
    assert names == ["e/ct.nii.gz", "export.zip/a/chest", "export.zip/b", "export.zip/c/ct.nii.gz", "export.zip/d/ct.nii.gz"]
    shutil.copytree(tmp_path / "kept", top / "export")
    (top / "export.zip").unlink()
    assert [one.patient for one in find_series(top).series] == [one.patient for one in found.series]


def test_a_store_of_an_archive_is_that_of_the_folder_and_a_repetition_continues(folder, tmp_path, monkeypatch):
    archive = _pack(folder, "zip")
    prepare_store(archive, tmp_path / "one", workers=1)
    prepare_store(folder, tmp_path / "two", workers=1)

    def describe(store):
        return [(row.id, row.content_hash, row.checksum, row.patient) for row in Store(tmp_path / store).rows]

    assert describe("one") == describe("two")
    assert [row["source"] for row in read_csv(tmp_path / "one" / "rejected.csv")] == [f"{archive}/d/broken.nii.gz"]
    unpacking_again = find_series(archive).series[0].files[0].parents[2]
    shutil.rmtree(unpacking_again)
    monkeypatch.setattr("dagman.store.series.hash_files", lambda files: pytest.fail("a scan was read again"))
    again = prepare_store(archive, tmp_path / "one", workers=1)
    assert (again.kept, again.already, again.replaced, again.vanished) == (4, 4, (), ())


def test_members_that_would_do_harm_are_named_and_left_out(tmp_path, unpacked, write_nifti, ct):
    scan = write_nifti(tmp_path / "ct.nii.gz", ct).read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for name in ("../out.nii.gz", "/root.nii.gz", "x\\..\\..\\out.nii.gz", "good.nii.gz", "._good.nii.gz", "bad.nii.gz"):
            packed.writestr(name, scan)
        link = zipfile.ZipInfo("link.nii.gz")
        link.external_attr = 0o120777 << 16
        packed.writestr(link, "/etc/passwd")
        start = packed.getinfo("bad.nii.gz").header_offset + 60
    damaged = bytearray((tmp_path / "a.zip").read_bytes())
    damaged[start] ^= 255
    (tmp_path / "a.zip").write_bytes(damaged)
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz") as stream:
        for name, kind in (("../out.nii.gz", tarfile.REGTYPE), ("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            member.size = len(scan) if kind == tarfile.REGTYPE else 0
            stream.addfile(member, io.BytesIO(scan))
        stream.add(tmp_path / "ct.nii.gz", "good.nii.gz")
    (tmp_path / "ct.nii.gz").unlink()
    found = find_series([tmp_path / "a.zip", tmp_path / "b.tar.gz"])
    assert [one.source for one in found.series] == [f"{tmp_path}/a.zip/good.nii.gz", f"{tmp_path}/b.tar.gz/good.nii.gz"]
    outside, link = (
        "its path points outside the archive: create the archive again, with relative paths",
        "unpack it yourself, and give the folder",
    )
    assert sorted((one.source.removeprefix(f"{tmp_path}/"), one.reason) for one in found.refused) == [
        ("a.zip/../out.nii.gz", outside),
        ("a.zip/bad.nii.gz", "is damaged in the archive: download or export it again"),
        ("a.zip/link.nii.gz", f"is a link in an archive: {link}"),
        ("a.zip/root.nii.gz", outside),
        ("a.zip/x/../../out.nii.gz", outside),
        ("b.tar.gz/../out.nii.gz", outside),
        ("b.tar.gz/hard", f"is a link or a device in an archive: {link}"),
        ("b.tar.gz/link", f"is a link or a device in an archive: {link}"),
    ]
    written = sorted(path.relative_to(unpacked).parts[1:] for path in unpacked.rglob("*") if not path.is_dir())
    assert written == [("good.nii.gz",), ("good.nii.gz",)]
    assert not os.path.exists(tmp_path.parent / "out.nii.gz")


def test_archives_that_cannot_be_unpacked_are_refused_by_name(tmp_path, write_nifti, ct, monkeypatch):
    good = write_nifti(tmp_path / "in" / "ct.nii.gz", ct)
    whole = Path(shutil.make_archive(str(tmp_path / "whole"), "gztar", good.parent)).read_bytes()
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    locked = tmp_path / "locked.zip"
    with zipfile.ZipFile(locked, "w") as packed:
        packed.write(good, "ct.nii.gz")
    with zipfile.ZipFile(locked) as packed:
        directory = packed.start_dir
    flagged = bytearray(locked.read_bytes())
    flagged[6] |= 1
    flagged[directory + 8] |= 1
    locked.write_bytes(flagged)
    many = tmp_path / "many.zip"
    with zipfile.ZipFile(many, "w") as packed:
        for number in range(4):
            packed.writestr(f"{number}.txt", "")
    monkeypatch.setattr(unpacking, "MOST_MEMBERS", 3)
    found = find_series([good, cut, locked, many])
    assert [one.source for one in found.series] == [str(good)]
    assert {one.source.rsplit("/")[-1]: one.reason for one in found.refused} == {
        "cut.tar.gz": "is damaged, or is not an archive: download or export it again",
        "locked.zip": "is encrypted: unpack it with its password",
        "many.zip": "claims more than 3 files: unpack it yourself if it can be trusted",
    }
    monkeypatch.setattr(unpacking, "FREE_BYTES", 10_000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a.nii", bytes(1_000_000))
    with pytest.raises(ScanError, match=r"claims .* GiB or more"):
        read_scan(tmp_path / "bomb.zip" / "a.nii")


def test_a_member_that_cannot_be_read_is_named_as_the_user_knows_it(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("in/cut.nrrd", "NRRD0004\ntype: int16\ndimension: 3\nsizes: 4 4 4\nspacings: 1 1 1\nencoding: raw\n\n123")
    with pytest.raises(ScanError) as refusal:
        read_scan(tmp_path / "a.zip")
    assert refusal.value.where == f"{tmp_path}/a.zip/in/cut.nrrd"


def test_a_label_map_of_a_scan_in_an_archive_has_its_geometry(tmp_path, write_nifti, ct, placement):
    archive = _pack(write_nifti(tmp_path / "in" / "ct.nii", ct, placement).parent, "zip")
    scan = read_scan(archive)
    write_label_map(tmp_path / "labels.nii", np.zeros(scan.shape, np.uint8), scan)
    written, source = (nibabel.load(path).header for path in (tmp_path / "labels.nii", tmp_path / "in" / "ct.nii"))
    assert all(np.array_equal(written[name], source[name]) for name in ("srow_x", "sform_code", "qform_code", "quatern_d"))


def test_a_series_in_two_archives_is_one_scan(folder, tmp_path):
    top = tmp_path / "top"
    top.mkdir()
    files = sorted((folder / "a" / "chest").iterdir())
    for name, part in (("one", files[:4]), ("two", files[4:])):
        with zipfile.ZipFile(top / f"{name}.zip", "w") as packed:
            for path in part:
                packed.write(path, path.name)
    (series,) = find_series(top).series
    assert series.source == str(top)
    assert read_scan(series.source).voxels.tobytes() == read_scan(folder / "a" / "chest").voxels.tobytes()


def test_what_a_killed_process_had_unpacked_is_removed_by_the_next(folder, unpacked):
    archive = _pack(folder, "zip")
    code = "import os, sys; from pathlib import Path; from dagman.scans.archives import enter_archive; "
    code += "enter_archive(Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(archive)], env={**os.environ, "TMPDIR": str(unpacked)}, check=False)
    (orphan,) = unpacked.iterdir()
    kept = [f"dagman-{places._name_process(os.getpid())}-abc", "dagman-000000000000-1-1-abc", "dagman-of-a-user", "dagman-abc123"]
    for name in kept:
        (unpacked / name).mkdir()
    places._remove_orphans.cache_clear()
    find_series(archive)
    assert not orphan.exists()
    assert {path.name for path in unpacked.iterdir()} > set(kept)
    for name in kept:
        (unpacked / name).rmdir()
