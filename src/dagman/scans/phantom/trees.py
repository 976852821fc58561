"""Grows branching trees of vessels and airways towards points in the tissue that they supply."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dagman.scans.phantom.canvas import Canvas


@dataclass(frozen=True, kw_only=True)
class Tree:
    """The segments of a tree: `starts` and `ends` N 3 (mm), `radii` N (mm)."""

    starts: np.ndarray
    ends: np.ndarray
    radii: np.ndarray


def grow_tree(root: np.ndarray, targets: np.ndarray, *, step: float, tip_radius: float, root_radius: float) -> Tree:
    """Grow a tree by connecting each target, nearest to the root first, to the closest point of the tree so far.

    A segment's radius follows from the number of tips that it supplies, by the cube law of Murray (1926).

    Args:
        root: where the tree starts, mm.
        targets: N 3, the tips, mm.
        step: length of segments in mm; branches can leave only between segments.
        tip_radius: radius at the tips, mm.
        root_radius: largest radius, mm.
    """
    order = np.argsort(((targets - root) ** 2).sum(1))
    points = np.empty((1 + sum(int(np.linalg.norm(g - root) // step) + 2 for g in targets), 3))
    points[0] = root
    from_root = np.zeros(len(points))
    parents = [-1]
    for target in targets[order]:
        count = len(parents)
        gap = np.sqrt(((points[:count] - target) ** 2).sum(1))
        # The distance from the root counts a little, since branches would otherwise run back towards the root.
        parent = int(np.argmin(gap + 0.25 * from_root[:count]))
        pieces = max(1, int(gap[parent] // step))
        origin = points[parent].copy()
        for piece in range(1, pieces + 1):
            here = len(parents)
            points[here] = origin + (target - origin) * piece / pieces
            from_root[here] = from_root[parent] + gap[parent] * piece / pieces
            parents.append(here - 1 if piece > 1 else parent)
    count = len(parents)
    tips = np.ones(count)
    has_child = np.zeros(count, dtype=bool)
    has_child[[p for p in parents if p >= 0]] = True
    tips[has_child] = 0
    for node in range(count - 1, 0, -1):
        tips[parents[node]] += tips[node]
    radii = np.minimum(tip_radius * np.cbrt(tips), root_radius)
    return Tree(starts=points[parents[1:]], ends=points[1:count], radii=radii[1:])


def paint_tree(canvas: Canvas, tree: Tree, hu: float, *, within: int, wider: float = 0.0) -> None:
    """Paint a tree within the organ of this label; branches thinner than a voxel are painted with a lower opacity."""
    for start, end, radius in zip(tree.starts, tree.ends, tree.radii + wider, strict=True):
        distance, box = canvas.tube(start, end, radius)
        share = min(1.0, 2.2 * radius / canvas.spacing)
        canvas.paint(distance, hu, box=box, cover=np.float32(share) * (canvas.organs[box] == within))
