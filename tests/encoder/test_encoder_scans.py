"""Proves that an encoder does with a scan what it was trained with, or refuses it with a reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dagman.encoder.encoder import Encoder
from dagman.errors import DagmanError, EncoderError, ScanError, TableError
from dagman.model import to_unit_range
from dagman.scans.scan import Scan, reorient_scan
from dagman.store.preparation import Preparation, prepare_scan


def _refuse(call: Callable[[], object], error: type[DagmanError]) -> str:
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


def test_features_apply_the_intensity_range_inside(encoder: Encoder):
    hu = torch.randint(-1024, 1500, (2, 1, 32, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.int16)
    with torch.no_grad():
        expected = encoder.network.encoder(to_unit_range(hu, -1000, 500))
    for features, direct in zip(encoder.features(hu), expected, strict=True):
        torch.testing.assert_close(features, direct)
    torch.testing.assert_close(encoder.features(hu.float(), stages=(3,))[0], expected[2])


def test_attention_of_a_view_averages_to_that_of_the_method(encoder: Encoder):
    hu = torch.randint(-1000, 500, (1, 1, 32, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.int16)
    heads = encoder.attend(hu)
    assert heads.shape == (1, 2, 2, 2, 2)
    with torch.no_grad():
        expected = encoder.network.attend(to_unit_range(hu, -1000, 500))
    torch.testing.assert_close(heads.mean(dim=1).flatten(1), expected)


def test_half_precision_is_close(encoder: Encoder):
    hu = torch.zeros(1, 1, 32, 32, 32)
    half = dataclasses.replace(encoder, precision="bf16").features(hu)
    for features, exact in zip(half, encoder.features(hu), strict=True):
        assert features.dtype == torch.float32
        torch.testing.assert_close(features, exact, rtol=0.1, atol=0.1)


def test_another_shape_is_refused(encoder: Encoder):
    text = _refuse(lambda: encoder.features(torch.zeros(32, 32, 32)), EncoderError)
    assert text == "a view is B 1 X Y Z, not 32 x 32 x 32. Give x[None, None] for one volume."


def test_a_scan_is_prepared_as_in_training(encoder: Encoder, body: Scan):
    prepared = encoder.prepare(body)
    expected = prepare_scan(body, Preparation(spacing=4.0))
    np.testing.assert_array_equal(prepared.voxels, expected.voxels)
    assert encoder.prepare(prepared) is prepared


def test_a_scan_prepared_otherwise_is_refused(encoder: Encoder, body: Scan):
    prepared = prepare_scan(body, Preparation(spacing=2.5))
    text = _refuse(lambda: encoder.prepare(prepared), EncoderError)
    assert text == (
        "body.nii.gz: is prepared at 2.5 mm; this encoder was trained at 4 mm. "
        "Prepare a store with --spacing 4, or give the scans themselves."
    )


def test_mr_is_refused_by_an_encoder_trained_on_ct(encoder: Encoder, body: Scan):
    text = _refuse(lambda: encoder.prepare(dataclasses.replace(body, modality="MR")), EncoderError)
    assert text == "body.nii.gz: is MR; this encoder was trained on CT. Use an encoder trained on such scans."


def test_numbers_that_are_no_hu_are_refused(encoder: Encoder, body: Scan):
    values = ((body.voxels.astype(np.float32) + 1024) / 4).astype(np.int16)
    text = _refuse(lambda: encoder.embed(dataclasses.replace(body, voxels=values, modality="other")), ScanError)
    assert text.startswith("body.nii.gz: not in HU (values ")
    assert text.endswith("This encoder was trained on CT: give such a scan.")


def test_an_encoder_of_mr_takes_a_file_that_does_not_say_what_it_is(encoder: Encoder, body: Scan):
    taught = dataclasses.replace(encoder, config=dataclasses.replace(encoder.config, modalities=("MR",)))
    values = ((body.voxels.astype(np.float32) + 1024) / 8).astype(np.int16)
    unknown = dataclasses.replace(body, voxels=values, modality="other")
    whole = taught.embed(unknown).values
    assert np.isfinite(whole).all()
    # Scaled by percentiles: a scan twice as bright is the same to it, whole or in a crop.
    brighter = dataclasses.replace(unknown, voxels=(values * 2).astype(np.int16))
    np.testing.assert_allclose(taught.embed(brighter).values, whole, rtol=1e-3, atol=1e-3)
    crops = [taught.embed(scan, points=[(110, 100, 90)]).values for scan in (unknown, brighter)]
    np.testing.assert_allclose(crops[0], crops[1], rtol=1e-3, atol=1e-3)


def test_a_mask_is_pooled_alike_whatever_it_is_given_as(
    encoder: Encoder, body: Scan, write_image: Callable[..., Path], tmp_path: Path
):
    inside = np.zeros(body.shape, dtype=bool)
    inside[20:26, 10:14, 15:25] = True
    expected = encoder.embed(body, mask=inside).values
    stored = dataclasses.replace(body, voxels=inside.astype(np.int16), modality="other")
    np.testing.assert_array_equal(encoder.embed(body, mask=stored).values, expected)
    turned = stored.voxels[::-1].transpose(2, 0, 1)
    affine = body.affine.flip(0, body.shape[0]).permute((2, 0, 1)).matrix
    path = write_image(tmp_path / "mask.nii.gz", np.ascontiguousarray(turned), affine)
    np.testing.assert_array_equal(encoder.embed(body, mask=path).values, expected)


def test_a_map_of_chances_is_no_mask_whatever_it_is_given_as(
    encoder: Encoder, body: Scan, write_image: Callable[..., Path], tmp_path: Path
):
    chances = np.zeros(body.shape, dtype=np.float32)
    chances[20:26, 10:14, 15:25] = 0.43
    path = write_image(tmp_path / "mask.nii.gz", chances, body.affine.matrix)
    for given in (chances, dataclasses.replace(body, voxels=chances, modality="other"), path):
        text = _refuse(lambda given=given: encoder.embed(body, mask=given), TableError)
        assert "holds values that are not whole numbers, such as 0.43. Threshold it" in text


def test_the_axis_order_of_a_scan_changes_nothing(encoder: Encoder, body: Scan):
    turned = dataclasses.replace(
        body, voxels=np.flip(body.voxels, 1).transpose(2, 1, 0), affine=body.affine.flip(1, body.shape[1]).permute((2, 1, 0))
    )
    assert turned.affine.axis_codes == "SPR"
    np.testing.assert_array_equal(reorient_scan(turned).voxels, body.voxels)
    np.testing.assert_array_equal(encoder.embed(turned).values, encoder.embed(body).values)
    points = [(100.0, 90.0, 80.0), (60.0, 90.0, 80.0)]
    np.testing.assert_allclose(
        encoder.embed(turned, points=points).values, encoder.embed(body, points=points).values, rtol=1e-4, atol=1e-5
    )


def test_points_have_a_row_each(encoder: Encoder, body: Scan):
    embedding = encoder.embed(body, points=[(100, 90, 80), (110, 90, 80)])
    assert embedding.values.shape == (2, len(embedding.columns))
    assert embedding.column("x2_std_003").shape == (2,)
    with pytest.raises(KeyError, match="Nearest: x2_std_003"):
        embedding.column("x2_sdt_003")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"points": [(1000, 0, 0)]}, "the point (1000.0, 0.0, 0.0) mm lies outside the scan"),
        ({"mask": np.zeros((3, 3, 3), dtype=bool)}, "the mask has shape 3 x 3 x 3, the scan 44 x 40 x 36"),
        ({"mask": np.zeros((44, 40, 36), dtype=bool)}, "the mask is empty"),
        ({"mask": np.ones((44, 40, 36), dtype=bool), "points": [(1, 1, 1)]}, "both a mask and points were given"),
    ],
)
def test_what_lies_nowhere_is_refused(encoder: Encoder, body: Scan, given: dict, text: str):
    assert text in _refuse(lambda: encoder.embed(body, **given), ScanError)
