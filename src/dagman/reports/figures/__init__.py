"""Figures: each function returns a matplotlib `Figure`, and `encode_png` converts it to PNG."""

from dagman.reports.figures.curves import Series, draw_curves
from dagman.reports.figures.encoding import encode_png
from dagman.reports.figures.planes import (
    AXIAL,
    CONVENTION,
    CORONAL,
    PLANES,
    SAGITTAL,
    Contour,
    Overlay,
    draw_plane,
    draw_three_planes,
    overlay_relative,
    take_slice,
)

__all__ = [
    "AXIAL",
    "CONVENTION",
    "CORONAL",
    "PLANES",
    "SAGITTAL",
    "Contour",
    "Overlay",
    "Series",
    "draw_curves",
    "draw_plane",
    "draw_three_planes",
    "encode_png",
    "overlay_relative",
    "take_slice",
]
