"""One chest and abdomen, painted in reference millimetres: x to the patient's right, y anterior, z superior (0 at L4).

The numbers below are anatomy: centres, half-axes and levels in mm of an average adult. What differs between patients is in
`Habitus`, and in the bent coordinates of the canvas.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dagman.scans.phantom.canvas import Canvas, ellipsoid_distance
from dagman.scans.phantom.texture import make_field
from dagman.scans.phantom.trees import Tree, grow_tree

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

_LEVELS = (-60, 60, 130, 200, 270, 320, 350, 372, 400)
_BODY_WIDTH = (140, 142, 148, 153, 160, 168, 172, 165, 110)
_BODY_DEPTH = (98, 102, 106, 110, 104, 94, 84, 72, 60)
_CAVITY_WIDTH = (122, 126, 131, 131, 118, 94, 68, 34, 5)
_CAVITY_DEPTH = (80, 84, 88, 88, 80, 66, 50, 28, 4)
_SPINE_Y = (-52, -52, -62, -70, -72, -66, -58, -50, -42)


@dataclass(frozen=True, kw_only=True)
class Habitus:
    """What a patient brings: fat under the skin (mm), contrast medium (0 none to 1), emphysema (0 to 1), HU of the trabecular bone."""

    fat: float
    contrast: float
    emphysema: float
    bone: float


def paint_body(canvas: Canvas, habitus: Habitus, rng: np.random.Generator) -> np.ndarray:
    """Paint a whole body on a canvas of air; returns each voxel's depth under the skin (mm, negative outside)."""
    muscle, cavity, cavity_ratio = _find_walls(canvas)
    skin = muscle - habitus.fat * (1 + 0.35 * np.clip(canvas.y / 100, -1, 1) * (canvas.z < 200))
    canvas.paint(skin, 40)
    canvas.paint(skin + 2.5, -105)
    marbling = make_field(rng, canvas.hu.shape, 9 / canvas.spacing)
    canvas.paint(muscle, np.where(marbling > 1.5, -40, 52))
    canvas.paint(np.abs(muscle + 9) - 1.2, -85)
    canvas.paint(cavity - 9, -80)
    canvas.paint(np.maximum(np.abs(cavity - 4) - 4, canvas.z - 360), 45)
    canvas.paint(cavity, -98)
    _paint_bowel(canvas, rng)
    dome = np.where(canvas.x > 0, 194, 184) - 88 * np.clip(cavity_ratio, 0, 1) ** 3.5 - 0.12 * np.maximum(-canvas.y, 0)
    _paint_abdomen(canvas, habitus, cavity, dome, rng)
    _paint_chest(canvas, habitus, cavity, dome, rng)
    _paint_skeleton(canvas, habitus, cavity)
    return -skin


def _find_walls(canvas: Canvas) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    def follow(values: tuple[int, ...]) -> np.ndarray:
        return np.interp(canvas.z, _LEVELS, values).astype(np.float32)

    muscle = _oval_distance(canvas.x, canvas.y + 12, follow(_BODY_WIDTH), follow(_BODY_DEPTH), 2.5)[0]
    cavity, ratio = _oval_distance(canvas.x, canvas.y + 1, follow(_CAVITY_WIDTH), follow(_CAVITY_DEPTH), 2.3)
    return muscle, cavity, ratio


def _oval_distance(
    x: np.ndarray, y: np.ndarray, width: np.ndarray, depth: np.ndarray, power: float
) -> tuple[np.ndarray, np.ndarray]:
    """Distance to a superellipse in each slice, and the ratio (0 in its middle, 1 on it)."""
    across, along = np.abs(x / width), np.abs(y / depth)
    ratio = np.maximum(across**power + along**power, 1e-6) ** (1 / power)
    steepness = np.hypot((across / ratio) ** (power - 1) / width, (along / ratio) ** (power - 1) / depth)
    return (ratio - 1) / steepness, ratio


def _paint_bowel(canvas: Canvas, rng: np.random.Generator) -> None:
    for _ in range(26):
        middle = np.array([rng.uniform(-75, 75), rng.uniform(0, 62), rng.uniform(-70, 45)])
        way = rng.normal(0, 14, 3)
        distance, box = canvas.tube(middle - way, middle + way, rng.uniform(9, 14))
        canvas.paint(distance, 45, box=box)
        canvas.paint(distance + 3, rng.choice([12, 25, 35, -850], p=[0.35, 0.3, 0.2, 0.15]), box=box)
    colon = [
        (96, 5, -60),
        (98, 8, 60),
        (80, 45, 62),
        (0, 62, 45),
        (-80, 42, 78),
        (-104, -8, 108),
        (-106, -22, 60),
        (-104, -20, -60),
    ]
    for start, end in zip(colon, colon[1:], strict=False):
        distance, box = canvas.tube(start, end, rng.uniform(15, 20))
        # Haustra: the wall swells and narrows along the way.
        wave = 2.5 * np.sin((canvas.x[box] + canvas.y[box] + canvas.z[box]) / 6)
        canvas.paint(distance + wave, 40, box=box)
        stool = make_field(rng, distance.shape, 8 / canvas.spacing)
        gas_above = (canvas.y[box] - np.interp(canvas.z[box], sorted((start[2], end[2])), (start[1], end[1]))) > rng.uniform(-2, 12)
        canvas.paint(distance + wave + 3, np.where(gas_above, -920, 20 + 60 * np.minimum(stool, 0.5) - 250 * (stool > 1)), box=box)


def _paint_abdomen(canvas: Canvas, habitus: Habitus, cavity: np.ndarray, dome: np.ndarray, rng: np.random.Generator) -> None:
    c = habitus.contrast
    x, y, z = canvas.x, canvas.y, canvas.z
    under_wall = np.maximum(cavity + 3, z - dome + 3)
    for side in (-1, 1):
        canvas.paint_path([(side * 30, -40, 95), (side * 36, -42, 40), (side * 50, -36, -60)], [7, 17, 24], 55)
    canvas.paint_path([(22, 6, 92), (12, 14, 84), (-10, 10, 96), (-36, -6, 108), (-62, -18, 118)], [13, 11, 9, 9, 8], 42 + 55 * c)

    distance, box = canvas.ellipsoid((-52, 26, 142), (44, 40, 42), tilt=-25)
    distance = np.maximum(distance, under_wall[box])
    canvas.paint(distance, 50 + 40 * c, ORGANS["stomach"], box)
    canvas.paint(distance + 4, np.where(y[box] > rng.uniform(25, 45), -960, rng.choice([15, 40])), box=box)

    right, box = canvas.ellipsoid((68, 4, 132), (82, 84, 78), tilt=-12)
    right = np.maximum(right, 58 + 0.5 * np.maximum(60 - x[box], 0) - z[box])
    left = ellipsoid_distance((x[box] - 4, y[box] - 40, z[box] - 158), (72, 40, 32))
    distance = np.maximum(np.minimum(right, left), np.maximum(under_wall[box], z[box] - 186))
    # The caudate and the porta leave room for the great vessels and the spine.
    distance = np.maximum(distance, 24 - np.hypot(x[box], y[box] + 62))
    liver_hu = rng.normal(56, 4) + 52 * c
    canvas.paint(distance, liver_hu, ORGANS["liver"], box)
    inside = np.argwhere(distance < -9)
    goals = inside[rng.choice(len(inside), size=min(70, len(inside)), replace=False)]
    places = np.stack([grid[box][tuple(goals.T)] for grid in (x, y, z)], axis=1)
    for tree_root in ((28, 2, 118), (20, -12, 172)):
        paint_tree(
            canvas,
            grow_tree(np.array(tree_root, float), places[::2], step=10, tip_radius=1.6, root_radius=6.5),
            42 + 125 * c,
            only="liver",
        )
        places = places[1:]
    canvas.paint(*_swap(canvas.ellipsoid((44, 44, 84), (14, 17, 25), tilt=15), 8, ORGANS["gallbladder"]))

    distance, box = canvas.ellipsoid((-90, -36, 128), (33, 44, 52), turn=25)
    canvas.paint(np.maximum(distance, under_wall[box]), 48 + 68 * c, ORGANS["spleen"], box)
    _paint_kidneys(canvas, c, rng)

    vena_cava = [(16, -24, -60), (18, -24, 100), (21, -10, 160), (19, 6, 192), (18, 12, 216)]
    canvas.paint_path(vena_cava, [10, 11, 12, 13, 12], 42 + 105 * c, ORGANS["inferior_vena_cava"])
    canvas.paint_path([(6, -2, 85), (14, 0, 100), (28, 2, 118)], [6, 7, 6], 42 + 115 * c)


def _paint_kidneys(canvas: Canvas, contrast: float, rng: np.random.Generator) -> None:
    """The right one is lower, shorter and rounder; the left one is longer and has a hump at the spleen."""
    sides = {
        "kidney_left": ((-62, -40, 88), (27, 25, 58), 20.0, 12.0),
        "kidney_right": ((64, -36, 62), (31, 28, 47), -25.0, -14.0),
    }
    for name, (center, radii, turn, tilt) in sides.items():
        distance, box = canvas.ellipsoid(center, radii, turn=turn, tilt=tilt)
        inward = 1 if center[0] < 0 else -1
        sinus_center = (center[0] + inward * 15, center[1] + 6, center[2])
        x, y, z = (grid[box] - at for grid, at in zip((canvas.x, canvas.y, canvas.z), sinus_center, strict=True))
        sinus = ellipsoid_distance((x, y, z), (17, 10, 0.45 * radii[2]))
        if name == "kidney_left":
            hump = ellipsoid_distance((canvas.x[box] + 82, canvas.y[box] + 40, canvas.z[box] - 96), (14, 15, 18))
            distance = np.minimum(distance, hump)
        else:
            distance = np.maximum(distance, 0.4 * (canvas.z[box] - center[2]) - 0.9 * (canvas.x[box] - center[0]) * inward - 34)
        cortex, medulla = 33 + 145 * contrast, 30 + 85 * contrast
        pyramids = np.clip(make_field(rng, distance.shape, 11 / canvas.spacing), 0, 1) * (distance < -6)
        whole = np.maximum(distance, -sinus)
        canvas.paint(whole, cortex + (medulla - cortex) * pyramids, ORGANS[name], box)
        canvas.paint(np.maximum(sinus + 5, distance + 1), 10 + 30 * contrast, box=box)


def _paint_chest(canvas: Canvas, habitus: Habitus, cavity: np.ndarray, dome: np.ndarray, rng: np.random.Generator) -> None:
    x, y, z = canvas.x, canvas.y, canvas.z
    spine_y = np.interp(z, _LEVELS, _SPINE_Y)
    beside = (
        13 + 20 * np.exp(-(((z - 258) / 36) ** 2)) + 8 * np.exp(-(((z - 345) / 30) ** 2)) - 10 * np.exp(-(((y - 62) / 25) ** 2))
    )
    around_spine = 27 - np.hypot(x, (y - spine_y) * 0.95)
    base = np.full_like(z, 1) * np.where(y > 0, 0.2, 0.05)
    parenchyma = -845 - 45 * habitus.emphysema - 0.35 * y * (1 - 0.4 * habitus.emphysema) + 8 * base
    bullae = make_field(rng, z.shape, 16 / canvas.spacing)
    parenchyma = np.where(bullae > 2.3 - 1.3 * habitus.emphysema, parenchyma * 0.5 - 480, parenchyma)
    lungs = {
        "lung_right": np.maximum.reduce([cavity + 1, beside - x, z - 372, dome - z, around_spine]),
        "lung_left": np.maximum.reduce([cavity + 1, beside + 2 + x, z - 369, dome - z, around_spine]),
    }
    for name, distance in lungs.items():
        canvas.paint(distance, parenchyma, ORGANS[name])
    _paint_lung_trees(canvas, habitus, lungs, rng)
    _paint_heart(canvas, habitus)
    windpipe = [(0, -6, 400), (0, -16, 284)]
    for path, radii in (
        (windpipe, [10, 9]),
        ([windpipe[1], (27, -20, 264), (42, -22, 250)], [8, 7, 5]),
        ([windpipe[1], (-38, -20, 258), (-50, -24, 248)], [7, 6, 4]),
    ):
        canvas.paint_path(path, [r + 2 for r in radii], 20)
        canvas.paint_path(path, radii, -990, ORGANS["trachea"])
    canvas.paint_path([(-4, -32, 400), (-5, -38, 300), (-8, -36, 230), (-18, -22, 188), (-36, 0, 172)], [8, 8, 8, 9, 9], 38)


def _paint_lung_trees(canvas: Canvas, habitus: Habitus, lungs: dict[str, np.ndarray], rng: np.random.Generator) -> None:
    for name, hilum in (("lung_right", (30.0, -10.0, 258.0)), ("lung_left", (-32.0, -12.0, 264.0))):
        distance = lungs[name]
        inside = np.argwhere(distance < -4)
        goals = inside[rng.choice(len(inside), size=min(330, len(inside)), replace=False)]
        places = np.stack([grid[tuple(goals.T)] for grid in (canvas.x, canvas.y, canvas.z)], axis=1).astype(float)
        root = np.array(hilum)
        vessels = grow_tree(root, places[:300], step=11, tip_radius=0.75, root_radius=7.5)
        airways = grow_tree(root + [0, -9, -6], places[300:], step=14, tip_radius=1.5, root_radius=5.0)
        paint_tree(canvas, airways, 0, only=name, wider=1.2)
        paint_tree(canvas, airways, -985, only=name)
        paint_tree(canvas, vessels, 40 + 110 * habitus.contrast, only=name)


def paint_tree(canvas: Canvas, tree: Tree, hu: float, *, only: str, wider: float = 0.0) -> None:
    """Paint a tree within one organ; branches thinner than a voxel cover only their share of it."""
    label = ORGANS[only]
    for start, end, radius in zip(tree.starts, tree.ends, tree.radii + wider, strict=True):
        distance, box = canvas.tube(start, end, radius)
        cover = np.where(canvas.organs[box] == label, min(1.0, 2.2 * radius / canvas.spacing), 0)
        canvas.paint(distance, hu, box=box, cover=cover)


def _paint_heart(canvas: Canvas, habitus: Habitus) -> None:
    blood = 42 + 120 * habitus.contrast
    fat, box = canvas.ellipsoid((-16, 26, 220), (66, 50, 56), turn=22, tilt=-28)
    above = 176 - 0.12 * canvas.x[box] - canvas.z[box]
    canvas.paint(np.maximum(fat, above - 2), -95, box=box)
    canvas.organs[box][(np.maximum(fat, above - 2) < 0) & (canvas.organs[box] <= ORGANS["lung_right"])] = 0
    heart, box = canvas.ellipsoid((-16, 24, 221), (60, 44, 50), turn=22, tilt=-28)
    heart = np.maximum(heart, 176 - 0.12 * canvas.x[box] - canvas.z[box])
    canvas.paint(heart, 48 + 55 * habitus.contrast, ORGANS["heart"], box)
    for center, radii in (
        ((-38, 12, 210), (24, 17, 22)),
        ((-20, 44, 212), (26, 14, 24)),
        ((22, 24, 226), (20, 22, 26)),
        ((-8, -6, 240), (30, 15, 18)),
    ):
        distance, where = canvas.ellipsoid(center, radii, turn=22, tilt=-20)
        canvas.paint(distance, np.where(canvas.organs[where] == ORGANS["heart"], blood, canvas.hu[where]), box=where)
    venous = 42 + 110 * habitus.contrast
    for path, radii in (
        ([(20, 10, 246), (22, 6, 312), (30, 8, 345), (50, 10, 372)], [10, 9, 8, 8]),
        ([(22, 8, 322), (-10, 22, 334), (-45, 12, 368)], [8, 8, 8]),
        ([(-16, 34, 250), (-16, 14, 272)], [15, 14]),
        ([(-14, 12, 272), (18, -6, 268), (36, -8, 258)], [12, 11, 9]),
        ([(-16, 12, 274), (-38, -12, 272)], [12, 10]),
    ):
        canvas.paint_path(path, radii, venous)
    arch = [
        (-4, 16, 246),
        (10, 22, 280),
        (6, 18, 304),
        (-4, 4, 316),
        (-16, -22, 314),
        (-24, -42, 298),
        (-26, -50, 270),
        (-25, -50, 230),
    ]
    down = [(-18, -42, 170), (-12, -32, 120), (-7, -24, 60), (-5, -22, 0), (-5, -22, -60)]
    radii = [16, 16, 15, 14, 13.5, 13, 12.5, 12, 11.5, 11, 10, 9, 9]
    canvas.paint_path(arch + down, radii, 42 + 135 * habitus.contrast, ORGANS["aorta"])
    for branch in ([(-2, 6, 314), (12, 6, 345), (22, 4, 375)], [(-8, -6, 316), (-12, -6, 390)], [(-16, -20, 314), (-22, -18, 390)]):
        canvas.paint_path(branch, [6, 5, 5], 42 + 135 * habitus.contrast)


def _paint_skeleton(canvas: Canvas, habitus: Habitus, cavity: np.ndarray) -> None:
    x, y, z = canvas.x, canvas.y, canvas.z
    # Ribs fall towards the front: in the tilted height each is one ring of the wall.
    tilted = z + 0.45 * y
    ring = np.hypot((cavity - 4.5) * 1.0, (np.mod(tilted, 27) - 13.5) * 0.9 * 0.62) - 4.2
    arch = np.where(y > 15, 190 - 0.9 * np.abs(x) - z, 88 - z)
    ribs = np.maximum.reduce([ring, arch, z - 366, 12 - np.abs(x), -y - 82 - 0 * z])
    cartilage = (y > 25) & (np.abs(x) < 75)
    canvas.paint(ribs, np.where(cartilage, 110, 480), ORGANS["ribs"])
    canvas.paint(np.maximum(ribs + 1.8, np.where(cartilage, 99, -99)), habitus.bone)
    plate = np.maximum.reduce([np.abs(cavity - 6) - 5.5, np.abs(x) - 17 - 0.06 * (z - 270), 205 - z, z - 335, -y])
    canvas.paint(plate, 380)
    canvas.paint(plate + 2, habitus.bone)
    for side in (-1, 1):
        canvas.paint_path([(side * 14, 62, 338), (side * 70, 50, 356), (side * 130, 12, 374)], [8, 6, 7], 420)
        blade, box = canvas.ellipsoid((side * 112, -76, 318), (46, 5, 52), turn=side * 38)
        canvas.paint(blade, 430, box=box)
        canvas.paint(*_swap(canvas.ellipsoid((side * 148, -30, 372), (23, 23, 24)), 420, 0))
        canvas.paint(*_swap(canvas.ellipsoid((side * 148, -30, 372), (20, 20, 21)), habitus.bone, 0))
    _paint_spine(canvas, habitus)


def _paint_spine(canvas: Canvas, habitus: Habitus) -> None:
    spine, box = ORGANS["spine"], canvas.box_around((0, -90, -80), (0, -62, 420), reach=52)
    x, z = canvas.x[box], canvas.z[box]
    y = canvas.y[box] - np.interp(z, _LEVELS, _SPINE_Y)
    size = np.interp(z, (0, 200, 400), (1.15, 1.0, 0.72))
    height = np.abs(np.mod(z, 27) - 13.5)
    # The body's waist is narrower than its plates.
    column = ellipsoid_distance((x / size, y / size), (20.5, 15.5)) + 1.5 - 1.5 * (height / 13.5) ** 2
    for side in (-1, 1):
        for part in (
            np.hypot(x - side * 15 * size, (y + 24) * 0.9) - 6,
            segment_plate(np.abs(x - side * 26 * size) - 13, np.abs(y + 27) - 3.5),
        ):
            canvas.paint(np.maximum(part, height - 9), 380, spine, box)
    arch = np.abs(np.hypot(x, y + 24) - 12.5) - 3
    canvas.paint(np.maximum(arch, height - 10), 420, spine, box)
    canvas.paint(np.maximum.reduce([np.abs(x) - 2.8, np.abs(y + 47) - 12, height - 9 - 0.1 * y]), 400, spine, box)
    canvas.paint(np.hypot(x, y + 24) - 8.5, 25, box=box)
    canvas.paint(column, np.where(height > 11.2, 75, 460), spine, box)
    canvas.paint(np.maximum(column + 2.2, height - 9.5), habitus.bone, spine, box)


def segment_plate(across: np.ndarray, along: np.ndarray) -> np.ndarray:
    """Distance to a box in a slice from the distances to its two pairs of sides."""
    return np.maximum(across, along)


def _swap(
    shape: tuple[np.ndarray, tuple[slice, slice, slice]], hu: float, label: int
) -> tuple[np.ndarray, float, int, tuple[slice, slice, slice]]:
    return shape[0], hu, label, shape[1]
