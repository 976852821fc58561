"""Encode figures as PNG, reproducibly."""

from __future__ import annotations

from io import BytesIO

from matplotlib.figure import Figure


def encode_png(figure: Figure) -> bytes:
    """Encode a figure as PNG without the version of matplotlib, so that equal figures give equal bytes."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
