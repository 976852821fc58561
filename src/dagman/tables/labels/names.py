"""What the values of a label map are called: from a table, a JSON file, a segmentation model, or the map's own header."""

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
    """Names of label values from what a user gives for them.

    source: `liver=5,kidneys=7+8`; a table (see `read_label_names`); a JSON file that maps values to names or names to values
    (TotalSegmentator's class maps, a dataset.json); or the folder of a segmentation model or data set. Raises TableError for
    anything else.
    """
    path = Path(source)
    if not path.exists() and "=" in source:
        return {value: one.name for one in parse_structures(source) for value in one.values}
    if path.is_dir():
        file = next((path / name for name in _MODEL_FILES if (path / name).is_file()), None)
        if file is None:
            raise TableError("holds no segmentation model and no dataset.json", where=path, do=_FORMS)
        return _read_json(file)
    if path.suffix.lower() == ".json":
        return _read_json(path)
    return read_label_names(path)


def read_label_names(path: str | Path) -> dict[int, str]:
    """Names of label values from a table with columns `id` and `name`, each pair as often as it likes (once a map, say).

    `value` and `structure`, as dagman predict writes them, will do. Raises TableError for a row without them, or an id of two
    names.
    """
    columns = Columns(path)
    ids, names = columns.numbers(_choose(columns, "id", "value")), columns.text(_choose(columns, "name", "structure"))
    wrong = [row for row, (number, name) in enumerate(zip(ids, names, strict=True)) if name is None or number != np.round(number)]
    if wrong:
        raise columns.error("a label has no whole number or no name", wrong, do="Write one id and one name per row")
    by_id: dict[int, str] = {}
    for row, (number, name) in enumerate(zip(ids, names, strict=True)):
        if by_id.setdefault(int(number), str(name)) != name:
            raise columns.error(f"label {int(number)} is '{by_id[int(number)]}' and '{name}'", [row], do="Give each id one name")
    return by_id


def _choose(columns: Columns, name: str, other: str) -> str:
    return other if name not in columns and other in columns else name


def read_own_names(path: Path) -> tuple[dict[int, str], str]:
    """The names that a label map brings along, and where they stand: its header, or the predictions.csv of dagman predict."""
    if path.name.lower().endswith(nifti.SUFFIXES) and path.is_file():
        names = _read_header_names(path)
        if names:
            return names, "its header"
    table = path.parent.parent / "predictions.csv"
    if path.parent.name == "predictions" and table.is_file() and {"value", "structure"} <= set(Columns(table).names):
        return read_label_names(table), str(table)
    return {}, ""


def _read_header_names(path: Path) -> dict[int, str]:
    """The table of labels that TotalSegmentator and Connectome Workbench keep as XML between a NIfTI's header and its voxels."""
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
    return {int(one.get("Key", 0)): (one.text or "").strip() for one in root.iter("Label") if int(one.get("Key", 0))}


def _read_json(path: Path) -> dict[int, str]:
    try:
        about: Any = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise TableError(f"is not JSON ({error})", where=path, do=_FORMS) from None
    if isinstance(about, dict) and isinstance(about.get("structures"), list):
        pairs = [(value, one["name"]) for one in about["structures"] for value in one["values"]]
    else:
        held = about.get("labels", about) if isinstance(about, dict) else None
        pairs = _pair_values(held) if isinstance(held, dict) else []
    if not pairs:
        raise TableError("names no label values", where=path, do=_FORMS)
    return {int(value): str(name) for value, name in pairs if int(value)}


def _pair_values(labels: Mapping[str, Any]) -> list[tuple[int, str]]:
    """{"1": "liver"} or {"liver": 1}; what is neither is passed over, such as nnU-Net's regions."""
    pairs = []
    for key, value in labels.items():
        number, name = (key, value) if re.fullmatch(r"\d+", str(key)) else (value, key)
        if isinstance(name, str) and re.fullmatch(r"\d+", str(number)):
            pairs.append((int(number), name))
    return pairs
