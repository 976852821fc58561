"""Figures and arrays to PNG bytes, the same bytes for the same picture."""

from __future__ import annotations

from io import BytesIO

from matplotlib.figure import Figure


def encode_png(figure: Figure) -> bytes:
    """PNG of a figure; without the library's version in it, so that equal figures are equal bytes."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
