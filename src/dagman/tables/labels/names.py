"""Finds the names of label values in a table, a JSON file, a segmentation model, or the header of a label map."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from dagman.errors import TableError
from dagman.scans import nifti
from dagman.tables.columns import Columns
from dagman.tables.labelled_scans import parse_structures

_MODEL_FILES = ("segmentation.json", "model/segmentation.json", "dataset.json")
_XML, _XML_END = b"<CaretExtension", b"</CaretExtension>"
_LONGEST_HEADER = 2**20
_FORMS = 'Give a table with columns id and name, a JSON such as {"1": "liver"}, a model of dagman segment, or liver=1,spleen=2'


def find_label_names(source: str) -> dict[int, str]:
    """Read the names of label values from any source that a user may give.

    Args:
        source: a text such as `liver=5,kidneys=7+8`; a table (see `read_label_names`); a JSON file that maps values to names or
            names to values (TotalSegmentator's class maps, a dataset.json); or the folder of a segmentation model or data set.

    Raises:
        TableError: if the source is none of these, or invalid.
    """
    path = Path(source)
    if not path.exists() and "=" in source:
        return {value: structure.name for structure in parse_structures(source) for value in structure.values}
    if path.is_dir():
        file = next((path / name for name in _MODEL_FILES if (path / name).is_file()), None)
        if file is None:
            raise TableError("holds no segmentation model and no dataset.json", where=path, do=_FORMS)
        return _read_json(file)
    if path.suffix.lower() == ".json":
        return _read_json(path)
    return read_label_names(path)


def read_label_names(path: str | Path) -> dict[int, str]:
    """Read the names of label values from a table with the columns `id` and `name`, or `value` and `structure`.

    The latter are written by `dagman predict`. A pair may occur several times, for example once per map.

    Raises:
        TableError: if a row lacks an id or name, or an id has two names.
    """
    columns = Columns(path)
    ids, names = columns.numbers(_choose(columns, "id", "value")), columns.text(_choose(columns, "name", "structure"))
    wrong = [row for row, (number, name) in enumerate(zip(ids, names, strict=True)) if name is None or number != np.round(number)]
    if wrong:
        raise columns.error("a label lacks its name or a whole number as its id", wrong, do="Write one id and one name per row")
    by_id: dict[int, str] = {}
    for row, (number, name) in enumerate(zip(ids, names, strict=True)):
        if by_id.setdefault(int(number), str(name)) != name:
            raise columns.error(f"label {int(number)} is '{by_id[int(number)]}' and '{name}'", [row], do="Give each id one name")
    return by_id


def _choose(columns: Columns, name: str, other: str) -> str:
    return other if name not in columns and other in columns else name


def read_own_names(path: Path) -> tuple[dict[int, str], str]:
    """Read the names that come with a label map, in its header or in the predictions.csv of `dagman predict`.

    Returns:
        The names by value, and the place they were read from; ({}, "") if there are none.
    """
    if path.name.lower().endswith(nifti.SUFFIXES) and path.is_file():
        names = _read_header_names(path)
        if names:
            return names, "its header"
    table = path.parent.parent / "predictions.csv"
    if path.parent.name == "predictions" and table.is_file() and {"value", "structure"} <= set(Columns(table).names):
        return read_label_names(table), str(table)
    return {}, ""


def _read_header_names(path: Path) -> dict[int, str]:
    """Read the label table that TotalSegmentator and Connectome Workbench store as XML between a NIfTI's header and voxels."""
    offset = int(nifti.read_header(path, one_slice=True).get_data_offset())
    with gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb") as file:
        between = file.read(min(offset, _LONGEST_HEADER))
    start, end = between.find(_XML), between.find(_XML_END)
    if start < 0 or end < start:
        return {}
    try:
        root = ElementTree.fromstring(between[start : end + len(_XML_END)])
    except ElementTree.ParseError as error:
        raise TableError(f"the names in its header are damaged ({error})", where=path, do="Pass --names") from None
    keys = [(label.get("Key", "0"), (label.text or "").strip()) for label in root.iter("Label")]
    return {int(key): name for key, name in keys if re.fullmatch(r"-?\d+", key) and int(key)}


def _read_json(path: Path) -> dict[int, str]:
    try:
        about: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TableError(f"cannot be read ({error.strerror})", where=path, do=_FORMS) from None
    except ValueError as error:
        raise TableError(f"is not JSON ({error})", where=path, do=_FORMS) from None
    if isinstance(about, dict) and isinstance(about.get("structures"), list):
        try:
            pairs = [(int(value), structure["name"]) for structure in about["structures"] for value in structure["values"]]
        except (KeyError, TypeError, ValueError):
            raise TableError("has a structure without a name or values", where=path, do=_FORMS) from None
    else:
        labels = about.get("labels", about) if isinstance(about, dict) else None
        pairs = _pair_values(labels) if isinstance(labels, dict) else []
    if not pairs:
        raise TableError("names no label values", where=path, do=_FORMS)
    return {value: str(name) for value, name in pairs if value}


def _pair_values(labels: Mapping[str, Any]) -> list[tuple[int, str]]:
    """Pair values with names in {"1": "liver"} or {"liver": 1}; other entries are skipped, such as nnU-Net's regions."""
    pairs = []
    for key, value in labels.items():
        number, name = (key, value) if re.fullmatch(r"\d+", str(key)) else (value, key)
        if isinstance(name, str) and re.fullmatch(r"\d+", str(number)):
            pairs.append((int(number), name))
    return pairs
