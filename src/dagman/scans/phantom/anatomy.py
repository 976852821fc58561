"""Anatomy of the reference body, in millimetres: x to the patient's right, y anterior, z superior (0 at vertebra L4).

The numbers here and in `abdomen`, `chest` and `skeleton` are centres, half-axes and levels in mm of an average adult. Patients
differ in their `Habitus`, and in the scaled and deformed coordinates of the canvas.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dagman.scans.phantom.canvas import Canvas

ORGANS: dict[str, int] = {
    "lung_left": 1,
    "lung_right": 2,
    "heart": 3,
    "aorta": 4,
    "liver": 5,
    "spleen": 6,
    "kidney_left": 7,
    "kidney_right": 8,
    "spine": 9,
    "stomach": 10,
    "trachea": 11,
    "gallbladder": 12,
    "inferior_vena_cava": 13,
    "ribs": 14,
}

# Half-widths, half-depths and centres of the vertebrae (mm) at these heights.
_LEVELS = (-60, 60, 130, 200, 270, 320, 350, 372, 400)
_BODY_WIDTH = (140, 142, 148, 153, 160, 168, 172, 165, 110)
_BODY_DEPTH = (98, 102, 106, 110, 104, 94, 84, 72, 60)
_CAVITY_WIDTH = (122, 126, 131, 131, 118, 94, 68, 34, 5)
_CAVITY_DEPTH = (80, 84, 88, 88, 80, 66, 50, 28, 4)
SPINE_Y = (-52, -52, -62, -70, -72, -66, -58, -50, -42)
MEDIASTINUM = (9, 9, 10, 13, 32, 20, 22, 20, 16)


@dataclass(frozen=True, kw_only=True)
class Habitus:
    """Properties of a patient's body."""

    fat: float
    "Thickness of the fat under the skin, mm."
    contrast: float
    "Amount of contrast agent, 0 to 1."
    emphysema: float
    "Severity, 0 to 1."
    marrow: float
    "HU of bone marrow."


@dataclass(frozen=True, kw_only=True)
class Walls:
    """The walls of the body, as values for each voxel (X Y Z, mm)."""

    muscle: np.ndarray
    "Distance to the outline of the muscles, negative inside."
    cavity: np.ndarray
    "Distance to the inner wall of chest and abdomen, negative inside."
    dome: np.ndarray
    "Height of the diaphragm at each voxel's x and y."


def find_walls(canvas: Canvas) -> Walls:
    """Compute the walls of the body on a canvas."""
    x, y, z = canvas.x, canvas.y, canvas.z
    muscle, _ = _oval_distance(x, y + 12, follow_levels(z, _BODY_WIDTH), follow_levels(z, _BODY_DEPTH), 2.5)
    cavity, ratio = _oval_distance(x, y + 1, follow_levels(z, _CAVITY_WIDTH), follow_levels(z, _CAVITY_DEPTH), 2.3)
    # Flat in the middle, steep at the wall, lower at the back; the right half is higher, above the liver.
    dome = np.float32(189) + 5 * np.sign(x) - 88 * np.minimum(ratio, 1) ** 4 + 0.12 * np.minimum(y, 0)
    return Walls(muscle=muscle, cavity=cavity, dome=dome)


def follow_levels(z: np.ndarray, values: tuple[int, ...]) -> np.ndarray:
    """Interpolate a dimension of the body, given at the levels, to each height `z` (mm)."""
    # By a table in steps of 0.5 mm, since np.interp over millions of voxels takes ten times as long.
    table = np.interp(np.arange(-100, 450, 0.5), _LEVELS, values).astype(np.float32)
    return table[np.clip((z + 100) * 2, 0, len(table) - 1).astype(np.int16)]


def _oval_distance(
    x: np.ndarray, y: np.ndarray, width: np.ndarray, depth: np.ndarray, power: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance to a superellipse in each slice, and the relative radius (0 at its centre, 1 on it)."""
    across, along = np.abs(x / width), np.abs(y / depth)
    ratio = np.maximum(across**power + along**power, 1e-6) ** (1 / power)
    steepness = np.hypot((across / ratio) ** (power - 1) / width, (along / ratio) ** (power - 1) / depth)
    return (ratio - 1) / steepness, ratio
