"""Labelled scans of a segmentation: a table, or a `dataset.json` as the Medical Segmentation Decathlon and nnU-Net v2 write it.

A table has a row a scan with its `mask`; rows of one scan (a row a structure, with `label_value`) are joined. A column `contoured`
lists the structures drawn in each mask: any other is unknown in that scan, which is not to say that it is absent.
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
    """Scans with label maps, and the structures in them."""

    path: Path
    items: tuple[Item, ...]
    "One a scan; names are unique and can be file names."
    structures: tuple[Structure, ...]
    "Empty: every value found in the masks is one."
    notes: tuple[Note, ...] = ()

    @property
    def splits(self) -> np.ndarray | None:
        """The given split of each item (train, val or test), or None when there is none."""
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
    """Read a table (CSV, Parquet), a dataset.json, or a folder that holds one.

    labels: structures and their values, such as "liver=5,kidneys=7+8", or names alone, such as "liver,spleen", where the masks are
    RTSTRUCT or SEG. mask_label: the one value that counts. Without either:
    the file's own structures, else every value found in the masks. patient, split, contoured: the table's columns; `split` and
    `contoured` are used where they exist. ids: as in `read_table`.

    Raises TableError, one line: files that are absent (all at once), several channels, labels that cannot be meant.
    """
    path = Path(path)
    if labels is not None and mask_label is not None:
        raise TableError("--labels and --mask-label cannot be combined", where=path, do="Give one of them")
    listed = path.is_dir() or path.suffix.lower() == ".json"
    by_name = labels is not None and "=" not in labels and not listed
    given = parse_structures(labels) if labels is not None and not by_name else ()
    if mask_label is not None:
        given = (Structure(name=f"label {mask_label}", values=(_check_value(mask_label, path),)),)
    if path.is_dir():
        path = path / "dataset.json"
    if listed and split != "split":
        do = "Omit --split: cases with a label under 'test' (labelsTs in nnU-Net's layout) are the test set"
        raise TableError(f"a dataset.json has no column '{split}'", where=path, do=do)
    if listed and contoured != "contoured":
        raise TableError(f"a dataset.json has no column '{contoured}'", where=path, do="Omit --contoured, or give a table")
    data = _read_dataset(path) if listed else _read_rows(path, patient, split, contoured, ids, by_name)
    if labels is not None and by_name:
        return _name_drawn(data, labels, contoured)
    if given:
        data = replace(data, structures=given)
    _refuse_undrawn(data)
    return data


def parse_structures(text: str) -> tuple[Structure, ...]:
    """Structures from "liver=5,kidneys=7+8"; raises TableError for anything else, or a value or name given twice."""
    structures = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, values = part.partition("=")
        if not (name.strip() and equals and re.fullmatch(r"\d+(\+\d+)*", values.strip())):
            raise TableError(
                f"'{part}' names no structure", where="--labels", do="Write NAME=VALUE,... such as liver=5,kidneys=7+8"
            )
        structures.append(
            Structure(name=name.strip(), values=tuple(_check_value(int(v), "--labels") for v in values.strip().split("+")))
        )
    if not structures:
        raise TableError("names no structure", where="--labels", do="Write NAME=VALUE,... such as liver=5,spleen=7")
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
    torn = [os.path.relpath(scan, path.parent) for scan, paths in masks.items() if len(paths) > 1]
    if torn:
        do = "Write one label map per scan, with a value for each structure"
        raise TableError(f"scans have several masks: {list_some(torn)}", where=path, do=do)
    named = sorted({str(item.structure) for item in table.items if item.structure is not None})
    if len(named) > 1 and not by_name:
        do = (
            "Write one label map per scan, with a value for each structure; for RTSTRUCT and SEG, name the structures by "
            "--labels NAME,NAME"
        )
        raise TableError(f"names several structures: {list_some(named)}", where=path, do=do)
    bare = [item.name for item in table.items if item.mask is None]
    notes = list(table.notes)
    if bare:
        notes.append(warn(f"{count_noun(len(bare), 'row has', 'rows have')} no mask: left out ({list_some(bare)})"))
    first: dict[Path, Item] = {}
    for item in table.items:
        if isinstance(item.scan, Path) and item.mask is not None:
            first.setdefault(item.scan, item)
    if not first:
        raise TableError("no row has a mask", where=path, do="Name each scan's label map in the column 'mask'")
    names = name_outputs([str(scan) for scan in first])
    if "item" in table.columns:
        own = [re.sub(r"[^\w.-]", "_", item.name) for item in first.values()]
        names = own if len(set(own)) == len(own) else names
    drawn = _join_contoured(table, contoured)
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
    structures, structure_notes = _join_values(table)
    return LabelledScans(path=table.path, items=items, structures=structures, notes=(*notes, *structure_notes))


def _name_drawn(data: LabelledScans, labels: str, contoured: str) -> LabelledScans:
    """Structures of RTSTRUCT and SEG by name; where a mask lacks one it is unknown, unless a column says what was contoured."""
    drawn = [item.mask is not None and holds_structures(item.mask) for item in data.items]
    if not any(drawn):
        return replace(data, structures=parse_structures(labels))
    if not all(drawn):
        others = list_some(item.name for item, is_drawn in zip(data.items, drawn, strict=True) if not is_drawn)
        do = "Give masks of one kind, or NAME=VALUE for label maps"
        raise TableError(f"structures are named, but some masks are neither RTSTRUCT nor SEG ({others})", where=data.path, do=do)
    names = [name for part in labels.split(",") if (name := part.strip())]
    structures = tuple(Structure(name=name, values=(value,)) for value, name in enumerate(names, start=1))
    _refuse_repeated([replace(one, name=one.name.casefold()) for one in structures], "--labels")
    stated = contoured in Columns(data.path)
    items, drawn_in, lacking = [], {}, 0
    for item in data.items:
        assert item.mask is not None
        # What cannot be read is refused by name when its turn comes.
        with contextlib.suppress(ScanError):
            drawn_in[item.name] = list_drawn(item.mask)
        held = {name.casefold() for name in drawn_in.get(item.name, names)}
        here = [one for one in structures if one.name.casefold() in held]
        if here and len(here) < len(structures) and not stated:
            item, lacking = replace(item, contoured=frozenset(one.name for one in here)), lacking + 1
        items.append(replace(item, structure=None, structures=tuple((one.values[0], one.name) for one in here or structures)))
    every = sorted({name for one in drawn_in.values() for name in one})
    absent = [name for name in names if name.casefold() not in map(str.casefold, every)]
    if not names or (absent and len(drawn_in) == len(items)):
        what = f"no mask holds {list_some(map(repr, absent))}" if names else "no structure is named"
        raise TableError(
            f"{what} (there are {list_some(map(repr, every))})", where="--labels", do="Name structures as the masks do"
        )
    text = "lacks one of the structures" if lacking == 1 else "lack one of the structures or several"
    note = warn(f"{count_noun(lacking, 'mask')} {text}: it is unknown there, and excluded from the loss and the scores")
    data = replace(data, items=tuple(items), structures=structures, notes=(*data.notes, note) if lacking else data.notes)
    _refuse_undrawn(data)
    return data


def _join_contoured(table: Table, column: str) -> dict[Path, frozenset[str] | None]:
    """The structures drawn in each scan, over all its rows; nothing where the table has no such column."""
    columns = Columns(table.path)
    if column == "contoured" and column not in columns:
        return {}
    listed = read_contoured(columns, column)
    joined: dict[Path, frozenset[str] | None] = {}
    for item in table.items:
        if isinstance(item.scan, Path):
            entries, before = listed[item.index], joined.get(item.scan, frozenset())
            joined[item.scan] = None if entries is None or before is None else before | entries
    return joined


def _refuse_undrawn(data: LabelledScans) -> None:
    """A structure that no scan lists is most likely a slip of the pen."""
    if not data.structures or all(item.contoured is None for item in data.items):
        return
    drawn = [list_contoured(item.contoured, data.structures) for item in data.items]
    for number, structure in enumerate(data.structures):
        if not any(row[number] for row in drawn):
            listed = list_some(sorted({entry for item in data.items for entry in item.contoured or ()}))
            values = "+".join(map(str, structure.values))
            what = f"structure '{structure.name}' (value {values}) is listed as contoured in no scan (listed: {listed})"
            raise TableError(what, where=data.path, do="Write its value, or its name as --labels gives it, into 'contoured'")


def _join_values(table: Table) -> tuple[tuple[Structure, ...], list[Note]]:
    """Structures from the column `label_value`: named by `label` if names and values are one to one, else joined."""
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
    channels = about.get("channel_names") or about.get("modality") or {"0": "CT"}
    if len(channels) > 1:
        names = ", ".join(map(str, channels.values()))
        do = "dagman reads one image per case; write a dataset.json with one channel"
        raise TableError(f"has {len(channels)} input channels ({names})", where=path, do=do)
    pairs, notes = _list_decathlon(about, path) if "training" in about else _list_nnunet(about, path)
    absent = [os.path.relpath(file, path.parent) for image, label, _ in pairs for file in (image, label) if not file.exists()]
    if absent:
        count = count_noun(len(absent), "file does", "files do")
        raise TableError(f"{count} not exist: {list_some(absent)}", where=path, do="Paths are relative to dataset.json")
    tested = any(part == "test" for _, _, part in pairs)
    cases = name_outputs([str(label) for _, label, _ in pairs])
    items = tuple(
        Item(index=index, name=case, scan=image, mask=label, patient=case, split=part if tested else None)
        for index, ((image, label, part), case) in enumerate(zip(pairs, cases, strict=True))
    )
    scans = count_noun(len(items), "scan")
    notes.append(inform(f"a dataset.json names no patients: each of {scans} is treated as a separate patient"))
    return LabelledScans(path=path, items=items, structures=_name_structures(about["labels"], path), notes=tuple(notes))


def _list_decathlon(about: Mapping[str, Any], path: Path) -> tuple[list[tuple[Path, Path, str]], list[Note]]:
    """(image, label, split) of each case: `training`, and those of `test` that have a label."""
    pairs, bare = [], 0
    for part, name in (("training", "train"), ("validation", "val"), ("test", "test")):
        for entry in about.get(part) or []:
            if isinstance(entry, dict) and {"image", "label"} <= entry.keys():
                pairs.append((_find_image(path.parent / entry["image"]), path.parent / entry["label"], name))
            elif part == "training":
                raise TableError("an entry of 'training' lacks image or label", where=path, do='Write {"image": ..., "label": ...}')
            else:
                bare += 1
    if not pairs:
        raise TableError("lists no training cases", where=path, do="Fill 'training'")
    return pairs, _note_bare(bare)


def _list_nnunet(about: Mapping[str, Any], path: Path) -> tuple[list[tuple[Path, Path, str]], list[Note]]:
    """(image, label, split) of each case in imagesTr and labelsTr, and of imagesTs as far as there is labelsTs."""
    ending = str(about.get("file_ending", ".nii.gz"))
    pairs, bare = [], 0
    for suffix, part in (("Tr", "train"), ("Ts", "test")):
        labels = path.parent / f"labels{suffix}"
        images = path.parent / f"images{suffix}"
        cases = {f.name.removesuffix(ending) for f in labels.glob(f"*{ending}") if not f.name.startswith(".")}
        imaged = {f.name.removesuffix(f"_0000{ending}") for f in images.glob(f"*_0000{ending}") if not f.name.startswith(".")}
        bare += len(imaged - cases) if part == "test" else 0
        # Both ways: an image without label and a label without image are both named as absent.
        for case in sorted(cases | imaged if part == "train" else cases):
            pairs.append((images / f"{case}_0000{ending}", labels / f"{case}{ending}", part))
    if not pairs:
        raise TableError(f"is not next to imagesTr/*_0000{ending} and labelsTr/*{ending}", where=path, do="Check file_ending")
    return pairs, _note_bare(bare)


def _find_image(image: Path) -> Path:
    """nnU-Net v1 lists case.nii.gz and means case_0000.nii.gz."""
    if image.exists():
        return image
    stem, dot, ending = image.name.partition(".")
    numbered = image.with_name(f"{stem}_0000{dot}{ending}")
    return numbered if numbered.exists() else image


def _note_bare(count: int) -> list[Note]:
    if not count:
        return []
    return [inform(f"{count_noun(count, 'test scan has', 'test scans have')} no label: apply the model with dagman predict")]


def _name_structures(labels: Mapping[str, Any], path: Path) -> tuple[Structure, ...]:
    """The Decathlon writes {"1": "liver"}, nnU-Net {"liver": 1}; background (0) is left out."""
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
        raise TableError("names no structure beside background", where=path, do="Fill 'labels'")
    _refuse_repeated(structures, path)
    return tuple(structures)


def _check_value(value: int, where: object) -> int:
    if not 1 <= value <= 65535:
        raise TableError(f"a structure has the value {value}", where=where, do="Values are 1 to 65535; 0 is background")
    return value


def _refuse_repeated(structures: Sequence[Structure], where: object) -> None:
    names = [structure.name for structure in structures]
    values = [str(value) for structure in structures for value in structure.values]
    for what, given in (("name", names), ("value", values)):
        twice = sorted({one for one in given if given.count(one) > 1})
        if twice:
            raise TableError(f"the {what} {twice[0]} is assigned to two structures", where=where, do="Give each a different one")
