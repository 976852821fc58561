"""MedMNIST's 3D sets (Yang et al. 2023) to scans and a table with the official split.

A file holds grey values from 0 to 255, not HU: each set was windowed before. To let an encoder see it as it sees a CT, the window
is undone: 0 becomes its lower end in HU, 255 its upper end, linearly. What was beyond the window is lost. MedMNIST says which
kind of window it used for organs (abdominal) and nothing for the others, so the numbers in `SETS` are the usual ones [ours],
and `window` overrides them. Neither are spacing and orientation stored: the known ones are in `SETS` (nodules: 1 mm; rib
fractures: 64 mm a side); organs were stretched from boxes of any size to a cube, so theirs is nominal. Axes are written as stored.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from dagman.errors import TableError
from dagman.records.csv_file import write_frame
from dagman.records.files import write_whole

_DEFLATE = 1032
"""Times that deflate can shrink data, at most."""
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class MedmnistSet:
    """What is known of a set: names of its classes, window (HU), side of its cubes (mm, at 28 voxels), whether a lesion is central.

    `side_mm` None: the cubes were stretched; `is_cropped` says that the 64 version shows more, not finer.
    """

    classes: tuple[str, ...]
    window: tuple[float, float] | None = None
    side_mm: float | None = None
    is_cropped: bool = False
    is_central: bool = False


SETS: dict[str, MedmnistSet] = {
    "nodulemnist3d": MedmnistSet(
        classes=("benign", "malignant"), window=(-1000, 400), side_mm=28, is_cropped=True, is_central=True
    ),
    "organmnist3d": MedmnistSet(
        classes=(
            "liver",
            "kidney-right",
            "kidney-left",
            "femur-right",
            "femur-left",
            "bladder",
            "heart",
            "lung-right",
            "lung-left",
            "spleen",
            "pancreas",
        ),
        window=(-160, 240),
    ),
    "fracturemnist3d": MedmnistSet(
        classes=("buckle rib fracture", "nondisplaced rib fracture", "displaced rib fracture"),
        window=(-200, 1000),
        side_mm=64,
        is_central=True,
    ),
    "adrenalmnist3d": MedmnistSet(classes=("normal", "hyperplasia")),
    "vesselmnist3d": MedmnistSet(classes=("vessel", "aneurysm")),
    "synapsemnist3d": MedmnistSet(classes=("inhibitory synapse", "excitatory synapse")),
}
"""The 3D sets by the name of their file. The last three are not CT: shapes, shapes, and electron microscopy."""

NOMINAL_SPACING = 2.0
"""Spacing (mm) written where none is known: that of the default preparation, so that nothing is resampled."""


@dataclass(frozen=True, kw_only=True)
class MedmnistSummary:
    """What was imported: the table, items of each split, the names of the classes, the window (HU) and spacing (mm) assumed."""

    table: Path
    items: dict[str, int]
    classes: tuple[str, ...]
    window: tuple[float, float]
    spacing: float


def import_medmnist(
    file: str | Path, out: str | Path, *, window: tuple[float, float] | None = None, spacing: float | None = None
) -> MedmnistSummary:
    """Write `out/scans`, an item a NIfTI file, and `out/table.csv`: scan, patient, label (its name), label_id, split.

    window: HU that 0 and 255 stand for; spacing: mm; both by default as in `SETS`, by the file's name. Where a lesion is in the
    middle, `center_*_mm` names it. MedMNIST does not say who a patient is: each item is its own, so keep to the split given.
    Raises TableError for a file that is not a MedMNIST 3D set, or not CT when no `window` is given.
    """
    path, out = Path(file), Path(out)
    name = path.stem.lower().partition("_")[0]
    known = SETS.get(name, MedmnistSet(classes=()))
    chosen = window or known.window
    if chosen is None:
        do = "Give --window LOW HIGH, the HU that 0 and 255 represent, to import it anyway"
        raise TableError(f"{name!r} is not a known CT set", where=path, do=do)
    if not chosen[0] < chosen[1]:
        raise TableError(f"the window goes from {chosen[0]:g} to {chosen[1]:g} HU", do="Give the lower end first")
    if spacing is not None and not spacing > 0:
        raise TableError(f"the spacing is {spacing:g} mm", do="Give more than 0")
    arrays = _load_arrays(path)
    side = arrays["train_images"].shape[1]
    pitch = spacing or _find_spacing(known, side)
    rows: list[dict[str, object]] = []
    with write_whole(out / "scans") as scans:
        scans.mkdir()
        for split in SPLITS:
            for index, (grey, label) in enumerate(zip(arrays[f"{split}_images"], arrays[f"{split}_labels"], strict=True)):
                item = f"{split}-{index:05d}"
                _write_scan(scans / f"{item}.nii.gz", grey, chosen, pitch)
                value = int(label)
                row = {"scan": f"scans/{item}.nii.gz", "patient": item, "split": split, "label_id": value}
                row["label"] = known.classes[value] if value < len(known.classes) else str(value)
                # The middle of the cube is the origin of its affine.
                rows.append({**row, **({f"center_{axis}_mm": 0.0 for axis in "xyz"} if known.is_central else {})})
    write_frame(out / "table.csv", pd.DataFrame(rows))
    return MedmnistSummary(
        table=out / "table.csv",
        items={split: len(arrays[f"{split}_labels"]) for split in SPLITS},
        classes=known.classes,
        window=(float(chosen[0]), float(chosen[1])),
        spacing=pitch,
    )


def _load_arrays(path: Path) -> dict[str, np.ndarray]:
    wanted = [f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels")]
    try:
        # Opened here, so that it is closed when numpy finds no archive in it.
        _refuse_false_sizes(path)
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            absent = [name for name in wanted if name not in file.files]
            arrays = {name: file[name] for name in wanted if name not in absent}
    except (
        OSError,
        ValueError,
        EOFError,
        zipfile.BadZipFile,
        AttributeError,
        MemoryError,
        NotImplementedError,
        RuntimeError,
        zlib.error,
    ) as error:
        raise TableError("is not a readable .npz file of arrays", where=path, do="Download it again from medmnist.com") from error
    if absent:
        raise TableError(f"lacks {', '.join(absent)}", where=path, do="Give a file of MedMNIST, with its official split")
    for split in SPLITS:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if images.ndim != 4 or images.dtype != np.uint8 or len(set(images.shape[1:])) != 1:
            what = f"{split}_images is {' x '.join(map(str, images.shape))} of {images.dtype}"
            raise TableError(what, where=path, do="Give a 3D set: N x 28 x 28 x 28 or N x 64 x 64 x 64 of uint8")
        if labels.size != len(images):
            raise TableError(
                f"{split} has {len(images)} images and {labels.size} labels", where=path, do="Give a set with one label per item"
            )
        arrays[f"{split}_labels"] = labels.reshape(-1)
    if not any(arrays[f"{split}_images"].size for split in SPLITS):
        raise TableError("holds no items", where=path, do="Download it again from medmnist.com")
    return arrays


def _refuse_false_sizes(path: Path) -> None:
    """Raise TableError for an array that claims more than its entry can hold: its room would be taken before a byte is read."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as member:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, kind = read(member)
                claimed = math.prod(shape) * kind.itemsize
                held = entry.file_size - member.tell()
            # Objects hold no numbers; numpy refuses them.
            if kind.hasobject:
                continue
            if claimed != held or entry.file_size > _DEFLATE * (entry.compress_size + 1):
                count = " x ".join(map(str, shape))
                what = f"{entry.filename} claims {count} values ({claimed:.3g} bytes); its entry holds {held:.3g} bytes"
                raise TableError(what, where=path, do="Download it again from medmnist.com")


def _find_spacing(known: MedmnistSet, side: int) -> float:
    if known.side_mm is None:
        return NOMINAL_SPACING
    return known.side_mm / (28 if known.is_cropped else side)


def _write_scan(path: Path, grey: np.ndarray, window: tuple[float, float], spacing: float) -> None:
    low, high = window
    hu = np.round(low + grey.astype(np.float32) * ((high - low) / 255)).astype(np.int16)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = -spacing * (np.array(grey.shape) - 1) / 2
    nib.save(nib.Nifti1Image(hu, affine), path)
