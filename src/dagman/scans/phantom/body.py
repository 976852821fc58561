"""Paints a whole body from the skin inwards; later parts overwrite earlier ones."""

from __future__ import annotations

import numpy as np

from dagman.scans.phantom.abdomen import paint_abdomen
from dagman.scans.phantom.anatomy import Habitus, find_walls
from dagman.scans.phantom.canvas import Canvas
from dagman.scans.phantom.chest import paint_chest
from dagman.scans.phantom.skeleton import paint_skeleton
from dagman.scans.phantom.texture import make_field


def paint_body(canvas: Canvas, habitus: Habitus, rng: np.random.Generator) -> np.ndarray:
    """Paint a body on a canvas of air; return each voxel's depth under the skin (mm, X Y Z, negative outside)."""
    walls = find_walls(canvas)
    # There is more fat on the belly than on the back.
    belly = np.clip(canvas.y / 100, -1, 1) * (canvas.z < 200)
    skin = walls.muscle - np.float32(habitus.fat) * (1 + np.float32(0.35) * belly)
    canvas.paint(skin, 40)
    canvas.paint(skin + 2.5, -105)
    marbling = make_field(rng, canvas.hu.shape, 9 / canvas.spacing)
    canvas.paint(walls.muscle, np.where(marbling > 1.5, np.float32(-40), np.float32(52)))
    # One layer of fat between the layers of muscle, and one around the cavity.
    canvas.paint(np.abs(walls.muscle + 9) - 1.2, -85)
    canvas.paint(walls.cavity - 9, -80)
    canvas.paint(np.maximum(np.abs(walls.cavity - 4) - 4, canvas.z - 360), 45)
    canvas.paint(walls.cavity, -98)
    paint_abdomen(canvas, habitus, walls, rng)
    paint_chest(canvas, habitus, walls, rng)
    paint_skeleton(canvas, habitus, walls)
    return -skin
