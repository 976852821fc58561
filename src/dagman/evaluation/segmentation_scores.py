"""Score predicted label maps per scan and structure, and summarise each measure with its interval over patients."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from dagman.errors import TaskError
from dagman.evaluation.results import Measurement
from dagman.evaluation.segmentation_metrics import (
    bland_altman,
    detect_lesions,
    find_hausdorff,
    find_surface_dice,
    measure_dice,
    measure_surface_distances,
    measure_volume,
)
from dagman.evaluation.statistics import bootstrap_interval, bound_edge
from dagman.records.names import suggest_name
from dagman.tables.structures import Structure

METHOD = "finetune"
MEASURES = ("dice", "hd95_mm", "nsd", "lesion_sensitivity", "false_positives", "volume_bias_ml")
"""Names in metrics.json of the measures of a structure."""
_SURFACE, _LESIONS = {"hd95_mm", "nsd"}, {"lesion_sensitivity", "false_positives"}

_COLUMNS = ("dice", "hd95_mm", "nsd", "lesions", "found", "false_positives", "volume_ml", "true_volume_ml")
_UNKNOWN = dict.fromkeys(_COLUMNS, math.nan)


def parse_measures(text: str) -> tuple[str, ...]:
    """Parse a comma-separated list of MEASURES, such as "hd95_mm,nsd", or "all"; Dice is always included.

    Raises:
        TaskError: A name is unknown; the message suggests the closest one.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["all"]:
        return MEASURES
    for name in names:
        if name not in MEASURES:
            raise TaskError(f"--measures {name!r} is not a measure of a segmentation", do=suggest_name(name, ("all", *MEASURES)))
    return tuple(name for name in MEASURES if name == "dice" or name in names)


def score_scan(
    predicted: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    structures: Sequence[Structure],
    spacing: Sequence[float],
    tolerance: float,
    *,
    contoured: Sequence[bool] | None = None,
    measures: Collection[str] = MEASURES,
) -> list[dict[str, Any]]:
    """Score each structure of a scan, one row per structure.

    If predicted and true structure are both empty, scores are NaN; if one is, Dice and surface Dice are 0 and HD95 is infinite.

    Args:
        predicted: Predicted classes on the scan's own grid (X Y Z); 0 is background, and i + 1 is `structures[i]`.
        truth: True classes on the same grid.
        structures: The structures.
        spacing: Voxel spacing in mm.
        tolerance: Tolerance of the surface Dice in mm.
        contoured: Whether each structure was contoured (None: all); if not, all its scores except the predicted volume are NaN.
        measures: Those of MEASURES to compute; others that would take time are NaN.
    """
    known = [True] * len(structures) if contoured is None else contoured
    # Voxels outside the box around both masks do not affect a score, and cost time; one pass per map finds all boxes.
    boxes = [ndimage.find_objects(classes, len(structures)) for classes in (predicted, truth)]
    rows = []
    for code, (structure, drawn, *pair) in enumerate(zip(structures, known, *boxes, strict=True), start=1):
        box = _join_boxes([box for box in pair if box is not None])
        masks = predicted[box] == code, truth[box] == code
        if drawn:
            rows.append({"label": structure.name, **_score_structure(*masks, spacing, tolerance, measures)})
        else:
            rows.append({"label": structure.name, **_UNKNOWN, "volume_ml": measure_volume(masks[0], spacing)})
    return rows


def _join_boxes(boxes: Sequence[tuple[slice, ...]]) -> tuple[slice, ...]:
    """Return the bounding box of all boxes; if there are none, the box of an arbitrary voxel, which is empty as well."""
    if not boxes:
        return (slice(0, 1),) * 3
    return tuple(slice(min(part.start for part in parts), max(part.stop for part in parts)) for parts in zip(*boxes, strict=True))


def _score_structure(
    predicted: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    spacing: Sequence[float],
    tolerance: float,
    measures: Collection[str],
) -> dict[str, Any]:
    scores: dict[str, Any] = {**_UNKNOWN, "dice": measure_dice(predicted, truth)}
    if not _SURFACE.isdisjoint(measures):
        # Distances take the most time, so both surface measures share them.
        distances = measure_surface_distances(predicted, truth, spacing)
        scores |= {"hd95_mm": find_hausdorff(distances), "nsd": find_surface_dice(distances, tolerance)}
    if not _LESIONS.isdisjoint(measures):
        scores |= asdict(detect_lesions(predicted, truth))
    return {**scores, "volume_ml": measure_volume(predicted, spacing), "true_volume_ml": measure_volume(truth, spacing)}


def summarize_scores(
    rows: pd.DataFrame,
    structures: Sequence[Structure],
    *,
    measures: Collection[str] = MEASURES,
    resamples: int = 2000,
    seed: int = 0,
) -> list[Measurement]:
    """Summarise each model and subset: measures such as `dice` over all structures and, if several, `dice:NAME` for each."""
    measurements = []
    for (model, subset), group in rows.groupby(["model", "subset"], sort=False):
        several = structures if len(structures) > 1 else ()
        parts = {f":{structure.name}": group[group["label"] == structure.name] for structure in several}
        for suffix, part in {"": group, **parts}.items():
            for name, metric, values in _list_metrics(part):
                if name not in measures:
                    continue
                patients = values.pop("patient")
                interval = bootstrap_interval(metric, *values.values(), patients=patients, draws=resamples, seed=seed)
                if name == "lesion_sensitivity" and interval.value in (0.0, 1.0):
                    counted = np.where(values["lesions"] > 0, interval.value, np.nan)
                    interval = bound_edge(interval, counted, patients)
                measurements.append(
                    Measurement(name=name + suffix, model=str(model), method=METHOD, subset=str(subset), interval=interval)
                )
    return measurements


def agree_volumes(rows: pd.DataFrame) -> dict[str, float]:
    """Compute Bland and Altman's bias and limits of agreement in ml, predicted minus true, with repeats of a scan averaged."""
    means = rows.groupby(["item", "label"])[["volume_ml", "true_volume_ml"]].mean().dropna()
    agreement = bland_altman(means["volume_ml"], means["true_volume_ml"])
    return {"bias": agreement.bias, "low": agreement.low, "high": agreement.high}


def rank_items(rows: pd.DataFrame) -> list[str]:
    """Sort items from best to worst mean Dice; ties are sorted by name."""
    means = rows.groupby("item")["dice"].mean().dropna()
    return sorted(means.index, key=lambda item: (-means[item], item))


def average_items(rows: pd.DataFrame) -> pd.DataFrame:
    """Average each scan over its structures, repeats and draws, one row per scan; an infinite HD95 is ignored."""
    rows = rows.assign(hd95_mm=rows["hd95_mm"].replace(math.inf, math.nan), bias=rows["volume_ml"] - rows["true_volume_ml"])
    columns = ["dice", "hd95_mm", "nsd", "lesions", "found", "false_positives", "bias"]
    return rows.groupby(["item", "patient"])[columns].mean().reset_index()


def _list_metrics(part: pd.DataFrame) -> list[tuple[str, Any, dict[str, NDArray]]]:
    """List (name, metric, arrays with one value per scan); repeats are averaged first, so that each scan counts once."""
    # Scans in which the structure was not contoured have no scores, and their patients must not count.
    part = part[part["true_volume_ml"].notna()]
    part = part.assign(hd95_mm=part["hd95_mm"].replace(math.inf, math.nan), bias=part["volume_ml"] - part["true_volume_ml"])
    columns = ["dice", "hd95_mm", "nsd", "lesions", "found", "false_positives", "bias"]
    means = part.groupby(["item", "patient"])[columns].mean().reset_index()

    def take(*names: str) -> dict[str, NDArray]:
        return {name: means[name].to_numpy() for name in (*names, "patient")}

    return [
        ("dice", _average, take("dice")),
        ("hd95_mm", _find_median, take("hd95_mm")),
        ("nsd", _average, take("nsd")),
        ("lesion_sensitivity", _divide_sums, take("found", "lesions")),
        ("false_positives", _average, take("false_positives")),
        ("volume_bias_ml", _average, take("bias")),
    ]


def _average(values: NDArray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _find_median(values: NDArray) -> float:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else float("nan")


def _divide_sums(detected: NDArray, lesions: NDArray) -> float:
    return float(detected.sum() / lesions.sum()) if lesions.sum() else float("nan")
