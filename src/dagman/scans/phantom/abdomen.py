"""Paints the organs below the diaphragm."""

from __future__ import annotations

import itertools

import numpy as np

from dagman.scans.phantom.anatomy import ORGANS, Habitus, Walls
from dagman.scans.phantom.canvas import Canvas, ellipsoid_distance
from dagman.scans.phantom.texture import make_field
from dagman.scans.phantom.trees import grow_tree, paint_tree

_COLON = (
    (96, 5, -60),
    (98, 8, 60),
    (80, 45, 62),
    (0, 62, 45),
    (-80, 42, 78),
    (-104, -8, 108),
    (-106, -22, 60),
    (-104, -20, -60),
)


def paint_abdomen(canvas: Canvas, habitus: Habitus, walls: Walls, rng: np.random.Generator) -> None:
    """Paint bowel, paraspinal muscles, pancreas, stomach, liver, gallbladder, spleen, kidneys and veins."""
    contrast = habitus.contrast
    _paint_bowel(canvas, walls.cavity + 4, rng)
    for side in (-1, 1):
        canvas.paint_path([(side * 30, -40, 95), (side * 36, -42, 40), (side * 50, -36, -60)], [7, 17, 24], 55)
    canvas.paint_path(
        [(22, 6, 92), (12, 14, 84), (-10, 10, 96), (-36, -6, 108), (-62, -18, 118)], [13, 11, 9, 9, 8], 42 + 55 * contrast
    )
    under_wall = np.maximum(walls.cavity + 3, canvas.z - walls.dome + 3)
    _paint_stomach(canvas, contrast, under_wall, rng)
    _paint_liver(canvas, contrast, under_wall, rng)
    distance, box = canvas.ellipsoid((44, 44, 84), (14, 17, 25), tilt=15)
    canvas.paint(distance, 8, ORGANS["gallbladder"], box)
    distance, box = canvas.ellipsoid((-90, -36, 128), (33, 44, 52), turn=25)
    canvas.paint(np.maximum(distance, under_wall[box]), 48 + 68 * contrast, ORGANS["spleen"], box)
    _paint_kidneys(canvas, contrast, rng)
    vena_cava = [(16, -24, -60), (18, -24, 100), (21, -10, 160), (19, 6, 192), (18, 12, 216)]
    canvas.paint_path(vena_cava, [10, 11, 12, 13, 12], 42 + 105 * contrast, ORGANS["inferior_vena_cava"])
    canvas.paint_path([(6, -2, 85), (14, 0, 100), (28, 2, 118)], [6, 7, 6], 42 + 115 * contrast)


def _paint_bowel(canvas: Canvas, wall: np.ndarray, rng: np.random.Generator) -> None:
    for _ in range(26):
        middle = np.array([rng.uniform(-75, 75), rng.uniform(0, 62), rng.uniform(-70, 45)])
        half = rng.normal(0, 14, 3)
        distance, box = canvas.tube(middle - half, middle + half, rng.uniform(9, 14))
        distance = np.maximum(distance, wall[box])
        canvas.paint(distance, 45, box=box)
        canvas.paint(distance + 3, rng.choice([12, 25, 35, -850], p=[0.35, 0.3, 0.2, 0.15]), box=box)
    for start, end in itertools.pairwise(_COLON):
        distance, box = canvas.tube(start, end, rng.uniform(15, 20))
        # Haustra: the colon widens and narrows along its course.
        distance += 2.5 * np.sin((canvas.x[box] + canvas.y[box] + canvas.z[box]) / 6)
        distance = np.maximum(distance, wall[box])
        canvas.paint(distance, 40, box=box)
        stool = make_field(rng, distance.shape, 8 / canvas.spacing)
        low, high = sorted((start, end), key=lambda point: point[2])
        middle_y = np.interp(canvas.z[box], (low[2], high[2]), (low[1], high[1]))
        gas = canvas.y[box] - middle_y > rng.uniform(-2, 12)
        canvas.paint(distance + 3, np.where(gas, -920, 20 + 60 * np.minimum(stool, 0.5) - 250 * (stool > 1)), box=box)


def _paint_stomach(canvas: Canvas, contrast: float, under_wall: np.ndarray, rng: np.random.Generator) -> None:
    """Paint the stomach with fluid at the back and air in front, as the patient lies on the back."""
    distance, box = canvas.ellipsoid((-52, 26, 142), (44, 40, 42), tilt=-25)
    distance = np.maximum(distance, under_wall[box])
    canvas.paint(distance, 50 + 40 * contrast, ORGANS["stomach"], box)
    canvas.paint(distance + 4, np.where(canvas.y[box] > rng.uniform(25, 45), -960, rng.choice([15, 40])), box=box)


def _paint_liver(canvas: Canvas, contrast: float, under_wall: np.ndarray, rng: np.random.Generator) -> None:
    right, box = canvas.ellipsoid((68, 4, 132), (82, 84, 78), tilt=-12)
    x, y, z = canvas.x[box], canvas.y[box], canvas.z[box]
    right = np.maximum(right, 58 + 0.5 * np.maximum(60 - x, 0) - z)
    left = ellipsoid_distance((x - 4, y - 40, z - 158), (72, 40, 32))
    distance = np.maximum(np.minimum(right, left), np.maximum(under_wall[box], z - 186))
    # Leave room for the great vessels and the spine.
    distance = np.maximum(distance, 24 - np.hypot(x, y + 62))
    canvas.paint(distance, rng.normal(56, 4) + 52 * contrast, ORGANS["liver"], box)
    inside = np.argwhere(distance < -9)
    targets = inside[rng.choice(len(inside), size=min(70, len(inside)), replace=False)]
    tips = np.stack([grid[tuple(targets.T)] for grid in (x, y, z)], axis=1).astype(float)
    for root, own_tips in (((28, 2, 118), tips[::2]), ((20, -12, 172), tips[1::2])):
        tree = grow_tree(np.array(root, float), own_tips, step=10, tip_radius=1.6, root_radius=6.5)
        paint_tree(canvas, tree, 42 + 125 * contrast, within=ORGANS["liver"])


def _paint_kidneys(canvas: Canvas, contrast: float, rng: np.random.Generator) -> None:
    """Paint the kidneys: the right one is lower, shorter and rounder, the left one is longer and has a hump next to the spleen."""
    sides = {
        "kidney_left": ((-62, -40, 88), (27, 25, 58), 20.0, 12.0),
        "kidney_right": ((64, -36, 62), (31, 28, 47), -25.0, -14.0),
    }
    for name, (center, radii, turn, tilt) in sides.items():
        distance, box = canvas.ellipsoid(center, radii, turn=turn, tilt=tilt)
        inward = 1 if name == "kidney_left" else -1
        x, y, z = (grid[box] - at for grid, at in zip((canvas.x, canvas.y, canvas.z), center, strict=True))
        sinus = ellipsoid_distance((x - inward * 15, y - 6, z), (17, 10, 0.45 * radii[2]))
        if name == "kidney_left":
            distance = np.minimum(distance, ellipsoid_distance((x + 20, y, z - 8), (14, 15, 18)))
        cortex, medulla = 33 + 145 * contrast, 30 + 85 * contrast
        pyramids = np.clip(make_field(rng, distance.shape, 11 / canvas.spacing), 0, 1) * (distance < -6)
        canvas.paint(np.maximum(distance, -sinus), cortex + (medulla - cortex) * pyramids, ORGANS[name], box)
        canvas.paint(np.maximum(sinus + 5, distance + 1), 10 + 30 * contrast, box=box)
