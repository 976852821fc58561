"""Proves that attention lies on the scan's own grid, at the right place in the patient, and the right way round in pictures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.image import imread
from torch import Tensor

from dagman.encoder.attention import Attention, write_attention
from dagman.encoder.encoder import Encoder
from dagman.errors import EncoderError
from dagman.method.networks import Network, ProjectorShape
from dagman.reports.figures.overlays import PLANES, describe_range, draw_overlays, find_body_mask, find_maximum, share_outside
from dagman.scans.affine import Affine
from dagman.scans.scan import Scan


class _BrightEncoder(Encoder):
    """Attends to each unit by its mean HU above -1000, so that what the maps must show is known."""

    def attend(self, x: Tensor, *, modality: str = "CT") -> Tensor:
        bright = F.avg_pool3d(x.float() + 1025, 16).clamp(min=1e-3)
        share = bright / bright.sum(dim=(2, 3, 4), keepdim=True)
        return torch.cat([share, torch.full_like(share, 1 / (share[0].numel() + 1))], dim=1)


@pytest.fixture
def bright(encoder: Encoder) -> Encoder:
    return _BrightEncoder(network=encoder.network, config=encoder.config)


def _rotate(degrees: float) -> np.ndarray:
    turn = np.eye(4)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn[:2, :2] = [[c, -s], [s, c]]
    return turn


_AFFINES = {
    "RAS": np.diag([5.0, 4.0, 6.0, 1.0]),
    "LPS": np.array([[-5.0, 0, 0, 90], [0, -4.0, 0, 70], [0, 0, 6.0, -300], [0, 0, 0, 1]]),
    "SAR": np.array([[0, 0, 6.0, -70], [0, 4.0, 0, 10], [5.0, 0, 0, 0], [0, 0, 0, 1]]),
    "oblique": _rotate(12) @ np.array([[-5.0, 0, 0, 40], [0, 4.0, 0, -20], [0, 0, 6.0, 5], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize("name", _AFFINES)
def test_maps_lie_on_the_scan_s_own_grid_and_show_a_blob_at_its_place(bright: Encoder, name: str, tmp_path: Path):
    affine = Affine(_AFFINES[name])
    shape = (40, 46, 34)
    hu = np.full(shape, -1000, dtype=np.int16)
    hu[3:-3, 3:-3, 3:-3] = -100
    blob = (12, 30, 20)
    near = [np.abs(np.arange(size) - at) <= 5 for size, at in zip(shape, blob, strict=True)]
    hu[np.ix_(*near)] = 2500
    scan = Scan(voxels=hu, affine=affine, modality="CT", patient="", source="scan.nii.gz")
    paths = write_attention(bright.attention(scan), scan, tmp_path)
    assert [path.name for path in paths] == ["attention_mean.nii.gz", "attention_head_1.nii.gz", "attention_head_2.nii.gz"]
    image = nib.load(paths[1])
    assert image.shape == shape
    assert image.get_data_dtype() == np.float32
    np.testing.assert_allclose(image.affine, affine.matrix, atol=1e-4)
    values = image.get_fdata()
    weights = np.where(values > 0.8 * values.max(), values, 0)
    found = [float((weights * places).sum() / weights.sum()) for places in np.indices(shape)]
    # Within half a unit (16 voxels of 4 mm); a map flipped along any axis would be further off.
    distance = np.linalg.norm(affine.to_world([found]) - affine.to_world([blob]))
    assert distance < 32
    for axis in range(3):
        flipped = list(blob)
        flipped[axis] = shape[axis] - 1 - flipped[axis]
        assert distance < np.linalg.norm(affine.to_world([found]) - affine.to_world([flipped]))


def test_uniform_attention_is_one_everywhere(bright: Encoder, body: Scan):
    attention = bright.attention(body)
    np.testing.assert_allclose(attention.head(2), 1.0, rtol=1e-5)
    assert attention.mean.shape == attention.prepared.shape
    with pytest.raises(EncoderError, match=r"there is no head 3\. Choose 1 to 2"):
        attention.head(3)


def test_attention_of_a_trained_shape_averages_to_about_one(encoder: Encoder, body: Scan):
    attention = encoder.attention(body)
    assert attention.heads.shape[0] == 2
    assert attention.stride == 16
    assert 0.8 < attention.mean.mean() < 1.2


def test_an_encoder_without_semantic_attention_says_so(encoder: Encoder, body: Scan):
    config = dataclasses.replace(encoder.config, semantic=None, method="smit")
    bare = Encoder(
        network=Network(config.shape, None, ProjectorShape(names=()), reconstruct=False), config=config, source="runs/smit"
    )
    with pytest.raises(EncoderError) as error:
        bare.attention(body)
    assert str(error.value) == (
        "runs/smit: has no semantic attention (its method is 'smit'). Use an encoder pretrained by dagman, attmask or mst."
    )


def test_slices_are_shown_in_radiological_convention():
    volume = np.zeros((10, 12, 14))
    marks = {"R": (9, 6, 7), "L": (0, 6, 7), "A": (5, 11, 7), "P": (5, 0, 7), "S": (5, 6, 13), "I": (5, 6, 0)}
    for plane in PLANES:
        left, right, top, bottom = plane.letters
        for letter in plane.letters:
            volume[:] = 0
            volume[marks[letter]] = 1
            picture = plane.cut(volume, marks[letter][plane.axis])
            row, column = np.unravel_index(picture.argmax(), picture.shape)
            expected = {
                left: column == 0,
                right: column == picture.shape[1] - 1,
                top: row == 0,
                bottom: row == picture.shape[0] - 1,
            }
            assert expected[letter], (plane.name, letter)


def test_the_maximum_is_found_and_the_middle_where_there_is_none():
    values = np.ones((4, 6, 8), dtype=np.float32)
    assert find_maximum(values) == (2, 3, 4)
    values[1, 5, 2] = 1.1
    assert find_maximum(values) == (1, 5, 2)
    body = np.ones(values.shape, dtype=bool)
    body[1] = False
    values[3, 2, 2] = 1.05
    assert find_maximum(values, body) == (3, 2, 2), "air may hold the most"


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [(0.93, 1.08, "0.93 to 1.08 of uniform"), (0.9991, 1.0004, "0.9991 to 1.0004 of uniform")],
)
def test_the_true_range_is_said(low: float, high: float, text: str):
    assert describe_range(np.array([low, 1, high], dtype=np.float32)) == text


def test_pictures_are_written_and_say_the_true_range(encoder: Encoder, body: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    from matplotlib.figure import Figure

    original = Figure.text

    def keep(self: Figure, x: float, y: float, text: str, **rest: object) -> object:
        said.append(text)
        return original(self, x, y, text, **rest)

    monkeypatch.setattr(Figure, "text", keep)
    attention = encoder.attention(body)
    paths = draw_overlays(attention, tmp_path, intensity=(-1000, 500))
    assert [path.name for path in paths] == ["overlay_maximum.png", "overlay_center.png", "overlay_heads.png"]
    for path in paths:
        picture = imread(path)
        assert picture.shape[1] > 1000
        # Colour on grey: the overlay is there.
        assert np.abs(picture[..., 0] - picture[..., 2]).max() > 0.2
    words = " ".join(said)
    assert f"True range: {describe_range(attention.mean)}" in words
    share, uniform = share_outside(attention)
    outside = ~find_body_mask(attention)
    assert share == pytest.approx(attention.mean[outside].sum() / attention.mean.sum())
    assert f"{share:.1%} of the attention lies outside the body (uniform: {uniform:.1%})" in words
    assert "CT window -1000 to 500 HU" in words
    assert "method dagman, 7 steps" in words


def test_constant_attention_can_be_drawn(bright: Encoder, body: Scan, tmp_path: Path):
    attention = bright.attention(body)
    flat = Attention(
        heads=torch.ones_like(attention.heads),
        stride=attention.stride,
        prepared=attention.prepared,
        tiling=attention.tiling,
        origin="tiny encoder",
    )
    assert all(path.exists() for path in draw_overlays(flat, tmp_path, intensity=(-1000, 500)))
