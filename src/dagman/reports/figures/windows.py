"""The usual display windows of CT, and the choice of one for an image."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

WindowName = Literal["lung", "soft tissue", "bone"]
Window = tuple[float, float]
WINDOWS: dict[WindowName, Window] = {"lung": (-1350.0, 150.0), "soft tissue": (-160.0, 240.0), "bone": (-500.0, 1300.0)}
"""HU shown as black and white: level -600, 40 and 400, width 1500, 400 and 1800."""
LUNG, SOFT_TISSUE, BONE = WINDOWS.values()
_LUNG_LIES_BELOW = -500.0
_MUCH_LUNG = 0.25
"""Fraction of lung or air voxels from which an image gets a lung window."""


def name_window(voxels: NDArray) -> WindowName:
    """Choose a window for an image in HU: lung if a quarter or more of it is lung or air, otherwise soft tissue."""
    return "lung" if float(np.mean(voxels < _LUNG_LIES_BELOW)) >= _MUCH_LUNG else "soft tissue"


def choose_window(voxels: NDArray, *, hounsfield: bool) -> Window:
    """Choose the intensities shown as black and white: a usual window for CT, otherwise the image's own range."""
    if hounsfield:
        return WINDOWS[name_window(voxels)]
    low, high = np.percentile(voxels, (1, 99.5))
    return float(low), float(max(high, low + 1))
