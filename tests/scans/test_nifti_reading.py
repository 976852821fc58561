"""NIfTI: values, scaling and placement are nibabel's; what is damaged or no volume is refused in one line."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest

from dagman.errors import ScanError
from dagman.scans.nifti import check_nifti, read_nifti
from dagman.scans.reading import read_scan


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.int32, np.float32, np.float64, ">i2"])
def test_values_and_affine_are_those_of_nibabel(tmp_path, write_nifti, placement, suffix, dtype):
    values = (np.random.default_rng(0).random((5, 6, 7)) * 200).astype(dtype)
    path = write_nifti(tmp_path / f"a{suffix}", values, placement)
    image = nibabel.load(path)
    raw = read_nifti(path)
    assert np.array_equal(raw.values, np.asanyarray(image.dataobj))
    assert np.array_equal(raw.affine.matrix, image.affine)
    assert raw.notes == ()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_slope_and_intercept_of_the_header_are_applied(tmp_path, suffix):
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_slope_inter(2.0, -1024.0)
    stored = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    image = nibabel.Nifti1Image(stored, np.eye(4), header)
    # nibabel would divide by the slope it was given; the stored numbers are wanted.
    image.header.set_slope_inter(2.0, -1024.0)
    nibabel.save(image, tmp_path / f"a{suffix}")
    truth = nibabel.load(tmp_path / f"a{suffix}").get_fdata()
    scan = read_scan(tmp_path / f"a{suffix}", modality="MR")
    assert scan.voxels.dtype == np.int16
    assert np.array_equal(scan.voxels, truth)


def test_a_sheared_grid_is_a_tilted_gantry(tmp_path, write_nifti, ct):
    matrix = np.eye(4)
    matrix[0, 2] = 0.3
    with pytest.raises(ScanError, match=r"its axes are 16\.7 degrees from perpendicular"):
        read_scan(write_nifti(tmp_path / "a.nii.gz", ct, matrix), tilt="refuse")
    assert read_scan(tmp_path / "a.nii.gz").affine.skew < 1e-6
    matrix[0, 2] = 0.005
    assert read_scan(write_nifti(tmp_path / "b.nii.gz", ct, matrix)).affine.matrix == pytest.approx(matrix)


@pytest.mark.parametrize(
    ("place", "content"),
    [
        (slice(70, 72), struct.pack("<h", 99)),  # datatype
        (slice(112, 120), struct.pack("<ff", 1, np.nan)),  # scl_slope, scl_inter
        (slice(108, 112), struct.pack("<f", 1e30)),  # vox_offset
        (slice(280, 284), struct.pack("<f", np.nan)),  # srow_x
    ],
)
def test_headers_of_rubbish_are_refused_in_silence(tmp_path, write_nifti, ct, place, content, capfd):
    path = write_nifti(tmp_path / "a.nii.gz", ct)
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[place] = content
    path.write_bytes(gzip.compress(raw))
    with pytest.raises(ScanError, match=r"is not a NIfTI file|is truncated or damaged|affine contains NaN"):
        read_scan(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("kind", "place", "layout"), [(nibabel.Nifti1Image, 108, "<f"), (nibabel.Nifti2Image, 168, "<q")])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("offset", [0, 16, -8])
def test_the_header_is_never_read_as_voxels(tmp_path, ct, kind, place, layout, suffix, offset):
    nibabel.save(kind(ct, np.eye(4)), tmp_path / "whole.nii")
    raw = bytearray((tmp_path / "whole.nii").read_bytes())
    raw[place : place + struct.calcsize(layout)] = struct.pack(layout, offset)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(raw) if suffix == ".nii.gz" else raw)
    with pytest.raises(ScanError, match=rf"its voxels would begin at byte {offset}, within the header"):
        read_scan(path)


def test_a_size_that_no_memory_holds_is_said_and_not_called_damage(tmp_path, write_nifti, ct, monkeypatch):
    path = write_nifti(tmp_path / "a.nii", ct)

    def refuse(*arguments):
        raise MemoryError

    monkeypatch.setattr(np, "fromfile", refuse)
    with pytest.raises(ScanError, match=r"does not fit in memory\. Check the size in its header"):
        read_scan(path)


def test_odd_but_readable_headers_are_read_in_silence(tmp_path, write_nifti, ct, capfd):
    path = write_nifti(tmp_path / "a.nii", ct)
    raw = bytearray(path.read_bytes())
    raw[123] = 7  # A unit that the standard does not know.
    raw[254:256] = struct.pack("<h", 48)  # A form code that it does not know.
    path.write_bytes(raw)
    assert np.array_equal(read_scan(path).voxels, ct)
    assert capfd.readouterr() == ("", "")


def test_the_qform_counts_where_there_is_no_sform_and_neither_is_noted(tmp_path, ct, placement):
    image = nibabel.Nifti1Image(ct, placement)
    image.set_sform(None, code=0)
    image.set_qform(placement, code=1)
    nibabel.save(image, tmp_path / "q.nii.gz")
    assert read_scan(tmp_path / "q.nii.gz").affine.matrix == pytest.approx(placement, abs=1e-5)
    image.set_qform(None, code=0)
    nibabel.save(image, tmp_path / "n.nii.gz")
    assert read_scan(tmp_path / "n.nii.gz").notes == (
        "the file does not state the patient's orientation (no sform, no qform); its axes were assumed to be L A S",
    )


def test_a_header_in_metres_is_read_in_mm(tmp_path, ct):
    image = nibabel.Nifti1Image(ct, np.diag([0.001, 0.001, 0.002, 1]))
    image.header.set_xyzt_units("meter")
    nibabel.save(image, tmp_path / "a.nii.gz")
    assert read_scan(tmp_path / "a.nii.gz").spacing == pytest.approx((1, 1, 2))


@pytest.mark.parametrize("kind", [nibabel.Nifti2Image, nibabel.Nifti1Image])
def test_trailing_axes_of_one_are_dropped(tmp_path, ct, kind):
    nibabel.save(kind(ct[..., None, None], np.eye(4)), tmp_path / "a.nii.gz")
    assert np.array_equal(read_scan(tmp_path / "a.nii.gz").voxels, ct)


@pytest.mark.parametrize(
    ("voxels", "text"),
    [
        (np.zeros((5, 6), np.int16), "is one slice (5 x 6). Give a volume of at least 2 slices."),
        (np.zeros((5, 6, 1), np.int16), "is one slice (5 x 6 x 1). Give a volume of at least 2 slices."),
        (np.zeros((5, 6, 7, 2), np.int16), "has 4 axes (5 x 6 x 7 x 2). Give one 3D volume per file."),
        (np.zeros((5, 6, 7), np.complex64), "holds complex numbers. Give the magnitude image."),
        (
            np.zeros((5, 6, 7), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])),
            "holds RGB colours, not one value per voxel. Give the scan itself, not a rendering.",
        ),
    ],
)
def test_what_is_no_volume_is_refused_from_its_header(tmp_path, write_nifti, voxels, text):
    path = write_nifti(tmp_path / "a.nii.gz", voxels)
    with pytest.raises(ScanError) as caught:
        check_nifti(path)
    assert str(caught.value) == f"{path}: {text}"


@pytest.mark.parametrize("spacing", [0.0, -2.0, np.nan, np.inf])
def test_a_spacing_that_is_none_is_refused_and_not_mended_in_silence(tmp_path, write_nifti, ct, spacing):
    path = write_nifti(tmp_path / "a.nii", ct)
    damaged = bytearray(path.read_bytes())
    damaged[84:88] = np.float32(spacing).tobytes()
    path.write_bytes(damaged)
    with pytest.raises(ScanError, match=r"the spacing is 1 x .* x 1 mm; it must be above 0 on every axis\. Correct the header"):
        check_nifti(path)


def test_a_singular_sform_is_refused(tmp_path, ct):
    image = nibabel.Nifti1Image(ct, np.eye(4))
    image.header["srow_x"] = image.header["srow_y"]
    image.header["sform_code"] = 1
    image.header["vox_offset"] = 352
    path = tmp_path / "a.nii"
    with open(path, "wb") as file:
        file.write(image.header.binaryblock + b"\0\0\0\0" + ct.tobytes(order="F"))
    with pytest.raises(ScanError, match=r"it must be above 0 on every axis|two axes are parallel"):
        read_nifti(path)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_truncated_file_is_refused(tmp_path, write_nifti, suffix, share):
    voxels = np.random.default_rng(0).integers(-1000, 1000, (40, 40, 20)).astype(np.int16)
    path = write_nifti(tmp_path / f"a{suffix}", voxels)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ScanError, match="is truncated or damaged") as caught:
        read_nifti(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_one_damaged_byte_of_compressed_voxels_is_noticed(tmp_path, write_nifti):
    voxels = np.random.default_rng(0).integers(-1000, 1000, (40, 40, 20)).astype(np.int16)
    path = write_nifti(tmp_path / "a.nii.gz", voxels)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ScanError, match="is truncated or damaged"):
        read_nifti(path)


def test_a_file_of_several_gzip_members_is_read_whole(tmp_path, write_nifti, ct):
    path = write_nifti(tmp_path / "a.nii", ct)
    raw = path.read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(raw[:1000]) + gzip.compress(raw[1000:]))
    assert np.array_equal(read_scan(tmp_path / "b.nii.gz").voxels, ct)


def write_declared(path, voxels, declared, behind=b""):
    """A NIfTI file of all `voxels` whose header declares another shape."""
    header = nibabel.Nifti1Image(np.zeros(declared, voxels.dtype), np.eye(4)).header
    header["vox_offset"] = 352
    raw = header.binaryblock + bytes(4) + voxels.tobytes(order="F") + behind
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("declared", [(13, 14, 9), (16, 14, 8), (16, 13, 9)])
def test_more_voxels_than_the_header_claims_are_refused_and_both_sizes_named(tmp_path, ct, name, declared):
    path = write_declared(tmp_path / name, ct, declared)
    text = f"holds {ct.nbytes} bytes of voxels, but its header claims {np.prod(declared) * 2}: a size or type in it is wrong"
    with pytest.raises(ScanError, match=text):
        read_nifti(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_zeros_that_fill_up_a_block_are_allowed_behind_the_voxels_and_nothing_else_is(tmp_path, ct, name):
    assert np.array_equal(read_nifti(write_declared(tmp_path / name, ct, ct.shape, bytes(200))).values, ct)
    for behind in (b"\0\1", bytes(512), bytes(14 * 9 * 2)):
        with pytest.raises(ScanError, match="but its header claims 4032"):
            read_nifti(write_declared(tmp_path / name, ct, ct.shape, behind))


def test_a_bomb_is_unpacked_no_further_than_its_header_claims(tmp_path):
    path = write_declared(tmp_path / "a.nii", np.zeros((2, 2, 2), np.int16), (20, 20, 20))
    bomb = path.read_bytes() + bytes(300 << 20)
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(bomb, 1))
    del bomb
    tracemalloc.start()
    with pytest.raises(ScanError, match="but its header claims 16000"):
        read_nifti(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20


def test_a_size_that_compressed_data_cannot_hold_is_refused_before_memory_is_taken(tmp_path, ct):
    path = write_declared(tmp_path / "a.nii.gz", ct, (2, 2, 2))
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[42:48] = struct.pack("<3h", 30000, 30000, 30000)
    path.write_bytes(gzip.compress(raw))
    with pytest.raises(ScanError, match=r"its header claims 5\d{13} bytes, which \d+ compressed bytes cannot hold"):
        read_nifti(path)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.nii", b"", "is empty or cut off in its header"),
        ("a.nii.gz", b"", "is empty or cut off in its header"),
        ("a.nii.gz", b"this is text", "is not a NIfTI file"),
        ("a.nii", b"this is text " * 100, "is not a NIfTI file"),
        ("a.nii.gz", gzip.compress(b"\0" * 1000, mtime=0), "is not a NIfTI file"),
    ],
)
def test_what_is_no_nifti_is_refused_under_its_name(tmp_path: Path, name, content, text):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ScanError, match=text) as caught:
        check_nifti(tmp_path / name)
    assert caught.value.do


@pytest.mark.parametrize(("value", "count", "kind"), [(np.nan, 3, "f4"), (np.inf, 3, "f4"), (np.nan, 2, "f8"), (-1e300, 1, "f8")])
def test_voxels_that_are_no_numbers_are_counted_and_refused(tmp_path, write_nifti, ct, value, count, kind):
    voxels = ct.astype(kind)
    voxels[0, 0, :count] = value
    path = write_nifti(tmp_path / "a.nii.gz", voxels)
    with pytest.raises(ScanError, match=f"{count} of 2016 voxels are NaN or infinite"):
        read_scan(path)


def test_two_placements_that_disagree_are_noted_with_both(tmp_path, ct, placement):
    image = nibabel.Nifti1Image(ct, placement)
    image.set_sform(placement, code=1)
    image.set_qform(placement, code=1)
    nibabel.save(image, tmp_path / "same.nii")
    assert read_nifti(tmp_path / "same.nii").notes == ()
    other = placement.copy()
    other[2, 3] += 7.5
    image.set_qform(other, code=1)
    nibabel.save(image, tmp_path / "moved.nii")
    read = read_nifti(tmp_path / "moved.nii")
    assert read.affine.matrix == pytest.approx(placement)
    assert read.notes == (
        "sform (0.8 0 0 -30 0 0.9 0 12 0 0 2.5 100) and qform (0.8 0 0 -30 0 0.9 0 12 0 0 2.5 108) "
        "place voxels up to 7.5 mm apart; the sform was used",
    )


def test_a_spacing_that_disagrees_with_the_placement_is_noted_with_both(tmp_path, ct, placement):
    image = nibabel.Nifti1Image(ct, placement)
    image.set_sform(placement, code=1)
    image.header["qform_code"] = 0
    image.header["pixdim"][3] = 5
    nibabel.save(image, tmp_path / "a.nii")
    read = read_nifti(tmp_path / "a.nii")
    assert read.affine.spacing == pytest.approx((0.8, 0.9, 2.5))
    assert read.notes == ("the sform's spacing is 0.8 x 0.9 x 2.5, pixdim's is 0.8 x 0.9 x 5; the sform was used",)
