"""NRRD and MetaImage: the same scan as its NIfTI; what SimpleITK would mend in silence is refused."""

from __future__ import annotations

import gzip
import os
import re
import tracemalloc
import zlib

import numpy as np
import pytest
import SimpleITK

from dagman.errors import ScanError
from dagman.scans.affine import LPS_TO_RAS
from dagman.scans.discovery import find_series
from dagman.scans.itk import check_itk, child, read_itk
from dagman.scans.itk.child import read_with_itk
from dagman.scans.reading import read_scan
from dagman.scans.scan import hash_scan

NAMES = ["a.nrrd", "a.nhdr", "a.mha", "a.mhd"]


def write_itk(path, voxels, matrix, *, compress=False):
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(voxels.T))
    lps = LPS_TO_RAS @ matrix
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    SimpleITK.WriteImage(image, str(path), compress)
    return path


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_scan_is_the_same_in_every_format(tmp_path, write_nifti, ct, name, compress):
    angle = np.radians(10)
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix = matrix @ np.diag([-0.8, 0.9, 2.5, 1])
    matrix[:3, 3] = [4, 5, 6]
    scan = read_scan(write_itk(tmp_path / name, ct, matrix, compress=compress))
    assert np.array_equal(scan.voxels, ct)
    assert scan.affine.matrix == pytest.approx(matrix)
    assert scan.modality == "CT"
    assert hash_scan(scan) == hash_scan(read_scan(write_nifti(tmp_path / "a.nii.gz", ct, matrix)))


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("name", ["Müller 1.nhdr", "Müller 1.mhd", "頭部.mhd"])
def test_a_data_file_is_found_whatever_its_name(tmp_path, ct, name, compress):
    assert np.array_equal(read_scan(write_itk(tmp_path / name, ct, np.eye(4), compress=compress)).voxels, ct)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_truncated_data_are_refused_in_silence(tmp_path, ct, name, compress, capfd):
    path = write_itk(tmp_path / name, ct, np.eye(4), compress=compress)
    data = max(tmp_path.iterdir(), key=lambda file: file.stat().st_size)
    data.write_bytes(data.read_bytes()[:-300])
    with pytest.raises(ScanError, match="is truncated or damaged"):
        read_scan(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", NAMES)
def test_damaged_compressed_data_are_refused_and_not_read_as_zeros(tmp_path, ct, name):
    path = write_itk(tmp_path / name, ct, np.eye(4), compress=True)
    data = max(tmp_path.iterdir(), key=lambda file: file.stat().st_size)
    damaged = bytearray(data.read_bytes())
    damaged[len(damaged) * 2 // 3] ^= 255
    data.write_bytes(damaged)
    with pytest.raises(ScanError, match="is truncated or damaged"):
        read_scan(path)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("sizes", "text"), [("16 15 9", "is truncated or damaged"), ("16 12 9", "its header claims 3456")])
def test_a_size_that_does_not_fit_compressed_data_is_refused(tmp_path, ct, name, sizes, text):
    path = write_itk(tmp_path / name, ct, np.eye(4), compress=True)
    path.write_bytes(path.read_bytes().replace(b"16 14 9", sizes.encode()))
    with pytest.raises(ScanError, match=text):
        read_scan(path)


@pytest.mark.parametrize("name", ["a.mha", "a.mhd"])
@pytest.mark.parametrize("line", [b"CompressedDataSize = 10\n", b"CompressedDataSize = 0\n", b""])
def test_a_wrong_size_of_compressed_data_gives_the_voxels_or_is_refused(tmp_path, ct, name, line, capfd):
    path = write_itk(tmp_path / name, ct, np.eye(4), compress=True)
    path.write_bytes(re.sub(rb"CompressedDataSize = \d+\n", line, path.read_bytes()))
    if name == "a.mhd" and b"10" not in line:
        assert np.array_equal(read_scan(path).voxels, ct)
    else:
        with pytest.raises(ScanError, match=r"is truncated or damaged|is not a MetaImage file, or its header is damaged"):
            read_scan(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("skip", [0, 4])
def test_compressed_nrrd_is_read_in_both_byte_orders_and_with_bytes_to_skip(tmp_path, ct, order, skip):
    endian = {"<": "little", ">": "big"}[order]
    header = (
        "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 16 14 9\n"
        "space directions: (1,0,0) (0,1,0) (0,0,1)\nkinds: domain domain domain\n"
        f"endian: {endian}\nencoding: gzip\nbyte skip: {skip}\nspace origin: (0,0,0)\n\n"
    )
    data = gzip.compress(bytes(skip) + ct.astype(f"{order}i2").tobytes(order="F"))
    (tmp_path / "a.nrrd").write_bytes(header.encode() + data)
    assert np.array_equal(read_scan(tmp_path / "a.nrrd").voxels, ct)


@pytest.mark.parametrize("pattern", ["a%d.raw 1 9 1", "a%d.raw 1 9", "%s%n.raw 1 9 1"])
def test_data_files_named_by_a_pattern_are_refused_before_they_end_the_process(tmp_path, ct, pattern):
    path = write_itk(tmp_path / "a.mhd", ct, np.eye(4))
    path.write_text(path.read_text().replace("a.raw", pattern))
    with pytest.raises(ScanError, match=r"names its data files by a pattern \(%\)\. Convert the scan to a single file"):
        read_scan(path)


@pytest.mark.parametrize("name", ["a.nhdr", "a.mhd"])
def test_a_missing_data_file_is_refused(tmp_path, ct, name):
    path = write_itk(tmp_path / name, ct, np.eye(4))
    (tmp_path / "a.raw").unlink()
    with pytest.raises(ScanError, match=r"its data file is missing|damaged in its header"):
        read_scan(path)


@pytest.mark.parametrize("spacing", ["0 1 1", "-1 1 1", "nan 1 1", "one 1 1"])
def test_a_spacing_that_is_none_is_refused(tmp_path, ct, spacing):
    path = write_itk(tmp_path / "a.mhd", ct, np.eye(4))
    path.write_text(path.read_text().replace("ElementSpacing = 1 1 1", f"ElementSpacing = {spacing}"))
    with pytest.raises(ScanError, match=r"the spacing is .*correct the header"):
        read_scan(path)


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (SimpleITK.Image([5, 6], SimpleITK.sitkInt16), r"is one slice \(5 x 6\)"),
        (SimpleITK.Image([5, 6, 1], SimpleITK.sitkInt16), r"is one slice \(5 x 6 x 1\)"),
        (SimpleITK.Image([5, 6, 7, 2], SimpleITK.sitkInt16), r"has 4 axes \(5 x 6 x 7 x 2\)"),
        (SimpleITK.Image([5, 6, 7], SimpleITK.sitkVectorUInt8, 3), r"holds 3 values per voxel \(colours or vectors\)"),
    ],
)
def test_what_is_no_volume_is_refused(tmp_path, image, text):
    SimpleITK.WriteImage(image, str(tmp_path / "a.mha"))
    with pytest.raises(ScanError, match=text):
        read_scan(tmp_path / "a.mha")


def test_a_header_without_spacing_is_refused_and_one_without_directions_noted(tmp_path, ct):
    path = write_itk(tmp_path / "a.mhd", ct, np.eye(4))
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if not line.startswith("TransformMatrix")))
    assert read_scan(path).notes == ("the file does not state the patient's orientation; its axes were assumed to be L P S",)
    path.write_text("\n".join(line for line in lines if not line.startswith("ElementSpacing")))
    with pytest.raises(ScanError, match="does not state its spacing: correct the header"):
        read_scan(path)


@pytest.mark.parametrize("name", NAMES)
def test_written_files_say_how_the_patient_lies(tmp_path, ct, name):
    assert read_scan(write_itk(tmp_path / name, ct, np.eye(4))).notes == ()


@pytest.mark.parametrize(
    ("matrix", "text"),
    [
        ("1 0 0 1 0 0 0 0 1", "its axes are not linearly independent"),
        ("1 0 0 0 1 0 0 0.5 0.9", "29.1 degrees from perpendicular"),
    ],
)
def test_directions_that_make_no_straight_grid_are_refused(tmp_path, ct, matrix, text):
    path = write_itk(tmp_path / "a.mhd", ct, np.eye(4))
    path.write_text(re.sub("TransformMatrix = .*", f"TransformMatrix = {matrix}", path.read_text()))
    with pytest.raises(ScanError, match=text):
        read_scan(path, tilt="refuse")


@pytest.mark.parametrize("key", ["NDims", "DimSize", "ElementType", "ElementDataFile"])
def test_a_header_cut_short_is_refused_in_silence(tmp_path, ct, key, capfd):
    path = write_itk(tmp_path / "a.mha", ct, np.eye(4))
    raw = path.read_bytes()
    path.write_bytes(raw[: raw.index(key.encode())])
    with pytest.raises(ScanError, match="is not a MetaImage file, or its header is damaged"):
        read_scan(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", [b"", b"no image at all", b"\0" * 500])
def test_what_is_no_image_is_refused_under_its_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ScanError, match=r"is empty|is not an? (NRRD|MetaImage) file, or its header is damaged"):
        read_scan(tmp_path / name)


def change_header(path, old, new):
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("name", "old", "new", "text"),
    [
        ("a.nrrd", b"space origin: (", b"space origin: (" + b"0" * 100_000, r"line \d+ has 1000\d\d characters"),
        ("a.nrrd", b"type: short", b"type: short\nfoo: " + b"a" * 100_000, "line 5 has 100005 characters"),
        ("a.nrrd", b"dimension: 3", b"dimension: 4294967296", "dimension is 4294967296"),
        ("a.nrrd", b"sizes: 16 14 9", b"sizes: 16 14 -9", "its sizes are 16 x 14 x -9"),
        ("a.nrrd", b"sizes: 16 14 9", b"sizes: 99999999 99999999 99999999", "its sizes are 99999999 x"),
        ("a.mha", b"NDims = 3", b"NDims = -1", "NDims is -1"),
        ("a.mha", b"NDims = 3", b"NDims = 100", "NDims is 100"),
        ("a.mha", b"NDims = 3", b"NDims = 4294967296", "NDims is 4294967296"),
        ("a.mha", b"NDims = 3", b"NDims = three", "not whole numbers"),
        ("a.mha", b"DimSize = 16", b"DimSize = 16 16", r"its sizes are 16 x 16 x 14 x 9, its NDims 3"),
        ("a.mha", b"ElementType = MET_SHORT", b"ElementType = MET_SHORT\nElementNumberOfChannels = -5", "its sizes are"),
    ],
)
def test_headers_that_end_a_process_are_refused_before_the_library_reads_them(tmp_path, ct, name, old, new, text):
    path = change_header(write_itk(tmp_path / name, ct, np.eye(4)), old, new)
    with pytest.raises(ScanError, match=text):
        check_itk(path)


@pytest.mark.parametrize("count", ["-1", "100", "4294967296"])
def test_a_file_that_ends_the_reading_process_has_its_reason_and_the_next_is_read(tmp_path, ct, count):
    good = write_itk(tmp_path / "good.mha", ct, np.eye(4))
    bad = change_header(write_itk(tmp_path / "bad.mha", ct, np.eye(4)), b"NDims = 3", f"NDims = {count}".encode())
    # Past the check, as a header that nobody thought of would be.
    with pytest.raises(ScanError, match="crashes its reader, with signal"):
        read_with_itk(bad, voxels=False)
    assert np.array_equal(read_itk(good).values, ct)


def test_a_file_that_holds_up_the_reading_process_is_given_up(tmp_path, ct, monkeypatch):
    good = write_itk(tmp_path / "good.mha", ct, np.eye(4))
    os.mkfifo(tmp_path / "pipe.mha")
    read_itk(good)
    # Short only while the pipe is read: starting SimpleITK takes longer than this on a busy machine.
    with monkeypatch.context() as patch:
        patch.setattr(child, "_TIMEOUT_SECONDS", 0.5)
        with pytest.raises(ScanError, match="could not be read in a reasonable time"):
            read_with_itk(tmp_path / "pipe.mha", voxels=False)
    assert np.array_equal(read_itk(good).values, ct)


def test_one_process_reads_many_files(tmp_path, ct):
    paths = [write_itk(tmp_path / name, ct, np.eye(4)) for name in NAMES]
    read_itk(paths[0])
    before = child._child
    assert all(np.array_equal(read_itk(path).values, ct) for path in paths)
    assert child._child is before


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_more_voxels_than_the_header_claims_are_refused(tmp_path, ct, name, compress):
    path = change_header(write_itk(tmp_path / name, ct, np.eye(4), compress=compress), b"16 14 9", b"13 14 9")
    with pytest.raises(ScanError, match=r"holds (at least )?\d+ bytes of voxels, but its header claims 3276"):
        read_itk(path)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_a_bomb_is_unpacked_no_further_than_its_header_claims(tmp_path, ct, name):
    path = write_itk(tmp_path / name, np.zeros((20, 20, 20), np.int16), np.eye(4), compress=True)
    start = path.read_bytes()
    packed = gzip.compress(bytes(300 << 20), 1) if name == "a.nrrd" else zlib.compress(bytes(300 << 20), 1)
    end = re.search(rb"\n\n|LOCAL\n", start).end()
    path.write_bytes(re.sub(rb"DataSize = \d+", b"DataSize = %d" % len(packed), start[:end]) + packed)
    tracemalloc.start()
    with pytest.raises(ScanError, match="holds at least 16512 bytes of voxels, but its header claims 16000"):
        read_itk(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20


def test_raw_data_at_the_end_of_a_file_are_found(tmp_path, ct):
    path = write_itk(tmp_path / "a.nhdr", ct, np.eye(4))
    raw = tmp_path / "a.raw"
    raw.write_bytes(b"some words first" + raw.read_bytes())
    change_header(path, b"encoding: raw", b"encoding: raw\nbyte skip: -1")
    assert np.array_equal(read_itk(path).values, ct)
    change_header(path, b"byte skip: -1", b"byte skip: 16")
    assert np.array_equal(read_itk(path).values, ct)
    change_header(path, b"byte skip: 16", b"byte skip: 10")
    with pytest.raises(ScanError, match="holds 4038 bytes of voxels, but its header claims 4032"):
        read_itk(path)


@pytest.mark.parametrize("kinds", ["list domain domain domain", "domain domain domain time", "domain domain domain list"])
@pytest.mark.parametrize("overlapping", [False, True])
def test_several_volumes_in_a_file_are_refused_by_what_they_are(tmp_path, kinds, overlapping):
    sizes = {"list": "2", "time": "2", "domain": "4"}
    directions = {"list": "none", "time": "none", "domain": ""}
    axes = iter(["(1,0,0)", "(0,1,0)", "(0,0,2)"])
    shown = [directions[kind] or next(axes) for kind in kinds.split()]
    header = [
        *("NRRD0005", "type: int16", "dimension: 4", "space: left-posterior-superior", "encoding: raw", "endian: little"),
        *(f"sizes: {' '.join(sizes[kind] for kind in kinds.split())}", f"kinds: {kinds}"),
        *(f"space directions: {' '.join(shown)}", "space origin: (0,0,0)"),
        *(["Segment0_ID:=Segment_1"] if overlapping else ["axis 0 index type:=numeric"]),
    ]
    path = tmp_path / "scan.seq.nrrd"
    path.write_bytes("\n".join(header).encode() + b"\n\n" + bytes(4**3 * 2 * 2))
    with pytest.raises(ScanError) as raised:
        check_itk(path)
    if overlapping:
        assert raised.value.what == "is a segmentation of 2 layers, since its structures overlap"
    else:
        named = "list" if "list" in kinds else "time"
        assert raised.value.what == f"is a sequence of 2 volumes (it has an axis of kind '{named}')"
        assert "Save each volume as a separate file" in raised.value.do
    assert [one.source for one in find_series(tmp_path).refused] == [str(path)]
    with pytest.raises(ScanError, match="is a segmentation of 2 layers"):
        check_itk(path.rename(tmp_path / "masks.seg.nrrd"))
