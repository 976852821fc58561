"""The options of the task commands: each is declared once and means the same in all of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dagman.store.manifest import Store
    from dagman.tables.table import Table
    from dagman.tasks.models import ModelSpec


def one_of(option: str, *names: str) -> Callable[[str], str]:
    """A callback that checks an option's value before any work starts; raises SettingsError with the nearest name."""

    def check(value: str) -> str:
        from dagman.errors import SettingsError
        from dagman.records.names import suggest_name

        if value not in names:
            raise SettingsError(f"--{option} {value!r} is unknown", do=suggest_name(value, names))
        return value

    return check


ModelsAndTable = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL... TABLE",
        help="One or more models: a run, an encoder folder, scratch:SIZE, resnet3d:SIZE, monai:PATH, or a baseline without a "
        "network (radiomics:size, pixels, histogram; not for segment). Then the table: CSV, Parquet or Excel (for segment also "
        "a dataset.json).",
    ),
]
Out = Annotated[Path, typer.Option(help="Output folder.")]
Folds = Annotated[
    int, typer.Option(help="Number of cross-validation folds, split by patient; not used if the table has a column 'split'.")
]
Repeats = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of repetitions, each with new folds. Default: 5; 1 if networks are trained, or if the table has its own "
        "split.",
        show_default=False,
    ),
]
Shares = Annotated[
    str | None,
    typer.Option(
        help="Percentages of the training patients to use, such as 25,50,100. Default: 100 (segment: unless --shots is given)."
    ),
]
Shots = Annotated[
    str,
    typer.Option(
        "--shots",
        "--per-class",
        help="Few-shot training: numbers of labelled patients, such as 1,5,10,20, per class (outcome: with and without the "
        "event; segment and regress: in total).",
    ),
]
Draws = Annotated[int, typer.Option(min=1, help="Number of few-shot draws in each repeat and fold.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Maximum number of fine-tuning epochs. Default: 20.")]
Finetuning = Annotated[str, typer.Option(help="Fine-tuning preset: short, or paper (1,000 epochs at 2e-4).")]
LayerDecay = Annotated[
    float | None, typer.Option(help="Fine-tuning: layer-wise decay of the learning rate, for every model. Default: 1.")
]
Patient = Annotated[str, typer.Option(help="Column of the table with the patients.")]
Ids = Annotated[
    str,
    typer.Option(
        callback=one_of("ids", "checked", "exact"),
        help="checked: reject patients or labels that differ only in leading zeros, case, blanks or dashes; exact: treat them "
        "as different.",
    ),
]
SplitColumn = Annotated[str, typer.Option(help="Column with the split (train, val, test), if there is one.")]
MaskLabel = Annotated[int | None, typer.Option(help="Value of the structure in all masks of the table.")]
Coordinates = Annotated[
    str,
    typer.Option(callback=one_of("coordinates", "ras", "lps"), help="Coordinate system of the points in the table: ras or lps."),
]
CropMm = Annotated[float | None, typer.Option(help="Side in mm of crops around structures. Default: depends on their size.")]
CropSpacing = Annotated[float | None, typer.Option(help="Voxel size in mm of these crops. Default: depends on their size.")]
StoreFolder = Annotated[Path | None, typer.Option(help="Store with the scans that the table refers to by id.")]
Cache = Annotated[Path | None, typer.Option(help="Folder for cached feature vectors. Default: OUT/features.")]
Weights = Annotated[
    str,
    typer.Option(
        callback=one_of("weights", "teacher", "student", "auto"),
        help="Which weights of a run: teacher, student, or auto (teacher).",
    ),
]
Identified = Annotated[
    bool,
    typer.Option("--identified", help="Copy patient and study names to the DICOM output. Default: only a pseudonym and UIDs."),
]
Primary = Annotated[
    str,
    typer.Option(
        help="Primary endpoint: the one difference that is tested alone, without correction for multiple testing. "
        "Comma-separated KEY=VALUE, with the keys first, second, method, subset and measure; each defaults to the first of its "
        "kind, on all labels."
    ),
]
Seed = Annotated[int, typer.Option(help="Random seed of folds, draws, fits and maps.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, or cuda:N.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]


def _set_key(path: Path | None) -> Path | None:
    if path is not None:
        # The environment also reaches the processes that a command starts.
        os.environ["DAGMAN_KEY"] = str(path)
    return path


KeyPath = Annotated[
    Path | None,
    typer.Option(
        "--key",
        callback=_set_key,
        help="Key file for pseudonyms of PatientIDs and file names. Default: DAGMAN_KEY, or the key in your configuration folder.",
        show_default=False,
    ),
]


PatientsOf = Annotated[
    str | None,
    typer.Option(
        "--patients",
        metavar="TABLE|REGEX",
        help="Patients of the scans: a table with the columns scan and patient, or a regular expression with one group, "
        "matched against each file's name, then its path. Default: from the file; if it names no patient, each scan counts as "
        "a separate patient.",
        show_default=False,
    ),
]


def parse_models(context: typer.Context, models_and_table: list[str], *, weights: str = "auto") -> tuple[list[ModelSpec], Path]:
    """The models and the table of a command line; `dagman compare` needs at least two models.

    Raises TaskError if there are too few models, or for an unknown name.
    """
    from dagman.errors import TaskError
    from dagman.tasks.models import parse_model

    task = context.info_name
    *models, table = models_and_table
    specs = [parse_model(text, weights=weights) for text in models]
    if not specs:
        raise TaskError(f"{task} takes a model and a table", do=f"Name a model before {table}, such as scratch:tiny")
    if len(specs) < 2 and context.parent is not None and context.parent.info_name == "compare":
        raise TaskError("one model cannot be compared", do=f"Name two or more before the table, or use dagman {task}")
    return specs, Path(table)


def read_items(table: Path, store: Path | None, **columns: Any) -> tuple[Table, Store | None]:
    """A table (columns: see `read_table`), and the store with its scans, if one is given."""
    from dagman.store.manifest import Store
    from dagman.tables.table import read_table

    opened = None if store is None else Store(store)
    return read_table(table, known_ids=[row.id for row in opened.rows] if opened else [], **columns), opened


def split_names(text: str) -> tuple[str, ...]:
    """Comma-separated names; none for an empty text."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def split_numbers(option: str, text: str) -> tuple[float, ...]:
    """Comma-separated numbers; raises SettingsError naming the option."""
    from dagman.errors import SettingsError

    try:
        return tuple(float(part) for part in split_names(text))
    except ValueError:
        raise SettingsError(
            f"--{option} {text!r} is not a list of numbers", do="Separate numbers by commas, such as 25,50,100"
        ) from None


def split_counts(option: str, text: str) -> tuple[int, ...]:
    """Comma-separated whole numbers; raises SettingsError naming the option."""
    from dagman.errors import SettingsError

    numbers = split_numbers(option, text)
    broken = [number for number in numbers if not number.is_integer()]
    if broken:
        do = "Separate whole numbers by commas, such as 1,5,10"
        raise SettingsError(f"--{option} {broken[0]:g} is not a whole number", do=do)
    return tuple(int(number) for number in numbers)


def split_shares(text: str | None) -> tuple[float, ...]:
    """Shares from comma-separated percentages; 1 if none are given."""
    return tuple(share / 100 for share in split_numbers("shares", "100" if text is None else text))
