"""LIDC-IDRI as TCIA ships it to a table of nodules with consensus masks."""

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
    """What was imported: the table, counts of scans and of nodules of each class, and what was left out, with its reason.

    `small` and `others` count single readers' marks of nodules below 3 mm and of what is no nodule; neither is in the table.
    """

    table: Path
    scans: int
    patients: int
    benign: int
    malignant: int
    small: int
    others: int
    left_out: tuple[Refusal, ...] = field(repr=False)


def import_lidc(
    folder: str | Path,
    out: str | Path,
    *,
    benign: tuple[int, int] = (1, 3),
    malignant: tuple[int, int] = (4, 5),
    readers: int = 1,
    on_scan: Callable[[int, int], None] | None = None,
) -> LidcSummary:
    """Write `out/table.csv`, a row a nodule, and `out/masks`, a label map a scan, from DICOM and XML found anywhere in `folder`.

    benign, malignant: ranges of the median malignancy over readers (1 to 5, ends included); a median in neither, such as 3.5,
    is left out. The paper has 1-3 against 4-5; 1-2 against 4-5 leaves out 3. readers: how many must have outlined a nodule.
    on_scan is called with (done, all).

    The column `scan` points at the DICOM series where it lies: LIDC-IDRI is 125 GB, and dagman reads DICOM as well as NIfTI.
    How outlines become nodules: see `grouping`, `outlines`, `nodules`. Everything left out is in `out/left_out.csv`.
    Raises TableError when there is no series, no annotation, or no nodule of either class.
    """
    _check_ranges(benign, malignant)
    folder, out = Path(folder), Path(out)
    pairs, refusals = _pair_readings(folder, out)
    rows: list[dict[str, object]] = []
    counted: list[Message] = []
    for done, (one, message) in enumerate(pairs, start=1):
        try:
            new, left = _import_scan(one, message, out, benign, malignant, readers)
        except DagmanError as error:
            refusals.append(Refusal.from_error(one.source, error))
        else:
            rows += new
            refusals += left
            counted.append(message)
        if on_scan:
            on_scan(done, len(pairs))
    _write_refusals(out, refusals)
    if not rows:
        raise TableError("holds no nodule of either class", where=folder, do=f"See the reasons in {out / 'left_out.csv'}")
    _write_rows(out / "table.csv", rows, list(rows[0]))
    return LidcSummary(
        table=out / "table.csv",
        scans=len(counted),
        patients=len({row["patient"] for row in rows}),
        benign=sum(row["label"] == 0 for row in rows),
        malignant=sum(row["label"] == 1 for row in rows),
        small=sum(message.small for message in counted),
        others=sum(message.others for message in counted),
        left_out=tuple(refusals),
    )


def _pair_readings(folder: Path, out: Path) -> tuple[list[tuple[Series, Message]], list[Refusal]]:
    """Each series of one volume with its readers' file, in the order of their sources; and what has no counterpart."""
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
        do = "Give the folder that holds both, as TCIA ships LIDC-IDRI (its XML may come as a separate archive)"
        problem = f"holds {len(series)} series and {len(messages)} XML files of readers, but none that match"
        broken = [one for one in refusals if Path(one.source).suffix.lower() == ".xml"]
        if broken:
            problem += f"; {count_noun(len(broken), 'XML file was', 'XML files were')} refused, the first: {broken[0].source}: "
            problem += broken[0].reason.rstrip(".")
            do = f"All reasons are in {out / 'left_out.csv'}. {do}"
        raise TableError(problem, where=folder, do=do)
    refusals += [
        Refusal(source=str(m.path), reason=f"its series is not here ({uid})") for uid, m in messages.items() if uid not in volumes
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
        elif not _describe_equally(message, messages[message.series_uid]):
            first = messages[message.series_uid].path
            refusals.append(Refusal(source=str(path), reason=f"differs from {first}, which belongs to the same series and is used"))
    return messages, refusals


def _describe_equally(one: Message, other: Message) -> bool:
    # TCIA ships the XML beside the series and in an archive of its own.
    def marks(message: Message) -> list[tuple[int, str, int, dict[str, int]]]:
        return [(a.reader, a.name, sum(len(o.points) for o in a.outlines), a.ratings) for a in message.annotations]

    return marks(one) == marks(other)


def _import_scan(
    series: Series, message: Message, out: Path, benign: tuple[int, int], malignant: tuple[int, int], readers: int
) -> tuple[list[dict[str, object]], list[Refusal]]:
    grid = read_grid(series.files)
    nodules = find_nodules(message.annotations, grid)
    patient = grid.patient or str(series.patient)
    kept: list[tuple[int, Nodule, int]] = []
    left: list[Refusal] = []
    for number, nodule in enumerate(nodules, start=1):
        reason = ""
        median = nodule.ratings["malignancy"]
        if nodule.readers < readers:
            reason = f"outlined by {nodule.readers} of the {readers} readers required"
        elif not (benign[0] <= median <= benign[1] or malignant[0] <= median <= malignant[1]):
            reason = f"median malignancy {median:g} is of neither class"
        if reason:
            left.append(Refusal(source=f"{series.source} nodule {number}", reason=reason))
        else:
            kept.append((number, nodule, int(median >= malignant[0])))
    if not kept:
        return [], left
    name = re.sub(r"[^\w.-]", "_", f"{patient}_{series.uid}")
    mask = out / "masks" / f"{name}.nii.gz"
    hidden = _write_mask(mask, grid, [(number, nodule.voxels) for number, nodule, _ in kept])
    left += [Refusal(source=f"{series.source} nodule {n}", reason="lies wholly within another nodule") for n in sorted(hidden)]
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
        for number, nodule, label in kept
        if number not in hidden
    ]
    return rows, left


def _write_mask(path: Path, grid: Grid, nodules: Sequence[tuple[int, np.ndarray]]) -> set[int]:
    """Write a label map; returns the numbers of which nothing is left, because others cover them."""
    labels = np.zeros(grid.shape, dtype=np.uint8)
    # The smaller one last: where two consensus masks overlap, it would suffer more.
    for number, voxels in sorted(nodules, key=lambda pair: -len(pair[1])):
        labels[tuple(voxels.T)] = number
    with write_whole(path) as temporary:
        nib.save(nib.Nifti1Image(labels, grid.affine.matrix), temporary)
    return {number for number, _ in nodules} - set(np.unique(labels).tolist())


def _write_rows(path: Path, rows: Sequence[dict[str, object]], columns: Sequence[str]) -> None:
    write_frame(path, pd.DataFrame(rows, columns=list(columns)))
