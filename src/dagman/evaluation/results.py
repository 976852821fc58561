"""Read and write the folder of a task's results. Nothing in it is pickled.

It contains `splits.csv` (see `splits`), `predictions.csv` (one row per item, split, subset and model), `metrics.json`,
`command.json`, and what the task adds: `report.html`, `model/`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from dagman.errors import TaskError
from dagman.evaluation.statistics import Difference, Interval, correct_holm
from dagman.notes import Note, inform, warn
from dagman.records.csv_file import restore_frame, write_frame
from dagman.records.files import write_json
from dagman.records.names import suggest_name
from dagman.records.provenance import write_command

FORMAT = 1
PREDICTION_COLUMNS = ("item", "patient", "repeat", "fold", "draw", "subset", "model", "method", "label")
"""Columns of every predictions.csv; the task's own follow: score or score_CLASS, risk, dice, ..."""
_TEXT_COLUMNS = ("item", "patient", "subset", "model", "method", "label")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One measure of a model, method and subset, with its confidence interval."""

    name: str
    "The measure, such as auc."
    model: str
    method: str
    subset: str = "100%"
    "Labels used in training: a share (25%) or a number of patients per class (k=5)."
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A paired difference between two models on the same items.

    `correct_comparisons` sets `corrected`: p corrected by Holm over all comparisons except the primary endpoint, whose p is not
    corrected.
    """

    name: str
    first: str
    second: str
    method: str
    subset: str = "100%"
    difference: Difference
    corrected: float = math.nan
    primary: bool = False


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """The primary endpoint: the comparison that decides, chosen before anything is measured."""

    measure: str
    first: str
    second: str
    method: str
    subset: str


def choose_endpoint(
    text: str, *, measures: Sequence[str], models: Sequence[str], methods: Sequence[str], subsets: Sequence[str]
) -> Endpoint | None:
    """Parse the primary endpoint from KEY=VALUE pairs; None for an empty text.

    Keys are measure, first, second, method and subset. A missing key defaults to the first possible value; subset defaults to all
    labels, or to the largest subset.

    Raises:
        TaskError: A key or value is unknown, or there are fewer than two models.
    """
    if not text:
        return None
    if len(models) < 2:
        raise TaskError("--primary needs two models to compare", do="Give a second model, such as scratch:tiny")
    given = {key.strip(): value.strip() for key, _, value in (part.partition("=") for part in text.split(","))}
    first = given.get("first", models[0])
    known = {
        "measure": measures,
        "first": models,
        "second": [name for name in models if name != first],
        "method": methods,
        "subset": sorted(subsets, key=lambda name: (name != "100%", -subsets.index(name))),
    }
    if not all(known.values()):
        raise TaskError("--primary: no two models share a method", do="Compare models that all support the method")
    for key, value in given.items():
        if key not in known:
            raise TaskError(
                f"--primary: unknown key '{key}'", do=f"Give KEY=VALUE with keys of {', '.join(known)}, comma-separated"
            )
        if value not in known[key]:
            raise TaskError(f"--primary: {key} '{value}' is not in this table", do=suggest_name(value, known[key]))
    return Endpoint(**{key: given.get(key, values[0]) for key, values in known.items()})


def correct_comparisons(comparisons: Iterable[Comparison], endpoint: Endpoint | None = None) -> tuple[Comparison, ...]:
    """Put the primary endpoint first with its uncorrected p, and correct the other comparisons for their number (Holm).

    Without an endpoint, or if no comparison matches it (one of its models lacks the method), all comparisons are corrected.
    """
    rows = list(comparisons)
    primary = next((row for row in rows if endpoint is not None and _matches(row, endpoint)), None)
    others = [row for row in rows if row is not primary]
    corrected = correct_holm([row.difference.p for row in others])
    return (
        *([] if primary is None else [dataclasses.replace(primary, corrected=primary.difference.p, primary=True)]),
        *(dataclasses.replace(row, corrected=p) for row, p in zip(others, corrected, strict=True)),
    )


def _matches(row: Comparison, endpoint: Endpoint) -> bool:
    same_pair = {row.first, row.second} == {endpoint.first, endpoint.second}
    return same_pair and (row.name, row.method, row.subset) == (endpoint.measure, endpoint.method, endpoint.subset)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The content of metrics.json."""

    task: str
    classes: tuple[str, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    notes: tuple[Note, ...] = ()
    "Sentences about what was skipped or chosen, and warnings."
    extra: dict[str, Any] = field(default_factory=dict)
    "Numbers for the report without an interval, such as a confusion matrix or a curve."


def write_predictions(folder: str | Path, rows: Sequence[dict[str, Any]] | pd.DataFrame) -> None:
    """Write predictions.csv.

    Raises:
        ValueError: One of PREDICTION_COLUMNS is missing.
    """
    frame = pd.DataFrame(rows)
    missing = [name for name in PREDICTION_COLUMNS if name not in frame]
    if missing:
        raise ValueError(f"predictions lack {missing}")
    own = [name for name in frame.columns if name not in PREDICTION_COLUMNS]
    write_frame(Path(folder) / "predictions.csv", frame[[*PREDICTION_COLUMNS, *own]])


def write_summary(folder: str | Path, summary: Summary) -> None:
    """Write metrics.json, with NaN as null."""
    write_json(Path(folder) / "metrics.json", {"format": FORMAT, **_to_plain(dataclasses.asdict(summary))})


def write_inputs(folder: str | Path, command: str, *, settings: dict[str, Any], inputs: dict[str, Any]) -> None:
    """Write command.json, the record of how the folder was produced."""
    write_command(folder, command, settings=_to_plain(settings), inputs=_to_plain(inputs))


def refuse_other_results(folder: str | Path, command: str, *, settings: dict[str, Any], inputs: dict[str, Any]) -> None:
    """Refuse to overwrite results that were produced by another command, settings or inputs.

    Keys that the folder does not record (results of an older version) and the device are not compared.

    Raises:
        TaskError: The folder holds other results.
    """
    try:
        recorded = json.loads((Path(folder) / "command.json").read_text(encoding="utf-8"))
        before = {"command": recorded["command"], **recorded["settings"], **recorded["inputs"]}
    except (OSError, ValueError, KeyError, TypeError):
        return
    now = {"command": command, **_to_plain(settings), **_to_plain(inputs)}
    other = [key for key in now.keys() & before.keys() - {"device"} if now[key] != before[key]]
    if other:
        what = ", ".join(f"{key} was {_shorten(before[key])}, now {_shorten(now[key])}" for key in sorted(other))
        raise TaskError(f"holds results made with other settings: {what}", where=folder, do="Choose another --out, or remove it")


class Results:
    """A folder of results, whose files are read on first use.

    Raises:
        TaskError: The folder holds no results, or results of another format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "metrics.json").is_file():
            raise TaskError("holds no results (no metrics.json)", where=self.path, do="Give the --out folder of a finished task")

    def __repr__(self) -> str:
        return f"Results('{self.path}')"

    @cached_property
    def summary(self) -> Summary:
        """Metrics, comparisons and notes."""
        try:
            data = json.loads((self.path / "metrics.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise TaskError(f"metrics.json is damaged ({error})", where=self.path, do="Run the task again") from None
        if data.pop("format", None) != FORMAT:
            raise TaskError("metrics.json has another format", where=self.path, do="Run the task again with this version of dagman")
        return Summary(
            task=data["task"],
            classes=tuple(data["classes"]),
            measurements=tuple(
                Measurement(**{**row, "interval": Interval(**_from_plain(row["interval"]))}) for row in data["measurements"]
            ),
            comparisons=tuple(
                Comparison(**{**_from_plain(row), "difference": Difference(**_from_plain(row["difference"]))})
                for row in data["comparisons"]
            ),
            notes=tuple(_read_note(note) for note in data["notes"]),
            extra=data["extra"],
        )

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """The predictions, one row per item, split, subset and model."""
        return _read_csv(self.path / "predictions.csv")

    @property
    def is_split(self) -> bool:
        """Whether the task trained on some items and tested on others."""
        return (self.path / "splits.csv").is_file()

    @cached_property
    def splits(self) -> pd.DataFrame:
        """The splits, one row per item and split: repeat, fold, item, patient, part. `splits.read_splits` returns indices."""
        return _read_csv(self.path / "splits.csv")

    @cached_property
    def command(self) -> dict[str, Any]:
        """The record of how the folder was produced."""
        return json.loads((self.path / "command.json").read_text(encoding="utf-8"))

    @property
    def columns(self) -> dict[str, str]:
        """Columns of the table that were read as label, time and event, keyed by these names."""
        recorded = self.command["inputs"].get("columns")
        return _find_columns(self.command.get("arguments", [])) if recorded is None else recorded

    @property
    def model(self) -> Path:
        """The folder of the fitted model; it may not exist."""
        return self.path / "model"


def _shorten(value: Any) -> str:
    text = str(value) or "none"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _read_csv(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise TaskError(f"{path.name} is missing", where=path.parent, do="Run the task again")
    # Keep text as text, so that patient 007 and labels such as 1 and None equal those of the table.
    read = pd.read_csv(path, dtype=dict.fromkeys((*_TEXT_COLUMNS, "part"), str), keep_default_na=False, na_values=[""])
    return restore_frame(read)


def _read_note(note: dict[str, Any] | str) -> Note:
    """Read a note. Results before the end of November 2026 hold sentences; their warnings are recognised by certain words."""
    if isinstance(note, str):
        return warn(note) if any(words in note for words in ("seen in pretraining", "left out", "fall outside")) else inform(note)
    return Note(**note)


def _find_columns(arguments: Sequence[str]) -> dict[str, str]:
    """Find the columns in the command line, where results before the end of November 2026 have them."""
    options = {"--label": "label", "--time": "time", "--event": "event"}
    pairs = [*pairwise(arguments), *(text.partition("=")[::2] for text in arguments)]
    return {options[name]: column for name, column in pairs if name in options and column}


def _to_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _to_plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _from_plain(values: dict[str, Any]) -> dict[str, Any]:
    return {key: float("nan") if value is None else value for key, value in values.items()}
