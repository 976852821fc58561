"""Scoring a label map: `score_scan` beside the whole-grid computation it replaced, on the same maps, in turn.

The truth is a trunk with organs (ellipsoids) on a grid of `--side` voxels. Two predictions: a fair one (each organ moved by two
voxels, with a few stray parts), and a poor one (what a network says after a few steps: organs blurred into noise). Prints processor
seconds (median, least) of each, the ratio (median over rounds; above 1: ours is faster), and the largest difference of a score.
Example: python benchmarks/segmentation_scoring.py --structures 14 --rounds 3
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from dagman.evaluation.segmentation_scores import score_scan
from dagman.randomness import generator
from dagman.tables.structures import Structure

SPACING, TOLERANCE = (1.5, 1.5, 2.0), 2.0
Scores = list[dict[str, float]]


def draw_organs(side: int, structures: int) -> np.ndarray:
    """Ellipsoids of 8 to 30 voxels' half-axes, classes 1 to `structures`, X Y Z uint8."""
    random = generator(0, "organs")
    classes = np.zeros((side, side, side), np.uint8)
    places = np.indices(classes.shape, dtype=np.float32)
    for code in range(1, structures + 1):
        middle, half = random.uniform(0.2, 0.8, 3) * side, random.uniform(0.04, 0.15, 3) * side
        away = sum(((places[axis] - middle[axis]) / half[axis]) ** 2 for axis in range(3))
        classes[away < 1] = code
    return classes


def predict_fairly(truth: np.ndarray) -> np.ndarray:
    """Every organ moved by two voxels, and a stray part of each class far away."""
    predicted = np.roll(truth, 2, axis=(0, 1, 2))
    for code in range(1, int(truth.max()) + 1):
        predicted[2 : 2 + code % 4, code, 2:4] = code
    return predicted


def predict_poorly(truth: np.ndarray) -> np.ndarray:
    """Classes by their blurred organs and noise: large, ragged, with hundreds of parts."""
    random = generator(0, "noise")
    best, classes = np.full(truth.shape, 0.45, np.float32), np.zeros_like(truth)
    for code in range(1, int(truth.max()) + 1):
        noise = ndimage.gaussian_filter(random.standard_normal(truth.shape, dtype=np.float32), 1.5)
        value = ndimage.gaussian_filter((truth == code).astype(np.float32), 6) + 3 * noise * 0.5
        better = value > best
        classes[better], best[better] = code, value[better]
    return classes


def score_whole_grid(predicted: np.ndarray, truth: np.ndarray, structures: Sequence[Structure]) -> Scores:
    """What stood here before: a structure at a time over the whole grid, surfaces and distances for each measure anew."""
    rows = []
    for code, structure in enumerate(structures, start=1):
        one, two = predicted == code, truth == code
        volumes = [int(np.count_nonzero(mask)) * math.prod(SPACING) / 1000 for mask in (one, two)]
        found = ndimage.find_objects((one | two).astype(np.uint8))
        box = found[0] if found else (slice(0, 1),) * 3
        one, two = one[box], two[box]
        neighbours = np.ones((3, 3, 3), dtype=bool)
        true_parts, lesions = ndimage.label(two, structure=neighbours)
        guessed, guesses = ndimage.label(one, structure=neighbours)
        distances = [_measure_distances(one, two) for _ in range(2)]
        total = volumes[0] + volumes[1]
        rows.append(
            {
                "label": structure.name,
                "dice": 2 * int((one & two).sum()) * math.prod(SPACING) / 1000 / total if total else math.nan,
                "hd95_mm": _find_hausdorff(distances[0]),
                "nsd": sum(int((d <= TOLERANCE).sum()) for d in distances[1]) / max(1, sum(map(len, distances[1]))),
                "lesions": lesions,
                "found": len(np.unique(true_parts[one & two])),
                "false_positives": guesses - len(np.unique(guessed[one & two])),
                "volume_ml": volumes[0],
                "true_volume_ml": volumes[1],
            }
        )
    return rows


def _measure_distances(one: np.ndarray, two: np.ndarray) -> list[np.ndarray]:
    found = ndimage.find_objects((one | two).astype(np.uint8))
    box = found[0] if found else (slice(0, 1),) * 3
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (np.pad(one[box], 1), np.pad(two[box], 1))]
    return [
        ndimage.distance_transform_edt(~other, sampling=SPACING)[edge] if other.any() else np.full(int(edge.sum()), np.inf)
        for edge, other in (edges, edges[::-1])
    ]


def _find_hausdorff(sides: list[np.ndarray]) -> float:
    return max(float(np.percentile(side, 95)) for side in sides) if all(map(len, sides)) else math.inf


def compare_scores(ours: Scores, theirs: Scores) -> float:
    """The largest difference of any score of any structure."""
    worst = 0.0
    for one, other in zip(ours, theirs, strict=True):
        values = [(one[name], other[name]) for name in other if name != "label" and one[name] != other[name]]
        worst = max([worst, *(abs(a - b) for a, b in values if not (math.isnan(a) and math.isnan(b)))])
    return worst


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=160)
    parser.add_argument("--structures", type=int, default=14)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    structures = [Structure(name=f"organ {code}", values=(code,)) for code in range(1, arguments.structures + 1)]
    truth = draw_organs(arguments.side, arguments.structures)
    for name, predict in (("fair", predict_fairly), ("poor", predict_poorly)):
        predicted = predict(truth)
        ours, theirs, quick = [], [], []
        for _ in range(arguments.rounds):
            start = time.process_time()
            expected = score_whole_grid(predicted, truth, structures)
            theirs.append(time.process_time() - start)
            start = time.process_time()
            scores = score_scan(predicted, truth, structures, SPACING, TOLERANCE)
            ours.append(time.process_time() - start)
            start = time.process_time()
            score_scan(predicted, truth, structures, SPACING, TOLERANCE, measures=("dice",))
            quick.append(time.process_time() - start)
        ratio = statistics.median(old / new for old, new in zip(theirs, ours, strict=True))
        print(
            f"{name} prediction: whole grid {statistics.median(theirs):.2f} s (least {min(theirs):.2f}), in boxes "
            f"{statistics.median(ours):.2f} s (least {min(ours):.2f}), {ratio:.1f} times as fast; Dice alone "
            f"{statistics.median(quick):.3f} s; largest difference {compare_scores(scores, expected):.1e}"
        )


if __name__ == "__main__":
    main()
