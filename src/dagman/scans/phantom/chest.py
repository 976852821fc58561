"""Paints the organs above the diaphragm: lungs with vessels and airways, heart, great vessels, trachea, oesophagus."""

from __future__ import annotations

import numpy as np

from dagman.scans.phantom.anatomy import MEDIASTINUM, ORGANS, SPINE_Y, Habitus, Walls, follow_levels
from dagman.scans.phantom.canvas import Canvas
from dagman.scans.phantom.texture import make_field
from dagman.scans.phantom.trees import grow_tree, paint_tree

_CHAMBERS = (
    ((-38, 12, 210), (24, 17, 22)),
    ((-20, 44, 212), (26, 14, 24)),
    ((22, 24, 226), (20, 22, 26)),
    ((-8, -6, 240), (30, 15, 18)),
)
# Points and radii: superior vena cava, left brachiocephalic vein, pulmonary trunk, right and left pulmonary artery.
_VEINS = (
    (((20, 10, 246), (22, 6, 312), (30, 8, 345), (50, 10, 372)), (10, 9, 8, 8)),
    (((22, 8, 322), (-10, 22, 334), (-45, 12, 368)), (8, 8, 8)),
    (((-16, 34, 250), (-16, 14, 272)), (15, 14)),
    (((-14, 12, 272), (18, -6, 268), (36, -8, 258)), (12, 11, 9)),
    (((-16, 12, 274), (-38, -12, 272)), (12, 10)),
)
_AORTA = (
    (-4, 16, 246),
    (10, 22, 280),
    (6, 18, 304),
    (-4, 4, 316),
    (-16, -22, 314),
    (-24, -42, 298),
    (-26, -50, 270),
    (-25, -50, 230),
    (-18, -42, 170),
    (-12, -32, 120),
    (-7, -24, 60),
    (-5, -22, 0),
    (-5, -22, -60),
)
_AORTA_RADII = (16, 16, 15, 14, 13.5, 13, 12.5, 12, 11.5, 11, 10, 9, 9)
_BRANCHES = (
    ((-2, 6, 314), (12, 6, 345), (22, 4, 375)),
    ((-8, -6, 316), (-10, -6, 352), (-12, -6, 390)),
    ((-16, -20, 314), (-20, -20, 350), (-22, -18, 390)),
)
_AIRWAYS = (
    (((0, -6, 400), (0, -16, 284)), (10, 9)),
    (((0, -16, 284), (27, -20, 264), (42, -22, 250)), (8, 7, 5)),
    (((0, -16, 284), (-38, -20, 258), (-50, -24, 248)), (7, 6, 4)),
)
_OESOPHAGUS = ((-4, -32, 400), (-5, -38, 300), (-8, -36, 230), (-18, -22, 188), (-36, 0, 172))
_VESSEL_TIPS, _AIRWAY_TIPS = 480, 24


def paint_chest(canvas: Canvas, habitus: Habitus, walls: Walls, rng: np.random.Generator) -> None:
    """Paint all organs of the chest."""
    lungs = _paint_lungs(canvas, habitus, walls, rng)
    for name, hilum in (("lung_right", (30.0, -10.0, 258.0)), ("lung_left", (-32.0, -12.0, 264.0))):
        _paint_lung_trees(canvas, habitus, name, lungs[name], np.array(hilum), rng)
    _paint_heart(canvas, habitus)
    _paint_great_vessels(canvas, habitus)
    for path, radii in _AIRWAYS:
        canvas.paint_path(path, [r + 2 for r in radii], 20)
        canvas.paint_path(path, radii, -990, ORGANS["trachea"])
    canvas.paint_path(_OESOPHAGUS, [8, 8, 8, 9, 9], 38)


def _paint_lungs(canvas: Canvas, habitus: Habitus, walls: Walls, rng: np.random.Generator) -> dict[str, np.ndarray]:
    x, y, z = canvas.x, canvas.y, canvas.z
    # The lungs almost touch in front of the great vessels, and keep a distance to the spine.
    middle = follow_levels(z, MEDIASTINUM) - 10 * np.maximum(1 - np.abs(y - 62) / 40, 0)
    spine = 27 - np.hypot(x, y - follow_levels(z, SPINE_Y))
    outside = np.maximum.reduce([walls.cavity + 1, walls.dome - z, spine])
    lungs = {
        "lung_right": np.maximum.reduce([outside, middle - x, z - 372]),
        "lung_left": np.maximum.reduce([outside, middle + 2 + x, z - 369]),
    }
    # The lung is denser at the back, where blood collects in a supine patient.
    hu = -845 - 45 * habitus.emphysema - 0.35 * (1 - 0.4 * habitus.emphysema) * y
    holes = make_field(rng, z.shape, 16 / canvas.spacing) > 2.3 - 1.3 * habitus.emphysema
    hu[holes] = 0.5 * hu[holes] - 480
    for name, distance in lungs.items():
        canvas.paint(distance, hu, ORGANS[name])
    return lungs


def _paint_lung_trees(
    canvas: Canvas, habitus: Habitus, name: str, lung: np.ndarray, hilum: np.ndarray, rng: np.random.Generator
) -> None:
    inside = np.argwhere(lung < -4)
    targets = inside[rng.choice(len(inside), size=min(_VESSEL_TIPS + _AIRWAY_TIPS, len(inside)), replace=False)]
    tips = np.stack([grid[tuple(targets.T)] for grid in (canvas.x, canvas.y, canvas.z)], axis=1).astype(float)
    airways = grow_tree(hilum + np.array((0.0, -9.0, -6.0)), tips[:_AIRWAY_TIPS], step=14, tip_radius=1.1, root_radius=4.5)
    vessels = grow_tree(hilum, tips[_AIRWAY_TIPS:], step=11, tip_radius=0.8, root_radius=8.0)
    paint_tree(canvas, airways, -250, within=ORGANS[name], wider=1.2)
    paint_tree(canvas, airways, -985, within=ORGANS[name])
    paint_tree(canvas, vessels, 40 + 110 * habitus.contrast, within=ORGANS[name])


def _paint_heart(canvas: Canvas, habitus: Habitus) -> None:
    blood = 42 + 120 * habitus.contrast
    fat, box = canvas.ellipsoid((-16, 26, 220), (66, 50, 56), turn=22, tilt=-28)
    floor = 176 - 0.12 * canvas.x[box] - canvas.z[box]
    fat = np.maximum(fat, floor - 2)
    canvas.paint(fat, -95, box=box)
    organs = canvas.organs[box]
    organs[(fat < 0) & (organs <= ORGANS["lung_right"])] = 0
    # The heart and its block lie within those of the fat.
    heart, box = canvas.ellipsoid((-16, 24, 221), (60, 44, 50), turn=22, tilt=-28)
    heart = np.maximum(heart, 176 - 0.12 * canvas.x[box] - canvas.z[box])
    canvas.paint(heart, 48 + 55 * habitus.contrast, ORGANS["heart"], box)
    for center, radii in _CHAMBERS:
        distance, box = canvas.ellipsoid(center, radii, turn=22, tilt=-20)
        canvas.paint(distance, blood, box=box, cover=canvas.organs[box] == ORGANS["heart"])


def _paint_great_vessels(canvas: Canvas, habitus: Habitus) -> None:
    arterial, venous = 42 + 135 * habitus.contrast, 42 + 110 * habitus.contrast
    for path, radii in _VEINS:
        canvas.paint_path(path, radii, venous)
    canvas.paint_path(_AORTA, _AORTA_RADII, arterial, ORGANS["aorta"])
    for branch in _BRANCHES:
        canvas.paint_path(branch, [6, 5, 5], arterial)
