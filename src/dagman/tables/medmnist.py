"""Imports MedMNIST's 3D data sets (Yang et al. 2023, https://medmnist.com) as scans and a table with the official split.

The files hold grey values from 0 to 255, since MedMNIST applied an intensity window to the CTs. To give an encoder HU again, the
window is inverted: 0 becomes its lower end and 255 its upper end, linearly; values beyond the window are lost. MedMNIST states
only the kind of window for organs (abdominal) and nothing for the other sets, so the windows in `SETS` are the usual ones [ours],
and `window` overrides them. Spacing and orientation are not stored either. `SETS` has the known sizes (nodules: 1 mm voxels; rib
fractures: cubes of 64 mm); organs were stretched from boxes of any size to a cube, so their spacing is nominal. Axes keep the
stored order.
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

_MAX_DEFLATE_RATIO = 1032
"""Highest compression ratio that deflate can reach."""
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class MedmnistSet:
    """What is known about a data set."""

    classes: tuple[str, ...]
    "Names of the classes, in the order of their ids."
    window: tuple[float, float] | None = None
    "HU that the grey values 0 and 255 stand for; None if the set is not CT."
    side_mm: float | None = None
    "Side of the cubes in mm, for the version with 28 voxels; None if cubes were stretched."
    is_cropped: bool = False
    "Whether the version with 64 voxels shows a larger region instead of finer voxels."
    is_central: bool = False
    "Whether a lesion lies in the middle of each cube."


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
"""The 3D data sets by file name. The last three are not CT: two contain shapes, one electron microscopy."""

NOMINAL_SPACING = 2.0
"""Spacing (mm) written if none is known: the one of the default preparation, so that nothing is resampled."""


@dataclass(frozen=True, kw_only=True)
class MedmnistSummary:
    """Result of an import: the table, number of items per split, class names, and the assumed window (HU) and spacing (mm)."""

    table: Path
    items: dict[str, int]
    classes: tuple[str, ...]
    window: tuple[float, float]
    spacing: float


def import_medmnist(
    file: str | Path, out: str | Path, *, window: tuple[float, float] | None = None, spacing: float | None = None
) -> MedmnistSummary:
    """Convert a MedMNIST 3D file to NIfTI scans in `out/scans` and a table `out/table.csv`.

    The table has the columns scan, patient, label (class name), label_id and split, and `center_*_mm` if a lesion lies in the
    middle of each cube. MedMNIST does not identify patients, so each item counts as a separate one: use the official split.

    Args:
        file: the .npz file, whose name selects the entry of `SETS`.
        out: output folder.
        window: HU that the grey values 0 and 255 stand for; by default the one in `SETS`.
        spacing: voxel size in mm; by default the one in `SETS`.

    Raises:
        TableError: if the file is not a MedMNIST 3D set, or not a CT set and no `window` is given.
    """
    path, out = Path(file), Path(out)
    name = path.stem.lower().partition("_")[0]
    known = SETS.get(name, MedmnistSet(classes=()))
    hu_range = window or known.window
    if hu_range is None:
        do = "Give --window LOW HIGH, the HU that 0 and 255 represent, to import it anyway"
        raise TableError(f"{name!r} is not a known CT set", where=path, do=do)
    if not hu_range[0] < hu_range[1]:
        raise TableError(f"the window goes from {hu_range[0]:g} to {hu_range[1]:g} HU", do="Give the lower end first")
    if spacing is not None and not spacing > 0:
        raise TableError(f"the spacing is {spacing:g} mm", do="Give a value above 0")
    arrays = _load_arrays(path)
    side = arrays["train_images"].shape[1]
    voxel_mm = spacing or _find_spacing(known, side)
    rows: list[dict[str, object]] = []
    with write_whole(out / "scans") as scans:
        scans.mkdir()
        for split in SPLITS:
            for index, (grey, label) in enumerate(zip(arrays[f"{split}_images"], arrays[f"{split}_labels"], strict=True)):
                item = f"{split}-{index:05d}"
                _write_scan(scans / f"{item}.nii.gz", grey, hu_range, voxel_mm)
                value = int(label)
                row = {"scan": f"scans/{item}.nii.gz", "patient": item, "split": split, "label_id": value}
                row["label"] = known.classes[value] if value < len(known.classes) else str(value)
                # The affine puts its origin into the middle of the cube.
                rows.append({**row, **({f"center_{axis}_mm": 0.0 for axis in "xyz"} if known.is_central else {})})
    write_frame(out / "table.csv", pd.DataFrame(rows))
    return MedmnistSummary(
        table=out / "table.csv",
        items={split: len(arrays[f"{split}_labels"]) for split in SPLITS},
        classes=known.classes,
        window=(float(hu_range[0]), float(hu_range[1])),
        spacing=voxel_mm,
    )


def _load_arrays(path: Path) -> dict[str, np.ndarray]:
    wanted = [f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels")]
    try:
        _refuse_false_sizes(path)
        # Opened here rather than by numpy, which leaves the file open if it is not an archive.
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
    """Raise TableError if an array's header claims more than its entry holds: numpy would allocate it before reading a byte."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as member:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, kind = read(member)
                claimed = math.prod(shape) * kind.itemsize
                held = entry.file_size - member.tell()
            # numpy refuses arrays of objects itself.
            if kind.hasobject:
                continue
            if claimed != held or entry.file_size > _MAX_DEFLATE_RATIO * (entry.compress_size + 1):
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
