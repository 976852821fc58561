"""A plain header is read past pydicom: the same values as pydicom gives, or pydicom itself reads it."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from pydicom.datadict import dictionary_keyword, dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dagman.errors import ScanError
from dagman.scans.dicom import headers
from dagman.scans.dicom.plain import header_values


def read_both(path):
    """The header as it is read, as pydicom alone reads it, and whether pydicom was needed."""
    plain = headers.read_plain_values(path.read_bytes()[: headers.QUICK_BYTES], path.stat().st_size)

    def read():
        try:
            return headers.read_header(path)
        except ScanError as error:
            return str(error)

    with pytest.MonkeyPatch.context() as patch:
        ours = read()
        patch.setattr(headers, "read_plain_values", lambda start, size: None)
        return ours, read(), plain is not None


@pytest.fixture
def slice_file(tmp_path, write_dicom, ct, placement):
    return write_dicom(tmp_path, ct, placement)[2]


def rewrite(path, syntax, **tags):
    with pydicom.config.disable_value_validation():
        data = pydicom.dcmread(path)
        for name, value in tags.items():
            setattr(data, name, value)
        data.file_meta.TransferSyntaxUID = syntax
        data.save_as(path, enforce_file_format=False)


def test_real_headers_are_read_as_pydicom_reads_them(data):
    files = [path for folder in ("dicom-quirks", "chest-dicom") for path in sorted((data / folder).rglob("*")) if path.is_file()]
    plain = 0
    for path in [path for path in files if headers.resembles_dicom(path)]:
        ours, pydicoms, was_plain = read_both(path)
        assert ours == pydicoms
        plain += was_plain
    assert plain > 100


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_odd_values_are_read_as_pydicom_reads_them(slice_file, syntax):
    inner = Dataset()
    inner.CodeValue, inner.CodeMeaning = "1", "x"
    odd = [
        {"PatientID": "Zoe  ", "ImageType": ["ORIGINAL", "", "AXIAL"], "EchoTime": "", "AcquisitionNumber": None},
        {"PatientID": "Zo\u00eb", "SpecificCharacterSet": "ISO_IR 100"},
        {"ImagePositionPatient": ["1e2", "-3.", ".5"], "AcquisitionTime": "101112.5"},
        {"ImagePositionPatient": ["1", "2"]},
        {"PixelSpacing": [" 1.0", "1.0 "]},
        {"TriggerTime": "12", "EchoNumbers": [1, 2], "NumberOfFrames": "1"},
        {"NominalPercentageOfCardiacPhase": 40.0},
        {"DiffusionBValue": 800.0},
        {"RequestAttributesSequence": Sequence([inner, Dataset(), inner])},
        {"ConvolutionKernel": ["Br40d", "3"], "Modality": "MR"},
        {"ProtocolName": "x" * 20_000},
    ]
    for tags in odd:
        rewrite(slice_file, syntax, **tags)
        ours, pydicoms, _ = read_both(slice_file)
        assert ours == pydicoms


def test_a_header_cut_anywhere_is_read_as_pydicom_reads_it(slice_file):
    whole = slice_file.read_bytes()
    for end in np.linspace(130, len(whole), 40).astype(int):
        slice_file.write_bytes(whole[:end])
        ours, pydicoms, _ = read_both(slice_file)
        assert ours == pydicoms


def test_tags_are_those_of_the_standard():
    slices = header_values._SLICE_VALUES
    assert {tag: (dictionary_keyword(tag), dictionary_VR(tag)) for tag in slices} == slices
    plain = {tag: name for tag, (name, _) in header_values._QUICK_VALUES.items()}
    wanted = {tag_for_keyword(name) for name in headers._TAGS}
    assert {tag: dictionary_keyword(tag) for tag in plain} == plain
    assert {tag: dictionary_VR(tag) for tag in plain} == {tag: kind for tag, (_, kind) in header_values._QUICK_VALUES.items()}
    assert plain.keys() | set(header_values._NOT_QUICK) == wanted


def test_what_is_not_plain_is_left_to_pydicom(slice_file):
    assert read_both(slice_file)[2]
    whole = slice_file.read_bytes()
    big = whole.replace(ExplicitVRLittleEndian.encode() + b"\0", ExplicitVRBigEndian.encode() + b"\0")
    assert big != whole
    assert headers.read_plain_values(big, len(big)) is None
    assert headers.read_plain_values(bytes(200), 200) is None
