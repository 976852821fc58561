"""Imports LIDC-IDRI, as distributed by TCIA, as a table of nodules with consensus masks."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from dagman.errors import DagmanError, TableError
from dagman.records.counts import count_noun
from dagman.records.csv_file import write_frame
from dagman.records.files import write_whole
from dagman.scans.discovery import Refusal, Series, find_series
from dagman.tables.lidc.annotations import TRAITS, Message, read_message
from dagman.tables.lidc.nodules import Nodule, find_nodules
from dagman.tables.lidc.outlines import Grid, read_grid


@dataclass(frozen=True, kw_only=True)
class LidcSummary:
    """Result of an import: the table, numbers of scans, patients and nodules, and what was excluded."""

    table: Path
    scans: int
    patients: int
    benign: int
    malignant: int
    small: int
    "Number of single readers' marks of nodules below 3 mm, which are not in the table."
    others: int
    "Number of single readers' marks of findings that are not nodules, which are not in the table."
    left_out: tuple[Refusal, ...] = field(repr=False)
    "Excluded series, files and nodules, with reasons."


def import_lidc(
    folder: str | Path,
    out: str | Path,
    *,
    benign: tuple[int, int] = (1, 3),
    malignant: tuple[int, int] = (4, 5),
    readers: int = 1,
    on_scan: Callable[[int, int], None] | None = None,
) -> LidcSummary:
    """Write `out/table.csv` with one row per nodule, and `out/masks` with one label map per scan.

    The column `scan` refers to the DICOM series where it is: LIDC-IDRI has 125 GB, and dagman reads DICOM as well as NIfTI. The
    modules `grouping`, `outlines` and `nodules` describe how outlines become nodules. Everything that was excluded is listed
    with its reason in `out/left_out.csv`.

    Args:
        folder: contains DICOM files and the readers' XML files, in any subfolders.
        out: output folder.
        benign: range of the median malignancy over readers (1 to 5, ends included) of class 0.
        malignant: the same of class 1. A median in neither range, such as 3.5, is excluded. The paper compares 1-3 with 4-5;
            1-2 against 4-5 excludes 3.
        readers: number of readers who must have outlined a nodule.
        on_scan: called with the number of scans done and of all scans.

    Raises:
        TableError: if there is no series with annotations, or no nodule of either class.
    """
    _check_ranges(benign, malignant)
    folder, out = Path(folder), Path(out)
    pairs, refusals = _pair_readings(folder, out)
    rows: list[dict[str, object]] = []
    imported: list[Message] = []
    for done, (series, message) in enumerate(pairs, start=1):
        try:
            new, excluded = _import_scan(series, message, out, benign, malignant, readers)
        except DagmanError as error:
            refusals.append(Refusal.from_error(series.source, error))
        else:
            rows += new
            refusals += excluded
            imported.append(message)
        if on_scan:
            on_scan(done, len(pairs))
    _write_refusals(out, refusals)
    if not rows:
        raise TableError("holds no nodule of either class", where=folder, do=f"See the reasons in {out / 'left_out.csv'}")
    _write_rows(out / "table.csv", rows, list(rows[0]))
    return LidcSummary(
        table=out / "table.csv",
        scans=len(imported),
        patients=len({row["patient"] for row in rows}),
        benign=sum(row["label"] == 0 for row in rows),
        malignant=sum(row["label"] == 1 for row in rows),
        small=sum(message.small for message in imported),
        others=sum(message.others for message in imported),
        left_out=tuple(refusals),
    )


def _pair_readings(folder: Path, out: Path) -> tuple[list[tuple[Series, Message]], list[Refusal]]:
    """Pair each single-volume series with its readers' file, sorted by source; return the pairs and what has no counterpart."""
    messages, refusals = _find_messages(folder)
    discovered = find_series(folder)
    refusals += discovered.refused
    volumes = Counter(one.uid for one in discovered.series)
    series = {one.uid: one for one in discovered.series if one.uid and volumes[one.uid] == 1}
    refusals += [
        Refusal(
            source=one.source,
            reason=f"its series holds {volumes[one.uid]} volumes: the readers' files do not state which one they read",
        )
        for one in discovered.series
        if one.uid in messages and volumes[one.uid] > 1
    ]
    pairs = [(series[uid], message) for uid, message in messages.items() if uid in series]
    if not pairs:
        _write_refusals(out, refusals)
        do = "Give the folder that contains both, as TCIA distributes LIDC-IDRI (the XML files may come as a separate archive)"
        problem = f"holds {len(series)} series and {len(messages)} XML files of readers, but none that match"
        broken = [refusal for refusal in refusals if Path(refusal.source).suffix.lower() == ".xml"]
        if broken:
            problem += f"; {count_noun(len(broken), 'XML file was', 'XML files were')} refused, the first: {broken[0].source}: "
            problem += broken[0].reason.rstrip(".")
            do = f"All reasons are in {out / 'left_out.csv'}. {do}"
        raise TableError(problem, where=folder, do=do)
    refusals += [
        Refusal(source=str(m.path), reason=f"its series is missing ({uid})") for uid, m in messages.items() if uid not in volumes
    ]
    return sorted(pairs, key=lambda pair: pair[0].source), refusals


def _write_refusals(out: Path, refusals: Sequence[Refusal]) -> None:
    _write_rows(out / "left_out.csv", [{"source": one.source, "reason": one.reason} for one in refusals], ["source", "reason"])


def _check_ranges(benign: tuple[int, int], malignant: tuple[int, int]) -> None:
    if not 1 <= benign[0] <= benign[1] < malignant[0] <= malignant[1] <= 5:
        ranges = f"benign {benign[0]}-{benign[1]} and malignant {malignant[0]}-{malignant[1]}"
        raise TableError(
            f"{ranges} are not two separate ranges of malignancy", do="Malignancy goes from 1 to 5: 1-3 and 4-5, or 1-2 and 4-5"
        )


def _find_messages(folder: Path) -> tuple[dict[str, Message], list[Refusal]]:
    messages: dict[str, Message] = {}
    refusals: list[Refusal] = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".xml"):
        try:
            message = read_message(path)
        except TableError as error:
            refusals.append(Refusal.from_error(str(path), error))
            continue
        if message is None:
            refusals.append(Refusal(source=str(path), reason="holds no reading of a CT (LidcReadMessage)"))
        elif message.series_uid not in messages:
            messages[message.series_uid] = message
        elif not _have_equal_marks(message, messages[message.series_uid]):
            first = messages[message.series_uid].path
            refusals.append(Refusal(source=str(path), reason=f"differs from {first}, which belongs to the same series and is used"))
    return messages, refusals


def _have_equal_marks(first: Message, second: Message) -> bool:
    """Compare two files of the same series: TCIA distributes the XML both next to the series and in a separate archive."""

    def list_marks(message: Message) -> list[tuple[int, str, int, dict[str, int]]]:
        return [(a.reader, a.name, sum(len(o.points) for o in a.outlines), a.ratings) for a in message.annotations]

    return list_marks(first) == list_marks(second)


def _import_scan(
    series: Series, message: Message, out: Path, benign: tuple[int, int], malignant: tuple[int, int], readers: int
) -> tuple[list[dict[str, object]], list[Refusal]]:
    grid = read_grid(series.files)
    nodules = find_nodules(message.annotations, grid)
    patient = grid.patient or str(series.patient)
    classified: list[tuple[int, Nodule, int]] = []
    excluded: list[Refusal] = []
    for number, nodule in enumerate(nodules, start=1):
        reason = ""
        median = nodule.ratings["malignancy"]
        if nodule.readers < readers:
            reason = f"outlined by {nodule.readers} of the {readers} readers required"
        elif not (benign[0] <= median <= benign[1] or malignant[0] <= median <= malignant[1]):
            reason = f"median malignancy {median:g} is in neither range"
        if reason:
            excluded.append(Refusal(source=f"{series.source} nodule {number}", reason=reason))
        else:
            classified.append((number, nodule, int(median >= malignant[0])))
    if not classified:
        return [], excluded
    name = re.sub(r"[^\w.-]", "_", f"{patient}_{series.uid}")
    mask = out / "masks" / f"{name}.nii.gz"
    hidden = _write_mask(mask, grid, [(number, nodule.voxels) for number, nodule, _ in classified])
    excluded += [
        Refusal(source=f"{series.source} nodule {n}", reason="lies entirely within another nodule") for n in sorted(hidden)
    ]
    scan = Path(os.path.relpath(series.source, out)).as_posix()
    rows: list[dict[str, object]] = [
        {
            "scan": scan,
            "mask": mask.relative_to(out).as_posix(),
            "label_value": number,
            "patient": patient,
            "nodule": number,
            "label": label,
            "malignancy_median": nodule.ratings["malignancy"],
            "malignancy_mean": round(nodule.malignancy_mean, 3),
            "readers": nodule.readers,
            "diameter_mm": round(nodule.diameter_mm, 2),
            "mask_ml": round(nodule.volume_ml, 4),
            **{trait: nodule.ratings.get(trait) for trait in TRAITS.values() if trait != "malignancy"},
            **{f"center_{axis}_mm": round(value, 3) for axis, value in zip("xyz", nodule.center_mm, strict=True)},
            "seriesuid": series.uid,
        }
        for number, nodule, label in classified
        if number not in hidden
    ]
    return rows, excluded


def _write_mask(path: Path, grid: Grid, nodules: Sequence[tuple[int, np.ndarray]]) -> set[int]:
    """Write a label map; return the numbers of the nodules that others cover completely."""
    labels = np.zeros(grid.shape, dtype=np.uint8)
    # Smaller nodules last: where two masks overlap, the smaller one would lose the larger share of its voxels.
    for number, voxels in sorted(nodules, key=lambda pair: -len(pair[1])):
        labels[tuple(voxels.T)] = number
    with write_whole(path) as temporary:
        nib.save(nib.Nifti1Image(labels, grid.affine.matrix), temporary)
    return {number for number, _ in nodules} - set(np.unique(labels).tolist())


def _write_rows(path: Path, rows: Sequence[dict[str, object]], columns: Sequence[str]) -> None:
    write_frame(path, pd.DataFrame(rows, columns=list(columns)))
