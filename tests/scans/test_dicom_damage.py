"""Whatever a DICOM file's tags hold, the file has its reason, and the others are read."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dagman.errors import ScanError
from dagman.scans.dicom import pixels
from dagman.scans.discovery import find_series
from dagman.scans.faults import OWN_FAULT, explain_faults
from dagman.scans.inspection import inspect_series
from dagman.scans.reading import read_scan, read_series


def spoil(path, tag, kind, value):
    """Write a tag of any type and content, as it would not pass pydicom's own checks."""
    with pydicom.config.disable_value_validation():
        data = pydicom.dcmread(path)
        data.pop(tag, None)
        data.add_new(tag, kind, value)
        data.save_as(path)


@pytest.mark.parametrize(
    ("tag", "kind", "value"),
    [
        (0x00281053, "LO", "one"),  # RescaleSlope
        (0x00281053, "DS", ["1", "2"]),
        (0x00281052, "LO", "1,5"),  # RescaleIntercept
        (0x00200032, "LO", ["a", "b", "c"]),  # ImagePositionPatient
        (0x00200032, "FD", [np.nan, 0.0, 0.0]),
        (0x00200037, "LO", ["1", "0", "0", "0", "x", "0"]),  # ImageOrientationPatient
        (0x00280030, "LO", ["1", "y"]),  # PixelSpacing
        (0x00280008, "LO", "many"),  # NumberOfFrames
        (0x00280010, "LO", "tall"),  # Rows
        (0x00280010, "US", [14, 14]),
        (0x00280010, "US", None),
        (0x00280100, "LO", "?"),  # BitsAllocated
        (0x52009230, "LO", "no sequence"),  # PerFrameFunctionalGroupsSequence
        (0x52009229, "LO", "no sequence"),  # SharedFunctionalGroupsSequence
        (0x00280002, "LO", "colours"),  # SamplesPerPixel
        (0x00280120, "LO", "padding"),  # PixelPaddingValue
    ],
)
def test_a_tag_of_another_type_costs_its_own_series_alone(tmp_path, write_dicom, ct, placement, tag, kind, value):
    write_dicom(tmp_path / "good", ct, placement)
    for path in write_dicom(tmp_path / "bad", ct, placement):
        spoil(path, tag, kind, value)
    found = find_series(tmp_path)
    reasons = [one.reason for one in map(inspect_series, found.series) if not one.accepted]
    reasons += [one.reason for one in found.refused]
    assert sum(inspect_series(one).accepted for one in found.series) == 1
    assert reasons
    assert all(OWN_FAULT not in reason and "Error" not in reason.partition("(")[0] for reason in reasons)


def make_enhanced(path, ct, transformation):
    """A multi-frame CT from a classic slice; `transformation` is its item of rescaling."""
    data = pydicom.dcmread(path)
    data.NumberOfFrames = ct.shape[2]
    data.PixelData = (ct.T.astype(np.int32) + 1024).astype("<u2").tobytes()
    shared = Dataset()
    shared.PlaneOrientationSequence = Sequence([Dataset()])
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence = Sequence([Dataset()])
    shared.PixelMeasuresSequence[0].PixelSpacing = [1, 1]
    shared.PixelValueTransformationSequence = Sequence([transformation])
    frames = []
    for index in range(ct.shape[2]):
        frame = Dataset()
        frame.PlanePositionSequence = Sequence([Dataset()])
        frame.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 2.0 * index]
        frames.append(frame)
    data.SharedFunctionalGroupsSequence, data.PerFrameFunctionalGroupsSequence = Sequence([shared]), Sequence(frames)
    del data.RescaleSlope, data.RescaleIntercept
    data.save_as(path)
    return path


@pytest.mark.parametrize("missing", ["RescaleSlope", "RescaleIntercept"])
def test_an_enhanced_file_without_rescaling_is_refused_by_name(tmp_path, write_dicom, ct, placement, missing):
    whole = Dataset()
    whole.RescaleSlope, whole.RescaleIntercept = 1, -1024
    path = make_enhanced(write_dicom(tmp_path, ct, placement, slices=[0])[0], ct, whole)
    assert np.array_equal(read_scan(path).voxels, ct)
    delattr(whole, missing)
    make_enhanced(write_dicom(tmp_path / "b", ct, placement, slices=[0])[0], ct, whole)
    with pytest.raises(ScanError, match=f"the functional group of frame 1 lacks {missing}. Export the series again"):
        read_scan(tmp_path / "b")


def test_pixels_of_another_size_than_the_header_claims_are_refused(tmp_path, write_dicom, edit_dicom, ct, placement):
    for path in write_dicom(tmp_path, ct, placement):
        edit_dicom(path, Columns=13)
    with pytest.raises(ScanError, match="holds 448 bytes of voxels, but its header claims 364"):
        read_scan(tmp_path)


def test_a_deflated_file_is_unpacked_within_bounds(tmp_path, write_dicom, ct, placement):
    paths = write_dicom(tmp_path, ct, placement)
    for path in paths:
        data = pydicom.dcmread(path)
        data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
        data.save_as(path)
    assert read_scan(tmp_path).shape == ct.shape
    start = paths[0].read_bytes()
    end = 144 + int.from_bytes(start[140:144], "little")
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    paths[0].write_bytes(start[:end] + packer.compress(bytes(200 << 20)) + packer.flush())
    with pytest.raises(ScanError, match="decompresses to more than 64 MiB from"):
        read_scan(paths[0])


def test_whatever_a_reader_raises_is_the_files_reason(tmp_path, write_dicom, ct, placement, monkeypatch):
    write_dicom(tmp_path, ct, placement)
    (series,) = find_series(tmp_path).series

    def fail(*arguments, **options):
        return np.empty((2, 2)).reshape(3)

    monkeypatch.setattr(pixels, "view_plain", lambda data: None)
    monkeypatch.setattr(pydicom.FileDataset, "pixel_array", property(fail))
    with pytest.raises(ScanError, match=r"pixel data are cut short or cannot be decoded\. "):
        read_series(series)


@pytest.mark.parametrize(
    ("fail", "said"),
    [
        (lambda: Dataset().StudyInstanceUID, "cannot be read (StudyInstanceUID is missing)"),
        (lambda: None.lower(), "cannot be read"),
        (lambda: int("x"), "cannot be read"),
        (lambda: struct.unpack("<I", b"ab"), "cannot be read"),
        (lambda: zlib.decompress(b"no"), "cannot be read (Error -3 while decompressing data: incorrect header check)"),
    ],
)
def test_a_librarys_words_about_a_file_are_kept_and_those_about_its_code_are_not(fail, said):
    with pytest.raises(ScanError) as raised, explain_faults("cannot be read", where="a.dcm", do="Export it again"):
        fail()
    assert raised.value.what == said


def test_a_fault_of_our_own_is_named_as_one():
    def fail() -> None:
        with explain_faults("cannot be read", where="a.dcm", do="Export it again"):
            # The line that fails is dagman's own.
            read_series(None)

    with pytest.raises(ScanError, match=rf"cannot be read \({OWN_FAULT}: AttributeError in reading\.py, line \d+\)"):
        fail()


def test_a_series_that_cannot_be_put_together_costs_itself_alone(tmp_path, write_dicom, ct, placement, monkeypatch):
    from dagman.scans.dicom import series

    bad = write_dicom(tmp_path / "bad", ct, placement)
    write_dicom(tmp_path / "good", ct, placement)
    split = series._split_series

    def fail(headers, any_modality):
        if headers[0].path in bad:
            np.empty((2, 2)).reshape(3)
        return split(headers, any_modality)

    monkeypatch.setattr(series, "_split_series", fail)
    found = find_series(tmp_path)
    assert len(found.series) == 1
    assert [one.reason.partition(":")[0] for one in found.refused] == ["its headers cannot be assembled into a volume"]
