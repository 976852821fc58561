"""Verdicts on a segmentation, one per structure: whether it is found, and which errors Dice does not show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from dagman.evaluation.results import Measurement
from dagman.records.counts import count_noun
from dagman.reports.page import Block, Level, Text, Verdict

GOOD_DICE, POOR_DICE = 0.8, 0.5
FAR_MM, MANY_PARTS, OFF_VOLUME = 10.0, 1.0, 0.1
"""Limits for remarks: HD95 in mm, false-positive components per scan, and mean volume error as a fraction of the true volume."""
_DECIMALS = {"dice": 3, "nsd": 3, "hd95_mm": 1, "lesion_sensitivity": 2, "false_positives": 2, "volume_bias_ml": 1}


@dataclass(frozen=True)
class _Structure:
    """The measurements of a structure by name of the measure, and its rows of predictions.csv."""

    name: str
    values: dict[str, Measurement]
    rows: pd.DataFrame


def judge_structures(
    measurements: Sequence[Measurement], rows: pd.DataFrame, classes: Sequence[str], *, model: str, subset: str
) -> list[Block]:
    """Judge each structure for a model and a subset of labels, worst first; `rows` are the matching rows of predictions.csv."""
    structures = [_collect(measurements, rows, name, classes, model, subset) for name in classes]
    scored = [
        structure
        for structure in structures
        if "dice" in structure.values and math.isfinite(structure.values["dice"].interval.value)
    ]
    verdicts = [_judge(structure) for structure in sorted(scored, key=lambda structure: structure.values["dice"].interval.value)]
    blocks: list[Block] = [*verdicts]
    if absent := [structure.name for structure in structures if structure not in scored]:
        blocks.append(Text(f"No test scan contains {', '.join(f'`{name}`' for name in absent)}."))
    if verdicts:
        blocks.append(
            Text(
                f"The colours follow rules of thumb, not clinical requirements: green for a Dice of at least {GOOD_DICE} "
                f"without remarks, red below {POOR_DICE}. Remarks concern an HD95 above {FAR_MM:g} mm, {MANY_PARTS:g} or more "
                f"false-positive components per scan, volumes off by more than {OFF_VOLUME:.0%} on average, and structures "
                f"that were missed entirely."
            )
        )
    return blocks


def format_measure(name: str, value: float | None) -> str:
    """Format a value with the number of decimals of its measure; "∞" is the distance to a structure that was missed."""
    if value is None or math.isnan(value):
        return "–"
    return "∞" if math.isinf(value) else f"{value:.{_DECIMALS.get(name.partition(':')[0], 3)}f}"


def format_measurement(row: Measurement) -> str:
    """Format a measurement like `format_measure`, with its interval if there is one."""
    value, low, high = (format_measure(row.name, number) for number in (row.interval.value, row.interval.low, row.interval.high))
    return value if "–" in (low, high) else f"{value} ({low} to {high})"


def list_remarks(values: dict[str, Measurement], rows: pd.DataFrame) -> list[str]:
    """List problems that Dice does not show: missed structures, distant surfaces, false-positive components, volume errors."""
    held = {name: row.interval.value for name, row in values.items()}
    remarks = []
    drawn = rows[rows["true_volume_ml"] > 0]
    missed = int((drawn.groupby("item")["dice"].mean() == 0).sum())
    if missed:
        remarks.append(f"missed entirely in {missed} of {count_noun(int(drawn['item'].nunique()), 'scan')}")
    if held.get("hd95_mm", math.nan) > FAR_MM:
        remarks.append(f"surfaces are far apart: HD95 {format_measure('hd95_mm', held['hd95_mm'])} mm")
    if held.get("false_positives", math.nan) >= MANY_PARTS:
        parts = format_measure("false_positives", held["false_positives"])
        remarks.append(f"{parts} false-positive components per scan: keeping only the largest component may help")
    true = float(drawn["true_volume_ml"].mean())
    bias = held.get("volume_bias_ml", math.nan)
    if true > 0 and abs(bias) > OFF_VOLUME * true:
        remarks.append(
            f"volumes {abs(bias) / true:.0%} too {'large' if bias > 0 else 'small'} on average ({bias:+.1f} of {true:.1f} ml)"
        )
    return remarks


def _collect(
    measurements: Sequence[Measurement], rows: pd.DataFrame, name: str, classes: Sequence[str], model: str, subset: str
) -> _Structure:
    values = {}
    for row in measurements:
        measure, _, structure = row.name.partition(":")
        # With a single structure, names of measurements do not contain it.
        if (row.model, row.subset) == (model, subset) and (structure == name or (not structure and len(classes) == 1)):
            values[measure] = row
    return _Structure(name, values, rows[rows["label"] == name])


def _judge(structure: _Structure) -> Verdict:
    dice, remarks = structure.values["dice"], list_remarks(structure.values, structure.rows)
    value = dice.interval.value
    level: Level = "bad" if value < POOR_DICE else "warn" if value < GOOD_DICE or remarks else "ok"
    over = f"{count_noun(dice.interval.items, 'scan')} of {count_noun(dice.interval.patients, 'patient')}"
    beside = f"; {'; '.join(remarks)}" if remarks else ""
    return Verdict(level, f"**{structure.name}**: Dice {format_measurement(dice)} over {over}{beside}.")
