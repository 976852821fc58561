"""Scores of predicted label maps: a row a scan and structure, then each measure with its interval over patients."""

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
"""Measures of a structure by their names in metrics.json."""
_SURFACE, _LESIONS = {"hd95_mm", "nsd"}, {"lesion_sensitivity", "false_positives"}

_COLUMNS = ("dice", "hd95_mm", "nsd", "lesions", "found", "false_positives", "volume_ml", "true_volume_ml")
_UNKNOWN = dict.fromkeys(_COLUMNS, math.nan)


def parse_measures(text: str) -> tuple[str, ...]:
    """Measures from names between commas, such as "dice,hd95_mm", or "all"; Dice is always among them.

    Raises TaskError, naming the nearest, for a name that is none of MEASURES.
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
    """Scores of each structure of a scan; classes on the scan's own grid (X Y Z), spacing and tolerance in mm.

    Both empty: NaN. One empty: Dice and surface Dice 0, HD95 infinite. contoured: whether each structure was drawn (None: all);
    where it was not, every score is NaN but the predicted volume. measures: those of MEASURES that are wanted; the others are NaN
    where they would cost time.
    """
    known = [True] * len(structures) if contoured is None else contoured
    # One pass each for all structures: nothing beyond the box around both masks changes a score, and the cost is by the voxel.
    boxes = [ndimage.find_objects(classes, len(structures)) for classes in (predicted, truth)]
    rows = []
    for code, (structure, drawn, *pair) in enumerate(zip(structures, known, *boxes, strict=True), start=1):
        box = _join_boxes([one for one in pair if one is not None])
        masks = predicted[box] == code, truth[box] == code
        if drawn:
            rows.append({"label": structure.name, **_score_structure(*masks, spacing, tolerance, measures)})
        else:
            rows.append({"label": structure.name, **_UNKNOWN, "volume_ml": measure_volume(masks[0], spacing)})
    return rows


def _join_boxes(boxes: Sequence[tuple[slice, ...]]) -> tuple[slice, ...]:
    """The box around all boxes; around none, that of one voxel, which holds none of it either."""
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
        # Both measures of surfaces from one set of distances.
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
    """The measures of each model and subset: `dice` over all structures, then `dice:NAME` and the others for each of several."""
    measurements = []
    for (model, subset), group in rows.groupby(["model", "subset"], sort=False):
        parts = {f":{one.name}": group[group["label"] == one.name] for one in structures} if len(structures) > 1 else {}
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
    """Bland and Altman's bias and limits of agreement in ml, predicted minus true, each scan once (mean of its repeats)."""
    means = rows.groupby(["item", "label"])[["volume_ml", "true_volume_ml"]].mean().dropna()
    agreement = bland_altman(means["volume_ml"], means["true_volume_ml"])
    return {"bias": agreement.bias, "low": agreement.low, "high": agreement.high}


def rank_items(rows: pd.DataFrame) -> list[str]:
    """Items from the best to the worst by their mean Dice; ties by name."""
    means = rows.groupby("item")["dice"].mean().dropna()
    return sorted(means.index, key=lambda item: (-means[item], item))


def average_items(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a scan: means over its structures, repeats and draws; an infinite HD95 does not count."""
    rows = rows.assign(hd95_mm=rows["hd95_mm"].replace(math.inf, math.nan), bias=rows["volume_ml"] - rows["true_volume_ml"])
    columns = ["dice", "hd95_mm", "nsd", "lesions", "found", "false_positives", "bias"]
    return rows.groupby(["item", "patient"])[columns].mean().reset_index()


def _list_metrics(part: pd.DataFrame) -> list[tuple[str, Any, dict[str, NDArray]]]:
    """(name, metric, arrays a scan), repeats averaged first so that each scan counts once."""
    # Where a structure was not contoured there is nothing to score: such a patient is none of the interval's.
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
