"""Paints the bones: ribs, sternum, clavicles, scapulae, heads of the humeri, spine."""

from __future__ import annotations

import numpy as np

from dagman.scans.phantom.anatomy import ORGANS, SPINE_Y, Habitus, Walls, follow_levels
from dagman.scans.phantom.canvas import Canvas, ellipsoid_distance


def paint_skeleton(canvas: Canvas, habitus: Habitus, walls: Walls) -> None:
    """Paint all bones."""
    _paint_ribs(canvas, habitus, walls)
    _paint_sternum(canvas, habitus, walls)
    for side in (-1, 1):
        canvas.paint_path([(side * 14, 62, 338), (side * 70, 50, 356), (side * 130, 12, 374)], [8, 6, 7], 420)
        distance, box = canvas.ellipsoid((side * 112, -76, 318), (46, 5, 52), turn=side * 38)
        canvas.paint(distance, 430, box=box)
        distance, box = canvas.ellipsoid((side * 148, -30, 372), (23, 23, 24))
        canvas.paint(distance, 420, box=box)
        canvas.paint(distance + 3, habitus.marrow, box=box)
    _paint_spine(canvas, habitus)


def _paint_ribs(canvas: Canvas, habitus: Habitus, walls: Walls) -> None:
    """Paint the ribs, which slope down towards the front: with a height tilted alike, each is a ring within the chest wall."""
    x, y, z = canvas.x, canvas.y, canvas.z
    height = np.abs(np.mod(z + 0.45 * y, 27) - 13.5)
    ring = np.hypot(walls.cavity - 4.5, 0.56 * height) - 4.2
    # The rib cage ends at the costal arch in front, and at the twelfth rib at the back.
    below = np.where(y > 15, 190 - 0.9 * np.abs(x), 88) - z
    ribs = np.maximum.reduce([ring, below, z - 366, 12 - np.abs(x)])
    cartilage = (y > 25) & (np.abs(x) < 75)
    canvas.paint(ribs, np.where(cartilage, np.float32(110), np.float32(480)), ORGANS["ribs"])
    canvas.paint(np.where(cartilage, 99, ribs + 1.8), habitus.marrow)


def _paint_sternum(canvas: Canvas, habitus: Habitus, walls: Walls) -> None:
    box = canvas.box_around((0, 95, 200), (0, 45, 340), reach=25)
    x, y, z = canvas.x[box], canvas.y[box], canvas.z[box]
    width = 15 + 0.06 * (z - 270) + 3 * (z > 305)
    plate = np.maximum.reduce([np.abs(walls.cavity[box] - 6) - 5.5, np.abs(x) - width, 205 - z, z - 335, -y])
    canvas.paint(plate, 380, box=box)
    canvas.paint(plate + 2, habitus.marrow, box=box)


def _paint_spine(canvas: Canvas, habitus: Habitus) -> None:
    spine, box = ORGANS["spine"], canvas.box_around((0, -90, -80), (0, -62, 420), reach=52)
    x, z = canvas.x[box], canvas.z[box]
    y = canvas.y[box] - follow_levels(z, SPINE_Y)
    size = (1.15 - 0.43 * np.clip(z / 400, 0, 1)).astype(np.float32)
    # Distance to the middle of each vertebra along z; the gaps are the discs.
    height = np.abs(np.mod(z, 27) - 13.5)
    for side in (-1, 1):
        joint = np.hypot(x - side * 15 * size, (y + 24) * 0.9) - 6
        wing = np.maximum(np.abs(x - side * 26 * size) - 13, np.abs(y + 27) - 3.5)
        canvas.paint(np.maximum(np.minimum(joint, wing), height - 9), 380, spine, box)
    canal = np.hypot(x, y + 24)
    canvas.paint(np.maximum(np.abs(canal - 12.5) - 3, height - 10), 420, spine, box)
    canvas.paint(np.maximum.reduce([np.abs(x) - 2.8, np.abs(y + 47) - 12, height - 9 - 0.1 * y]), 400, spine, box)
    canvas.paint(canal - 8.5, 25, box=box)
    # A vertebra is narrower at its waist than at its end plates.
    column = ellipsoid_distance((x / size, y / size), (20.5, 15.5)) + 1.5 - 1.5 * (height / 13.5) ** 2
    canvas.paint(column, np.where(height > 11.2, np.float32(75), np.float32(460)), spine, box)
    canvas.paint(np.maximum(column + 2.2, height - 9.5), habitus.marrow, spine, box)
