"""What a segmentation's numbers amount to, a sentence a structure: found or not, and what is wrong beside the overlap."""

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
"""HD95 in mm, false parts a scan, and mean difference of the volume as a share of the true one, beyond which a remark is made."""
_DECIMALS = {"dice": 3, "nsd": 3, "hd95_mm": 1, "lesion_sensitivity": 2, "false_positives": 2, "volume_bias_ml": 1}


@dataclass(frozen=True)
class _Structure:
    """A structure's measures by name, and its rows of predictions."""

    name: str
    values: dict[str, Measurement]
    rows: pd.DataFrame


def judge_structures(
    measurements: Sequence[Measurement], rows: pd.DataFrame, classes: Sequence[str], *, model: str, subset: str
) -> list[Block]:
    """A verdict for each structure of a model and subset, the worst first; `rows` are its rows of predictions.csv."""
    structures = [_collect(measurements, rows, name, classes, model, subset) for name in classes]
    scored = [one for one in structures if "dice" in one.values and math.isfinite(one.values["dice"].interval.value)]
    verdicts = [_judge(one) for one in sorted(scored, key=lambda one: one.values["dice"].interval.value)]
    blocks: list[Block] = [*verdicts]
    if absent := [one.name for one in structures if one not in scored]:
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
    """A measure with the decimals that all of its kind have on a page; "∞" for the distance to a structure that was missed."""
    if value is None or math.isnan(value):
        return "–"
    return "∞" if math.isinf(value) else f"{value:.{_DECIMALS.get(name.partition(':')[0], 3)}f}"


def format_measurement(row: Measurement) -> str:
    """The same with its interval, where there is one."""
    value, low, high = (format_measure(row.name, number) for number in (row.interval.value, row.interval.low, row.interval.high))
    return value if "–" in (low, high) else f"{value} ({low} to {high})"


def list_remarks(values: dict[str, Measurement], rows: pd.DataFrame) -> list[str]:
    """What is bad beside the overlap, in a few words each: structures missed, surfaces far apart, false parts, volumes."""
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
        # Of a lone structure the measures carry no name.
        if (row.model, row.subset) == (model, subset) and (structure == name or (not structure and len(classes) == 1)):
            values[measure] = row
    return _Structure(name, values, rows[rows["label"] == name])


def _judge(one: _Structure) -> Verdict:
    dice, remarks = one.values["dice"], list_remarks(one.values, one.rows)
    value = dice.interval.value
    level: Level = "bad" if value < POOR_DICE else "warn" if value < GOOD_DICE or remarks else "ok"
    over = f"{count_noun(dice.interval.items, 'scan')} of {count_noun(dice.interval.patients, 'patient')}"
    beside = f"; {'; '.join(remarks)}" if remarks else ""
    return Verdict(level, f"**{one.name}**: Dice {format_measurement(dice)} over {over}{beside}.")
