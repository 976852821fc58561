"""The preprocessing that an encoder needs, as data and as text; every export includes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dagman.encoder.encoder import Encoder
from dagman.scans.scan import Modality
from dagman.store.preparation import SCALED_RANGE

FILE = "preprocessing.json"
STRIDE = 32
"""Sides of the network's input are multiples of this number of voxels."""


def describe_preprocessing(encoder: Encoder) -> dict[str, Any]:
    """Describe the preprocessing of an encoder as plain values; lengths in mm, intensities in HU (MR: stored values)."""
    config = encoder.config
    modality: Modality = "MR" if config.modalities == ("MR",) else "CT"
    low, high = SCALED_RANGE if modality == "MR" else (config.low, config.high)
    pad = encoder.pad_value(modality)
    return {
        "orientation": config.orientation,
        "axes": config.axes,
        "spacing_mm": [config.spacing] * 3,
        "modalities": list(config.modalities),
        "intensity": {"low": low, "high": high, "to": [0.0, 1.0], "clip": True},
        "padding": {"value": pad, "scaled": (min(max(pad, low), high) - low) / (high - low), "multiple_of": STRIDE},
        "smallest_side": config.view,
        "crop_to_body": config.crop_body,
        "resampling": "triangle kernel as wide as the wider of the two spacings, linear where it is made finer",
        "sentence": state_preprocessing(encoder),
    }


def state_preprocessing(encoder: Encoder) -> str:
    """Describe the preprocessing of an encoder in sentences."""
    config = encoder.config
    window = f"HU from {config.low:g} to {config.high:g} become 0 to 1, and values beyond are clipped"
    if config.modalities == ("MR",):
        window = "the 0.5 and 99.5 percentile of each scan become 0 and 1, and values beyond are clipped"
    crop = " is cropped to the body," if config.crop_body else ""
    return (
        f"A {' or '.join(config.modalities)} scan is turned to RAS+ order (the index grows to the patient's right, anterior and "
        f"superior), is resampled to {config.spacing:g} mm with anti-aliasing,{crop} and {window}. It is padded with air around "
        f"its middle until no side is shorter than {config.view} voxels and all are multiples of {STRIDE}."
    )


def write_preprocessing(folder: Path, encoder: Encoder) -> None:
    """Write `preprocessing.json` to the folder of an export."""
    (folder / FILE).write_text(json.dumps(describe_preprocessing(encoder), indent=2) + "\n", encoding="utf-8")
