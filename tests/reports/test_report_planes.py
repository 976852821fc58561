"""Proves that slices lie as a radiologist reads them, and that overlays and outlines lie where the volume does."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from dagman.reports.figures import (
    AXIAL,
    CORONAL,
    SAGITTAL,
    Contour,
    Overlay,
    draw_plane,
    draw_three_planes,
    encode_png,
    overlay_relative,
    take_slice,
)
from dagman.reports.style import new_figure
from dagman.reports.viewer.layers import AttentionLayer, describe_attention, state_attention
from dagman.scans.affine import Affine

_SHAPE = (20, 24, 28)


def _marked(x: int, y: int, z: int) -> np.ndarray:
    volume = np.zeros(_SHAPE)
    volume[x, y, z] = 1
    return volume


def _place(image: np.ndarray) -> tuple[str, str]:
    """Where the brightest pixel lies: (top or bottom, left or right)."""
    row, column = np.unravel_index(image.argmax(), image.shape)
    return "top" if row < image.shape[0] / 2 else "bottom", "left" if column < image.shape[1] / 2 else "right"


@pytest.mark.parametrize(
    ("plane", "index", "place"),
    [
        # x = 2 is the patient's left, y = 20 the front, z = 25 the head.
        (AXIAL, 25, ("top", "right")),
        (CORONAL, 20, ("top", "right")),
        (SAGITTAL, 2, ("top", "left")),
    ],
)
def test_the_patients_left_is_on_the_right_and_front_and_head_are_on_top(plane, index, place):
    assert _place(take_slice(_marked(2, 20, 25), plane, index)) == place


def _pixels(volume: np.ndarray, **options) -> np.ndarray:
    figure = new_figure(2.0, 2.4)  # as the slice, 40 x 48 mm, so that it fills the picture
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    draw_plane(axes, volume, (2, 2, 2), AXIAL, (10, 12, 14), letters=False, **options)
    return np.asarray(Image.open(io.BytesIO(encode_png(figure))).convert("RGB")).astype(int)


def test_what_is_drawn_has_the_same_sides_as_the_slice():
    volume = np.zeros(_SHAPE)
    volume[1:4, 18:22, 14] = 1
    assert _place(_pixels(volume).sum(axis=2)) == ("top", "right")


def test_a_coarse_overlay_and_a_coarse_outline_lie_where_the_volume_does():
    coarse = np.zeros((5, 6, 7))
    coarse[0, 5, 3] = 1
    overlay = Overlay(values=np.where(coarse > 0, 1.0, np.nan), label="", low=0, high=1, colors="Reds", opacity=1)
    red = _pixels(np.zeros(_SHAPE), overlay=overlay)
    assert _place(red[..., 0] - red[..., 1]) == ("top", "right")
    green = _pixels(np.zeros(_SHAPE), contours=[Contour(mask=coarse > 0, color="#00ff00", fill=0.5)])
    assert _place(green[..., 1] - green[..., 0]) == ("top", "right")
    assert (green.sum(axis=2) > 0).mean() < 0.1


def test_slices_of_unequal_voxels_keep_their_proportions_in_mm():
    figure = draw_three_planes(np.zeros((10, 20, 5)), (2, 1, 4))
    assert [axes.get_xlim() for axes in figure.axes] == [(0, 20), (0, 20), (0, 20)]
    assert [axes.get_ylim() for axes in figure.axes] == [(20, 0), (20, 0), (20, 0)]


@pytest.mark.parametrize("shape", [(1, 1, 1), (64, 64, 2), (3, 40, 40)])
def test_any_shape_can_be_drawn_with_all_there_is(shape):
    mask = np.zeros(shape, bool)
    figure = draw_three_planes(
        np.full(shape, -1000.0),
        (1, 1, 1),
        window=(-1000, 500),
        overlay=Overlay(values=np.full(shape, np.nan), label="nothing"),
        contours=[Contour(mask=mask, color="red", label="empty"), Contour(mask=~mask, color="blue", label="full", fill=0.2)],
        title="Odd",
    )
    assert encode_png(figure).startswith(b"\x89PNG")


def test_letters_colour_bar_and_legend_say_what_is_shown():
    figure = draw_three_planes(np.zeros(_SHAPE), (2, 2, 2), overlay=Overlay(values=np.ones(_SHAPE), label="times uniform"))
    texts = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert texts[0][:4] == ["R", "L", "A", "P"]
    assert texts[1][:4] == ["R", "L", "S", "I"]
    assert texts[2][:4] == ["A", "P", "S", "I"]
    assert figure.axes[3].get_ylabel() == "times uniform"


def test_the_same_picture_is_the_same_bytes():
    first, second = (encode_png(draw_three_planes(np.ones(_SHAPE), (1, 1, 1))) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("away", "reach", "said"), [(0.008, 0.25, "0.75 and 1.25 times uniform: a map"), (2.0, 2.0, "at 3.00 times uniform.")]
)
def test_colours_of_attention_show_a_nearly_uniform_map_as_uniform(away: float, reach: float, said: str):
    relative = np.full((1, 2, 2, 2), 1.0, dtype=np.float32)
    relative[0, 0, 0, 0] += away
    layer = AttentionLayer(heads=relative, affine=Affine(np.eye(4)))
    told = describe_attention(layer)
    assert overlay_relative(relative[0]).high == pytest.approx(1 + reach)
    assert (told["reach"], told["own"]) == pytest.approx((reach, away), rel=1e-4)
    assert said in state_attention(layer)
