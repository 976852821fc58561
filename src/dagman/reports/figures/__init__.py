"""Pictures: each function returns a matplotlib `Figure`, and `encode_png` makes bytes of it."""

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
    "draw_plane",
    "draw_three_planes",
    "encode_png",
    "take_slice",
]
