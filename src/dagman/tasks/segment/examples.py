"""Save and read example scans for the report: crops around the structures of the best, the median and the worst scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from dagman.encoder.encoder import Encoder
from dagman.errors import TaskError
from dagman.records.files import write_whole
from dagman.scans.affine import Affine
from dagman.scans.scan import reorient_scan
from dagman.tables.structures import Structure
from dagman.tasks.segment.cases import Case, load_classes

MARGIN_MM = 30.0
"""Margin around the structures in mm."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """A crop of a scan (X Y Z, RAS+, in its own spacing in mm), with true and predicted classes, and the point to slice it at."""

    item: str
    voxels: NDArray[np.int16] = field(repr=False)
    truth: NDArray[np.uint8] = field(repr=False)
    predicted: NDArray[np.uint8] = field(repr=False)
    spacing: tuple[float, float, float]
    point: tuple[int, int, int]
    modality: str
    affine: Affine
    "Affine of the crop to RAS mm; in folders from before December 2026, to mm from its first voxel."


def write_examples(
    out: Path, cases: Sequence[Case], rows: pd.DataFrame, structures: Sequence[Structure], ranking: Sequence[str], encoder: Encoder
) -> dict[str, dict[str, object]]:
    """Write `examples/{best,median,worst}.npz` from the maps in `predictions/`; returns the item and Dice of each."""
    if not ranking:
        return {}
    ranks = {"best": 0, "median": len(ranking) // 2, "worst": len(ranking) - 1}
    by_name = {case.item.name: case for case in cases}
    # Keyed by item, so that no scan is shown twice if there are only a few.
    chosen = {ranking[rank]: name for name, rank in ranks.items()}
    found: dict[str, dict[str, object]] = {}
    for item, name in chosen.items():
        example = _cut_example(out, by_name[item], structures, encoder)
        with write_whole(out / "examples" / f"{name}.npz") as path:
            np.savez_compressed(
                path,
                voxels=example.voxels,
                truth=example.truth,
                predicted=example.predicted,
                spacing=example.spacing,
                point=example.point,
                modality=example.modality,
                affine=example.affine.matrix,
            )
        scores = rows[rows["item"] == item]
        found[name] = {"item": item, "dice": dict(zip(scores["label"], scores["dice"].astype(float), strict=True))}
    return {name: found[name] for name in ranks if name in found}


def read_examples(out: Path, about: Mapping[str, Mapping[str, object]]) -> dict[str, Example]:
    """Read the examples of a results folder, by name.

    Raises:
        TaskError: An example is missing or damaged.
    """
    examples = {}
    for name in about:
        path = out / "examples" / f"{name}.npz"
        try:
            with np.load(path, allow_pickle=False) as kept:
                x, y, z = (float(value) for value in kept["spacing"])
                i, j, k = (int(value) for value in kept["point"])
                examples[name] = Example(
                    item=str(about[name]["item"]),
                    voxels=kept["voxels"],
                    truth=kept["truth"],
                    predicted=kept["predicted"],
                    spacing=(x, y, z),
                    point=(i, j, k),
                    modality=str(kept["modality"]),
                    affine=Affine(kept["affine"] if "affine" in kept else np.diag([x, y, z, 1.0])),
                )
        except (OSError, ValueError, KeyError) as error:
            raise TaskError(f"cannot be read ({error})", where=path, do="Run the task again") from None
    return examples


def _cut_example(out: Path, case: Case, structures: Sequence[Structure], encoder: Encoder) -> Example:
    scan = encoder.read(case.item.scan)
    written: Any = nib.load(out / "predictions" / f"{case.item.name}.nii.gz")
    values = np.asanyarray(written.dataobj)
    predicted = np.zeros(values.shape, dtype=np.int16)
    for code, structure in enumerate(structures, start=1):
        predicted[values == structure.values[0]] = code
    truth = load_classes(case.item, scan, structures).astype(np.int16)
    upright, drawn, guessed = (reorient_scan(replace(scan, voxels=one)) for one in (scan.voxels, truth, predicted))
    (box,) = ndimage.find_objects(((drawn.voxels > 0) | (guessed.voxels > 0)).astype(np.uint8))
    margins = [int(np.ceil(MARGIN_MM / mm)) for mm in upright.spacing]
    box = tuple(slice(max(part.start - more, 0), part.stop + more) for part, more in zip(box, margins, strict=True))
    cut = drawn.voxels[box]
    inside = np.argwhere(cut > 0)
    # Slices go through the voxel of the true structures that is nearest to their centre.
    i, j, k = (int(v) for v in inside[np.argmin(((inside - inside.mean(axis=0)) ** 2).sum(axis=1))])
    limits = np.iinfo(np.int16)
    matrix = upright.affine.matrix.copy()
    matrix[:3, 3] = upright.affine.to_world([[part.start for part in box]])[0]
    return Example(
        item=case.item.name,
        voxels=np.clip(np.rint(upright.voxels[box]), limits.min, limits.max).astype(np.int16),
        truth=cut.astype(np.uint8),
        predicted=guessed.voxels[box].astype(np.uint8),
        spacing=upright.spacing,
        point=(i, j, k),
        modality=scan.modality,
        affine=Affine(matrix),
    )
