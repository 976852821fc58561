"""Proves that `dagman attention --to dicom` writes the map of the NIfTI beside it, slice for slice, for DICOM alone."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from dagman.scans.affine import Affine


def test_the_map_is_that_of_the_nifti_and_other_scans_are_refused(
    encoder_folder: Path, body_hu, call_dagman, write_dicom, tmp_path
):
    pytest.importorskip("highdicom")
    matrix = np.array([[-5.0, 0, 0, 90], [0, -4.0, 0, 70], [0, 0, 6.0, -300], [0, 0, 0, 1]])
    hu = body_hu((30, 34, 20))
    write_dicom(tmp_path / "ct", hu, matrix, FrameOfReferenceUID=generate_uid())
    code, _, errors = call_dagman("attention", encoder_folder, tmp_path / "ct", "--out", tmp_path / "maps", "--to", "dicom")
    assert code == 0, errors
    data = pydicom.dcmread(tmp_path / "maps" / "attention_mean.dcm")
    image = nib.load(tmp_path / "maps" / "attention_mean.nii.gz")
    affine, values = Affine(image.affine), image.get_fdata()
    assert values.std() > 0
    for frame, pixels in zip(data.PerFrameFunctionalGroupsSequence, data.pixel_array, strict=True):
        position = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, dtype=float) * (-1, -1, 1)
        x, y, z = affine.to_voxel([position])[0]
        assert (x, y) == (pytest.approx(0, abs=1e-3), pytest.approx(0, abs=1e-3))
        np.testing.assert_array_equal(pixels.T, values[:, :, round(z)])
    assert "MRN-4711" not in str(data)

    nib.save(nib.Nifti1Image(hu, matrix), tmp_path / "ct.nii.gz")
    code, _, errors = call_dagman("attention", encoder_folder, tmp_path / "ct.nii.gz", "--out", tmp_path / "no", "--to", "dicom")
    assert code == 2
    assert errors == (
        f"dagman: {tmp_path / 'ct.nii.gz'}: is not DICOM, but a Parametric Map must refer to a DICOM series. "
        "Give the DICOM series, or omit --to dicom.\n"
    )
    assert not (tmp_path / "no").exists()
