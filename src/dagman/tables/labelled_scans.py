"""Reads labelled scans for segmentation from a table, or from a `dataset.json` of the Medical Segmentation Decathlon or nnU-Net v2.

A table has one row per scan with its `mask`; several rows of a scan (one per structure, with `label_value`) are merged. A column
`contoured` lists the structures drawn in each mask: any other structure is unknown in that scan, rather than absent.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dagman.errors import ScanError, TableError
from dagman.notes import Note, inform, warn
from dagman.records.counts import count_noun, list_some
from dagman.scans.label_files import name_outputs
from dagman.scans.structures import holds_structures, list_drawn
from dagman.tables.columns import Columns
from dagman.tables.items import Item
from dagman.tables.structures import Structure, list_contoured, read_contoured
from dagman.tables.table import Table, read_table


@dataclass(frozen=True, kw_only=True)
class LabelledScans:
    """Scans with label maps, and the structures in these maps."""

    path: Path
    items: tuple[Item, ...]
    "One per scan; their names are unique and valid as file names."
    structures: tuple[Structure, ...]
    "Empty if every value in the masks is a structure."
    notes: tuple[Note, ...] = ()

    @property
    def splits(self) -> np.ndarray | None:
        """The given split of each item (train, val or test), or None if there is none."""
        if any(item.split is None for item in self.items):
            return None
        return np.array([item.split for item in self.items], dtype=str)


def read_labelled_scans(
    path: str | Path,
    *,
    labels: str | None = None,
    mask_label: int | None = None,
    patient: str = "patient",
    split: str = "split",
    contoured: str = "contoured",
    ids: str = "checked",
) -> LabelledScans:
    """Read labelled scans from a table (CSV, Parquet, Excel), a dataset.json, or a folder that contains one.

    Without `labels` and `mask_label`, the structures are those that the file names, or else all values in the masks.

    Args:
        path: the table, dataset.json or folder.
        labels: structures and their values, such as "liver=5,kidneys=7+8"; only names, such as "liver,spleen", if the masks
            are RTSTRUCT or SEG.
        mask_label: the value of the only structure.
        patient: the table's column of patients.
        split: the table's column of splits, used if it exists.
        contoured: the table's column of drawn structures, used if it exists.
        ids: as in `read_table`.

    Raises:
        TableError: if files are missing (all are named), a case has several channels, or the labels are invalid.
    """
    path = Path(path)
    if labels is not None and mask_label is not None:
        raise TableError("--labels and --mask-label cannot be combined", where=path, do="Give one of them")
    is_dataset = path.is_dir() or path.suffix.lower() == ".json"
    by_name = labels is not None and "=" not in labels and not is_dataset
    given = parse_structures(labels) if labels is not None and not by_name else ()
    if mask_label is not None:
        given = (Structure(name=f"label {mask_label}", values=(_check_value(mask_label, path),)),)
    if path.is_dir():
        path = path / "dataset.json"
    if is_dataset and split != "split":
        do = "Omit --split: cases with a label under 'test' (labelsTs in nnU-Net's layout) are the test set"
        raise TableError(f"a dataset.json has no column '{split}'", where=path, do=do)
    if is_dataset and contoured != "contoured":
        raise TableError(f"a dataset.json has no column '{contoured}'", where=path, do="Omit --contoured, or give a table")
    data = _read_dataset(path) if is_dataset else _read_rows(path, patient, split, contoured, ids, by_name)
    if labels is not None and by_name:
        return _select_by_name(data, labels, contoured)
    if given:
        data = replace(data, structures=given)
    _refuse_undrawn(data)
    return data


def parse_structures(text: str) -> tuple[Structure, ...]:
    """Parse structures such as "liver=5,kidneys=7+8".

    Raises:
        TableError: if the text has a different form, or names a structure or value twice.
    """
    structures = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, values = part.partition("=")
        if not (name.strip() and equals and re.fullmatch(r"\d+(\+\d+)*", values.strip())):
            raise TableError(
                f"'{part}' is not a structure", where="--labels", do="Write NAME=VALUE,... such as liver=5,kidneys=7+8"
            )
        structures.append(
            Structure(name=name.strip(), values=tuple(_check_value(int(v), "--labels") for v in values.strip().split("+")))
        )
    if not structures:
        raise TableError("is empty", where="--labels", do="Write NAME=VALUE,... such as liver=5,spleen=7")
    _refuse_repeated(structures, "--labels")
    return tuple(structures)


def _read_rows(path: Path, patient: str, split: str, contoured: str, ids: str, by_name: bool) -> LabelledScans:
    table = read_table(path, patient=patient, split=split, ids=ids)
    if "mask" not in table.columns:
        raise TableError("has no column 'mask'", where=path, do="Name each scan's label map in a column 'mask'")
    masks: dict[Path, set[Path | None]] = {}
    for item in table.items:
        if isinstance(item.scan, Path):
            masks.setdefault(item.scan, set()).add(item.mask)
    ambiguous = [os.path.relpath(scan, path.parent) for scan, paths in masks.items() if len(paths) > 1]
    if ambiguous:
        do = "Write one label map per scan, with a value for each structure"
        raise TableError(f"scans have several masks: {list_some(ambiguous)}", where=path, do=do)
    named = sorted({str(item.structure) for item in table.items if item.structure is not None})
    if len(named) > 1 and not by_name:
        do = (
            "Write one label map per scan, with a value for each structure; for RTSTRUCT and SEG, name the structures with "
            "--labels NAME,NAME"
        )
        raise TableError(f"names several structures: {list_some(named)}", where=path, do=do)
    without = [item.name for item in table.items if item.mask is None]
    notes = list(table.notes)
    if without:
        notes.append(warn(f"{count_noun(len(without), 'row has', 'rows have')} no mask: skipped ({list_some(without)})"))
    first: dict[Path, Item] = {}
    for item in table.items:
        if isinstance(item.scan, Path) and item.mask is not None:
            first.setdefault(item.scan, item)
    if not first:
        raise TableError("no row has a mask", where=path, do="Name each scan's label map in the column 'mask'")
    names = name_outputs([str(scan) for scan in first])
    if "item" in table.columns:
        given = [re.sub(r"[^\w.-]", "_", item.name) for item in first.values()]
        names = given if len(set(given)) == len(given) else names
    drawn = _merge_contoured(table, contoured)
    items = tuple(
        replace(item, index=index, name=name, label_value=None, label=None, center_mm=None, contoured=drawn.get(scan))
        for index, ((scan, item), name) in enumerate(zip(first.items(), names, strict=True))
    )
    if drawn:
        whole = sum(item.contoured is None for item in items)
        text = (
            f"column '{contoured}' lists the structures annotated in each scan: any other is unknown there, and excluded from "
            f"the loss and the scores"
        )
        notes.append(warn(f"{text}; {count_noun(whole, 'scan lists', 'scans list')} 'all'" if whole else text))
    structures, structure_notes = _find_structures(table)
    return LabelledScans(path=table.path, items=items, structures=structures, notes=(*notes, *structure_notes))


def _select_by_name(data: LabelledScans, labels: str, contoured: str) -> LabelledScans:
    """Select structures of RTSTRUCT and SEG by name.

    A structure that a mask lacks is unknown in that scan, unless a column lists what was contoured.
    """
    drawn = [item.mask is not None and holds_structures(item.mask) for item in data.items]
    if not any(drawn):
        return replace(data, structures=parse_structures(labels))
    if not all(drawn):
        others = list_some(item.name for item, is_drawn in zip(data.items, drawn, strict=True) if not is_drawn)
        do = "Give masks of one kind, or NAME=VALUE for label maps"
        raise TableError(f"structures are named, but some masks are neither RTSTRUCT nor SEG ({others})", where=data.path, do=do)
    names = [name for part in labels.split(",") if (name := part.strip())]
    structures = tuple(Structure(name=name, values=(value,)) for value, name in enumerate(names, start=1))
    _refuse_repeated([replace(structure, name=structure.name.casefold()) for structure in structures], "--labels")
    has_column = contoured in Columns(data.path)
    items, drawn_in, lacking = [], {}, 0
    for item in data.items:
        assert item.mask is not None
        # A mask that cannot be read is refused by name later, when it is used.
        with contextlib.suppress(ScanError):
            drawn_in[item.name] = list_drawn(item.mask)
        in_mask = {name.casefold() for name in drawn_in.get(item.name, names)}
        present = [structure for structure in structures if structure.name.casefold() in in_mask]
        if present and len(present) < len(structures) and not has_column:
            item, lacking = replace(item, contoured=frozenset(structure.name for structure in present)), lacking + 1
        pairs = tuple((structure.values[0], structure.name) for structure in present or structures)
        items.append(replace(item, structure=None, structures=pairs))
    available = sorted({name for drawn_names in drawn_in.values() for name in drawn_names})
    absent = [name for name in names if name.casefold() not in map(str.casefold, available)]
    if not names or (absent and len(drawn_in) == len(items)):
        what = f"no mask contains {list_some(map(repr, absent))}" if names else "is empty"
        do = "Name structures as the masks do"
        raise TableError(f"{what} (available: {list_some(map(repr, available))})", where="--labels", do=do)
    text = "lacks at least one of the structures" if lacking == 1 else "lack at least one of the structures"
    note = warn(f"{count_noun(lacking, 'mask')} {text}: it is unknown there, and excluded from the loss and the scores")
    data = replace(data, items=tuple(items), structures=structures, notes=(*data.notes, note) if lacking else data.notes)
    _refuse_undrawn(data)
    return data


def _merge_contoured(table: Table, column: str) -> dict[Path, frozenset[str] | None]:
    """The structures drawn in each scan according to all its rows; {} if the table has no such column."""
    columns = Columns(table.path)
    if column == "contoured" and column not in columns:
        return {}
    listed = read_contoured(columns, column)
    merged: dict[Path, frozenset[str] | None] = {}
    for item in table.items:
        if isinstance(item.scan, Path):
            entries, before = listed[item.index], merged.get(item.scan, frozenset())
            merged[item.scan] = None if entries is None or before is None else before | entries
    return merged


def _refuse_undrawn(data: LabelledScans) -> None:
    """Raise TableError for a structure that no scan lists as contoured, which is most likely a typing error."""
    if not data.structures or all(item.contoured is None for item in data.items):
        return
    drawn = [list_contoured(item.contoured, data.structures) for item in data.items]
    for number, structure in enumerate(data.structures):
        if not any(row[number] for row in drawn):
            listed = list_some(sorted({entry for item in data.items for entry in item.contoured or ()}))
            values = "+".join(map(str, structure.values))
            what = f"no scan lists structure '{structure.name}' (value {values}) as contoured (listed: {listed})"
            raise TableError(what, where=data.path, do="Write its value, or its name in --labels, into 'contoured'")


def _find_structures(table: Table) -> tuple[tuple[Structure, ...], list[Note]]:
    """Structures from the column `label_value`, named by `label` if names and values match one to one, else merged into one."""
    values = sorted({item.label_value for item in table.items if item.label_value is not None})
    if not values:
        return (), []
    if "label" in table.columns:
        texts = Columns(table.path).text("label")
        pairs = {(texts[item.index], item.label_value) for item in table.items if item.label_value is not None}
        names = {str(name): value for name, value in pairs if name is not None}
        if len(names) == len(pairs) == len(values) > 1:
            return tuple(Structure(name=name, values=(names[name],)) for name in sorted(names, key=lambda n: names[n])), []
    if len(values) == 1:
        return (Structure(name="structure", values=(values[0],)),), []
    listed = list_some(values)
    return (Structure(name="structure", values=tuple(values)),), [inform(f"label_value {listed} are treated as one structure")]


def _read_dataset(path: Path) -> LabelledScans:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TableError("does not exist", where=path, do="Give a table, or a dataset.json") from None
    except (ValueError, OSError) as error:
        raise TableError(f"is not JSON ({error})", where=path, do="Give a dataset.json of the Decathlon or of nnU-Net") from None
    if not isinstance(about, dict) or not isinstance(about.get("labels"), dict):
        raise TableError("has no 'labels'", where=path, do="Give a dataset.json of the Decathlon or of nnU-Net")
    channels = about.get("channel_names") or about.get("modality")
    if isinstance(channels, dict | list) and len(channels) > 1:
        names = ", ".join(map(str, channels.values() if isinstance(channels, dict) else channels))
        do = "dagman reads one image per case; write a dataset.json with one channel"
        raise TableError(f"has {len(channels)} input channels ({names})", where=path, do=do)
    pairs, notes = _list_decathlon(about, path) if "training" in about else _list_nnunet(about, path)
    absent = [os.path.relpath(file, path.parent) for image, label, _ in pairs for file in (image, label) if not file.exists()]
    if absent:
        count = count_noun(len(absent), "file does", "files do")
        raise TableError(f"{count} not exist: {list_some(absent)}", where=path, do="Paths are relative to dataset.json")
    has_test = any(part == "test" for _, _, part in pairs)
    cases = name_outputs([str(label) for _, label, _ in pairs])
    items = tuple(
        Item(index=index, name=case, scan=image, mask=label, patient=case, split=part if has_test else None)
        for index, ((image, label, part), case) in enumerate(zip(pairs, cases, strict=True))
    )
    scans = count_noun(len(items), "scan")
    notes.append(inform(f"a dataset.json names no patients: each of {scans} is treated as a separate patient"))
    return LabelledScans(path=path, items=items, structures=_name_structures(about["labels"], path), notes=tuple(notes))


def _list_decathlon(about: Mapping[str, Any], path: Path) -> tuple[list[tuple[Path, Path, str]], list[Note]]:
    """List (image, label, split) of each training case, and of validation and test cases that have a label."""
    pairs, unlabelled = [], 0
    for part, name in (("training", "train"), ("validation", "val"), ("test", "test")):
        entries = about.get(part) or []
        if not isinstance(entries, list):
            raise TableError(f"'{part}' is not a list", where=path, do='Write [{"image": ..., "label": ...}, ...]')
        for entry in entries:
            if isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("image", "label")):
                pairs.append((_find_image(path.parent / entry["image"]), path.parent / entry["label"], name))
            elif part == "training":
                raise TableError("an entry of 'training' lacks image or label", where=path, do='Write {"image": ..., "label": ...}')
            else:
                unlabelled += 1
    if not pairs:
        raise TableError("lists no training cases", where=path, do="Fill 'training'")
    return pairs, _note_unlabelled(unlabelled)


def _list_nnunet(about: Mapping[str, Any], path: Path) -> tuple[list[tuple[Path, Path, str]], list[Note]]:
    """List (image, label, split) of each case in imagesTr and labelsTr, and of those in imagesTs that have a map in labelsTs."""
    ending = str(about.get("file_ending", ".nii.gz"))
    pairs, unlabelled = [], 0
    for suffix, part in (("Tr", "train"), ("Ts", "test")):
        labels = path.parent / f"labels{suffix}"
        images = path.parent / f"images{suffix}"
        cases = {f.name.removesuffix(ending) for f in labels.glob(f"*{ending}") if not f.name.startswith(".")}
        imaged = {f.name.removesuffix(f"_0000{ending}") for f in images.glob(f"*_0000{ending}") if not f.name.startswith(".")}
        unlabelled += len(imaged - cases) if part == "test" else 0
        # The union, so that an image without label and a label without image are both reported as missing.
        for case in sorted(cases | imaged if part == "train" else cases):
            pairs.append((images / f"{case}_0000{ending}", labels / f"{case}{ending}", part))
    if not pairs:
        raise TableError(f"is not next to imagesTr/*_0000{ending} and labelsTr/*{ending}", where=path, do="Check file_ending")
    return pairs, _note_unlabelled(unlabelled)


def _find_image(image: Path) -> Path:
    """Resolve an image's path: nnU-Net v1 lists case.nii.gz for the file case_0000.nii.gz."""
    if image.exists():
        return image
    stem, dot, ending = image.name.partition(".")
    numbered = image.with_name(f"{stem}_0000{dot}{ending}")
    return numbered if numbered.exists() else image


def _note_unlabelled(count: int) -> list[Note]:
    if not count:
        return []
    return [inform(f"{count_noun(count, 'test scan has', 'test scans have')} no label: apply the model with dagman predict")]


def _name_structures(labels: Mapping[str, Any], path: Path) -> tuple[Structure, ...]:
    """Structures of 'labels', {"1": "liver"} in the Decathlon and {"liver": 1} in nnU-Net, without background (0)."""
    structures = []
    for key, value in labels.items():
        name, number = (value, key) if str(key).isdigit() else (key, value)
        if name == "ignore":
            raise TableError(
                "has a label 'ignore'",
                where=path,
                do="dagman does not support it: assign these voxels a class, or remove the label",
            )
        if isinstance(number, list) and len(number) == 1:
            number = number[0]
        if not str(number).isdigit():
            do = "Structures may not overlap: name them with --labels liver=1,tumour=2"
            raise TableError(f"label '{name}' is {number!r}, not one value", where=path, do=do)
        if int(number):
            structures.append(Structure(name=str(name), values=(_check_value(int(number), path),)))
    if not structures:
        raise TableError("names no structure except background", where=path, do="Fill 'labels'")
    _refuse_repeated(structures, path)
    return tuple(structures)


def _check_value(value: int, where: object) -> int:
    if not 1 <= value <= 65535:
        raise TableError(f"a structure has the value {value}", where=where, do="Values are 1 to 65535; 0 is background")
    return value


def _refuse_repeated(structures: Sequence[Structure], where: object) -> None:
    names = [structure.name for structure in structures]
    values = [str(value) for structure in structures for value in structure.values]
    for kind, entries in (("name", names), ("value", values)):
        repeated = sorted({entry for entry in entries if entries.count(entry) > 1})
        if repeated:
            raise TableError(f"the {kind} {repeated[0]} is assigned to two structures", where=where, do="Give each a different one")
