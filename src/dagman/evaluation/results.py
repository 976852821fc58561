"""The folder of a task's results: one writer and one reader of its files; nothing in it is pickled.

`splits.csv` (see `protocol`), `predictions.csv` (a row an item, split, subset and model), `metrics.json`,
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
"""Every row of predictions.csv has these, then the task's own: score, or score_CLASS; risk; dice, ..."""
_TEXT_COLUMNS = ("item", "patient", "subset", "model", "method", "label")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One number of a task: of which model, method and subset, and how sure."""

    name: str
    "The metric, such as auc."
    model: str
    method: str
    subset: str = "100%"
    "Labels used in training: a share (25%) or patients a class (k=5)."
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One paired difference of two models on the same items.

    `corrected` is given by `correct_comparisons`: p by Holm over all that were made, but for the primary endpoint, which is tested
    alone.
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
    """The difference that decides, named before anything is measured."""

    measure: str
    first: str
    second: str
    method: str
    subset: str


def choose_endpoint(
    text: str, *, measures: Sequence[str], models: Sequence[str], methods: Sequence[str], subsets: Sequence[str]
) -> Endpoint | None:
    """The primary endpoint of a table, from KEY=VALUE pairs; None where no text is given.

    Keys: measure, first, second, method, subset. What is left out is the first of each, and all labels (or the most) as subset.
    Raises TaskError for an unknown key or value, and for fewer than two models.
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
    """The primary endpoint first, with its own p; the others, or all where there is none, corrected for their number (Holm).

    An endpoint that no comparison is of (a method that one of its models lacks) is none.
    """
    rows = list(comparisons)
    primary = next((row for row in rows if endpoint is not None and _is_of(row, endpoint)), None)
    others = [row for row in rows if row is not primary]
    corrected = correct_holm([row.difference.p for row in others])
    return (
        *([] if primary is None else [dataclasses.replace(primary, corrected=primary.difference.p, primary=True)]),
        *(dataclasses.replace(row, corrected=p) for row, p in zip(others, corrected, strict=True)),
    )


def _is_of(row: Comparison, endpoint: Endpoint) -> bool:
    same_pair = {row.first, row.second} == {endpoint.first, endpoint.second}
    return same_pair and (row.name, row.method, row.subset) == (endpoint.measure, endpoint.method, endpoint.subset)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What metrics.json holds."""

    task: str
    classes: tuple[str, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    notes: tuple[Note, ...] = ()
    "What was left out, warned of, or chosen, in sentences."
    extra: dict[str, Any] = field(default_factory=dict)
    "Numbers for the report that have no interval: a confusion matrix, a curve."


def write_predictions(folder: str | Path, rows: Sequence[dict[str, Any]] | pd.DataFrame) -> None:
    """Write predictions.csv whole; raises ValueError if a row lacks one of PREDICTION_COLUMNS."""
    frame = pd.DataFrame(rows)
    missing = [name for name in PREDICTION_COLUMNS if name not in frame]
    if missing:
        raise ValueError(f"predictions lack {missing}")
    own = [name for name in frame.columns if name not in PREDICTION_COLUMNS]
    write_frame(Path(folder) / "predictions.csv", frame[[*PREDICTION_COLUMNS, *own]])


def write_summary(folder: str | Path, summary: Summary) -> None:
    """Write metrics.json whole; NaN becomes null."""
    write_json(Path(folder) / "metrics.json", {"format": FORMAT, **_to_plain(dataclasses.asdict(summary))})


def write_inputs(folder: str | Path, command: str, *, settings: dict[str, Any], inputs: dict[str, Any]) -> None:
    """Write command.json: how the folder came to be."""
    write_command(folder, command, settings=_to_plain(settings), inputs=_to_plain(inputs))


def refuse_other_results(folder: str | Path, command: str, *, settings: dict[str, Any], inputs: dict[str, Any]) -> None:
    """Raise TaskError where the folder holds results made in another way: nothing is overwritten that cannot be had again.

    What the folder does not name (results of an older version) and the device are not compared.
    """
    try:
        held = json.loads((Path(folder) / "command.json").read_text(encoding="utf-8"))
        before = {"command": held["command"], **held["settings"], **held["inputs"]}
    except (OSError, ValueError, KeyError, TypeError):
        return
    now = {"command": command, **_to_plain(settings), **_to_plain(inputs)}
    other = [key for key in now.keys() & before.keys() - {"device"} if now[key] != before[key]]
    if other:
        what = ", ".join(f"{key} was {_shorten(before[key])}, now {_shorten(now[key])}" for key in sorted(other))
        raise TaskError(f"holds results made with other settings: {what}", where=folder, do="Choose another --out, or remove it")


class Results:
    """A folder of results, read when asked.

    Raises TaskError if it holds none, or those of another format.
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
        """A row an item, split, subset and model."""
        return _read_csv(self.path / "predictions.csv")

    @property
    def is_split(self) -> bool:
        """Whether the task trained on some items and tested on others."""
        return (self.path / "splits.csv").is_file()

    @cached_property
    def splits(self) -> pd.DataFrame:
        """A row an item and split: repeat, fold, item, patient, part. `protocol.read_splits` gives indices."""
        return _read_csv(self.path / "splits.csv")

    @cached_property
    def command(self) -> dict[str, Any]:
        """How the folder came to be."""
        return json.loads((self.path / "command.json").read_text(encoding="utf-8"))

    @property
    def columns(self) -> dict[str, str]:
        """The table's column that was read as label, as time, as event, by these names."""
        recorded = self.command["inputs"].get("columns")
        return _find_columns(self.command.get("arguments", [])) if recorded is None else recorded

    @property
    def model(self) -> Path:
        """The folder of the model to use; it may not exist."""
        return self.path / "model"


def _shorten(value: Any) -> str:
    text = str(value) or "none"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _read_csv(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise TaskError(f"{path.name} is missing", where=path.parent, do="Run the task again")
    # Text stays text: a patient 007 and the labels 1 and None must compare with the table's.
    read = pd.read_csv(path, dtype=dict.fromkeys((*_TEXT_COLUMNS, "part"), str), keep_default_na=False, na_values=[""])
    return restore_frame(read)


def _read_note(note: dict[str, Any] | str) -> Note:
    """A note; until the end of November 2026 it was a sentence, and those with certain words were warnings."""
    if isinstance(note, str):
        return warn(note) if any(words in note for words in ("seen in pretraining", "left out", "fall outside")) else inform(note)
    return Note(**note)


def _find_columns(arguments: Sequence[str]) -> dict[str, str]:
    """Until the end of November 2026 columns were recorded in the command line alone."""
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
