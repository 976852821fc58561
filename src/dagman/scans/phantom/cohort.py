"""Patients of the built-in cohort, and the files and tables in which they come."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage

from dagman.errors import ScanError
from dagman.randomness import generator
from dagman.records.csv_file import write_frame
from dagman.records.files import write_whole
from dagman.scans.phantom.anatomy import ORGANS, Habitus
from dagman.scans.phantom.body import paint_body
from dagman.scans.phantom.canvas import Canvas
from dagman.scans.phantom.lesions import PlacedNodule, draw_nodules, draw_tumour, render_lesion
from dagman.scans.phantom.texture import add_grain, add_noise, make_field


@dataclass(frozen=True, kw_only=True)
class PhantomPatient:
    """One synthetic patient on one grid.

    `hu` int16 X Y Z (RAS+), `affine` 4 4 to RAS mm; `organs` uint8 with the ids of `ORGANS`; `nodule_map` uint8 with each nodule's
    value; `tumour` bool. `time` is in days; `event` 0 means censored.
    """

    name: str
    hu: np.ndarray
    affine: np.ndarray
    organs: np.ndarray
    nodule_map: np.ndarray
    tumour: np.ndarray
    nodules: tuple[PlacedNodule, ...]
    tumour_texture: float
    outcome: Outcome


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a patient: days to the event or the end of follow-up, event 0/1, response 0/1, age (years), grade 1-3."""

    time: int
    event: int
    response: int
    age: int
    grade: int


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Where a cohort was written: the folders of its scans and masks, and its tables (paths in them are relative to the table)."""

    folder: Path
    scans: Path
    masks: Path
    nodules_table: Path
    organs_table: Path
    tumours_table: Path
    outcome_table: Path
    labels: Path


def make_patient(seed: int, index: int, spacing: float = 3.0) -> PhantomPatient:
    """Make patient `index` of a seed at an isotropic spacing in mm, whatever cohort it is part of."""
    rng = generator(seed, "phantom body", index)
    size = np.array([rng.uniform(0.9, 1.08), rng.uniform(0.9, 1.08), rng.uniform(0.92, 1.05)])
    habitus = Habitus(
        fat=float(rng.gamma(4, 3.5) + 5),
        contrast=float(0 if rng.random() < 0.35 else rng.uniform(0.6, 1.0)),
        emphysema=float(rng.beta(1.2, 3)),
        marrow=float(rng.uniform(110, 240)),
    )
    canvas = _open_canvas(rng, size, habitus, spacing)
    depth = paint_body(canvas, habitus, rng)
    _paint_table(canvas, depth)
    hu = canvas.hu
    add_grain(rng, hu, spacing)
    nodules, nodule_map = _place_nodules(seed, index, canvas)
    tumour, texture = _place_tumour(seed, index, canvas)
    hu = ndimage.gaussian_filter(hu, 0.9 / spacing)
    add_noise(rng, hu, depth * float(size.mean()), spacing, level=float(rng.uniform(8, 22)))
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = [-spacing * (hu.shape[0] - 1) / 2, *rng.uniform([-160, -900], [-100, -200])]
    placed = tuple(
        PlacedNodule(value=value, center_mm=_center_mm(nodule_map == value, affine), lesion=lesion)
        for value, lesion in enumerate(nodules, start=1)
    )
    return PhantomPatient(
        name=f"phantom-{index:03d}",
        hu=np.clip(np.round(hu), -1024, 3071).astype(np.int16),
        affine=affine,
        organs=canvas.organs,
        nodule_map=nodule_map,
        tumour=tumour,
        nodules=placed,
        tumour_texture=texture,
        outcome=draw_outcome(seed, index, texture),
    )


def draw_outcome(seed: int, index: int, texture: float) -> Outcome:
    """Time, event and response of patient `index`: an uneven tumour shortens the time; age and grade do so slightly.

    Weibull times with proportional hazards; about four in ten are censored.
    """
    rng = generator(seed, "phantom outcome", index)
    age, grade = int(np.clip(rng.normal(63, 10), 30, 90)), int(rng.choice([1, 2, 3], p=[0.3, 0.4, 0.3]))
    risk = 1.5 * texture + 0.02 * (age - 63) + 0.25 * (grade - 2)
    event_time = 700 * (rng.exponential() / np.exp(risk)) ** (1 / 1.5)
    followed = rng.uniform(100, 1500)
    response = rng.random() < 1 / (1 + np.exp(2.5 * texture))
    return Outcome(
        time=max(1, round(min(event_time, followed))),
        event=int(event_time <= followed),
        response=int(response),
        age=age,
        grade=grade,
    )


def write_cohort(folder: str | Path, patients: int = 24, seed: int = 0, spacing: float = 3.0, workers: int | None = None) -> Cohort:
    """Write a cohort of synthetic patients as a user would bring it: NIfTI scans and masks, and a table a task.

    `spacing` in mm. Files differ in axis order and direction, as those of hospitals do. The same seed gives the same bytes,
    whatever `workers` is, and patient i is the same in a cohort of any size. Raises ScanError for numbers that make no cohort.
    """
    if patients < 1:
        raise ScanError(f"patients = {patients}", do="Use 1 or more")
    if not 1.0 <= spacing <= 8.0:
        raise ScanError(f"spacing is {spacing} mm", do="Choose between 1 and 8 mm")
    cohort = name_cohort(folder)
    cohort.scans.mkdir(parents=True, exist_ok=True)
    cohort.masks.mkdir(parents=True, exist_ok=True)
    # Threads suffice: numpy, scipy and zlib let go of the interpreter while they work.
    with ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 8)) as pool:
        rows = list(
            pool.map(lambda index: _write_patient(cohort, make_patient(seed, index, spacing), seed, index), range(patients))
        )
    for table, name in (
        (cohort.nodules_table, "nodules"),
        (cohort.organs_table, "organs"),
        (cohort.tumours_table, "tumours"),
        (cohort.outcome_table, "outcome"),
    ):
        _write_table(table, [row for of_patient in rows for row in of_patient[name]])
    _write_table(cohort.labels, [{"id": value, "name": name} for name, value in ORGANS.items()])
    return cohort


def name_cohort(folder: str | Path) -> Cohort:
    """Where the parts of a cohort in this folder lie, whether they are written or not."""
    folder = Path(folder)
    return Cohort(
        folder=folder,
        scans=folder / "scans",
        masks=folder / "masks",
        nodules_table=folder / "nodules.csv",
        organs_table=folder / "organs.csv",
        tumours_table=folder / "tumours.csv",
        outcome_table=folder / "outcome.csv",
        labels=folder / "labels.csv",
    )


def _open_canvas(rng: np.random.Generator, size: np.ndarray, habitus: Habitus, spacing: float) -> Canvas:
    half_width = 178 * size[0] + 1.1 * habitus.fat + 8
    front, back = 100 * size[1] + 1.4 * habitus.fat + 10, 128 * size[1] + 1.1 * habitus.fat + 30
    low, high = rng.uniform(-30, 0), rng.uniform(372, 392)
    axes = [
        np.arange(-half_width, half_width, spacing) / size[0],
        np.arange(-back, front, spacing) / size[1],
        np.arange(low * size[2], high * size[2], spacing) / size[2],
    ]
    x, y, z = np.meshgrid(*(axis.astype(np.float32) for axis in axes), indexing="ij")
    # A gentle bend of space: no two patients' organs then have the same outline.
    bends = [3.5 * make_field(rng, x.shape, 70 / spacing) + 1.2 * make_field(rng, x.shape, 30 / spacing) for _ in range(3)]
    return Canvas(
        hu=np.full(x.shape, -1000, dtype=np.float32),
        organs=np.zeros(x.shape, dtype=np.uint8),
        x=x + bends[0],
        y=y + bends[1],
        z=z + bends[2],
        spacing=spacing,
    )


def _paint_table(canvas: Canvas, depth: np.ndarray) -> None:
    """A curved, hollow couch that the back rests on."""
    columns = np.arange(canvas.hu.shape[0], dtype=np.float32)
    across = (columns - columns.mean()) * canvas.spacing
    rows = np.arange(canvas.hu.shape[1], dtype=np.float32) * canvas.spacing
    back = rows[np.flatnonzero((depth > 0).any(axis=(0, 2)))[0]]
    height = rows[None, :] - (back - 4) - 26 * (np.abs(across[:, None]) / 200) ** 2.2
    slab = np.where(np.abs(across[:, None]) < 205, np.abs(height + 9) - 9, 99)[:, :, None]
    outside = depth < -canvas.spacing / 2
    canvas.paint(np.where(outside, slab, 99), -120)
    canvas.paint(np.where(outside, slab + 4, 99), -930)


def _place_nodules(seed: int, index: int, canvas: Canvas) -> tuple[list, np.ndarray]:
    lesions = draw_nodules(seed, index)
    rng = generator(seed, "phantom nodule places", index)
    lungs = (canvas.organs == ORGANS["lung_left"]) | (canvas.organs == ORGANS["lung_right"])
    nodule_map = np.zeros(canvas.hu.shape, dtype=np.uint8)
    grid = np.ogrid[tuple(slice(n) for n in canvas.hu.shape)]
    room = _measure_room(lungs, canvas.spacing)
    for value, lesion in enumerate(lesions, start=1):
        center = _choose_place(rng, room, lesion.diameter / 2 + 4)
        mask = render_lesion(lesion, rng, canvas.hu, center, canvas.spacing, background=0, grain=4.5)
        nodule_map[mask & lungs & (nodule_map == 0)] = value
        away = canvas.spacing * np.sqrt(sum((axis - at) ** 2 for axis, at in zip(grid, center, strict=True)))
        room = np.minimum(room, away - lesion.diameter / 2 - 6)
    return lesions, nodule_map


def _place_tumour(seed: int, index: int, canvas: Canvas) -> tuple[np.ndarray, float]:
    lesion, texture = draw_tumour(seed, index)
    rng = generator(seed, "phantom tumour place", index)
    liver = canvas.organs == ORGANS["liver"]
    center = _choose_place(rng, _measure_room(liver, canvas.spacing), lesion.diameter / 2)
    background = float(np.median(canvas.hu[liver]))
    mask = render_lesion(lesion, rng, canvas.hu, center, canvas.spacing, background=background, grain=8)
    return mask, texture


def _measure_room(region: np.ndarray, spacing: float) -> np.ndarray:
    """Distance (mm) of each voxel of a region to what is outside it; 0 outside."""
    box = ndimage.find_objects(region.astype(np.uint8))[0]
    room = np.zeros(region.shape, dtype=np.float32)
    inner = np.pad(region[box], 1)
    room[box] = ndimage.distance_transform_edt(inner)[1:-1, 1:-1, 1:-1] * spacing
    return room


def _choose_place(rng: np.random.Generator, room: np.ndarray, need: float) -> np.ndarray:
    """A voxel with `need` mm of room around it, or the one with most room where none has."""
    wide = np.flatnonzero(room >= need)
    chosen = rng.choice(wide) if wide.size else int(np.argmax(room))
    return np.array(np.unravel_index(chosen, room.shape), dtype=float)


def _center_mm(mask: np.ndarray, affine: np.ndarray) -> tuple[float, float, float]:
    center = affine[:3, :3] @ np.argwhere(mask).mean(0) + affine[:3, 3]
    return (float(center[0]), float(center[1]), float(center[2]))


def _write_patient(cohort: Cohort, patient: PhantomPatient, seed: int, index: int) -> dict[str, list[dict[str, object]]]:
    rng = generator(seed, "phantom file", index)
    # Axis codes "RAS", "LPS", "SAR", ...: any order and direction.
    target = np.column_stack([rng.permutation(3), rng.choice([-1, 1], 3)])
    scan = f"scans/{patient.name}.nii.gz"
    files = {"organs": patient.organs, "nodules": patient.nodule_map, "tumour": patient.tumour.astype(np.uint8)}
    _write_image(cohort.folder / scan, patient.hu, patient.affine, target)
    for name, voxels in files.items():
        _write_image(cohort.masks / f"{patient.name}_{name}.nii.gz", voxels, patient.affine, target)

    def row(mask: str, **fields: object) -> dict[str, object]:
        return {"scan": scan, "mask": f"masks/{patient.name}_{mask}.nii.gz", "patient": patient.name, **fields}

    present = set(np.unique(patient.organs).tolist())
    return {
        "nodules": [
            row(
                "nodules",
                label_value=nodule.value,
                **{f"center_{axis}_mm": round(c, 2) for axis, c in zip("xyz", nodule.center_mm, strict=True)},
                label=int(nodule.lesion.malignant),
                diameter_mm=round(nodule.lesion.diameter, 2),
            )
            for nodule in patient.nodules
        ],
        "organs": [row("organs", label_value=value, label=name) for name, value in ORGANS.items() if value in present],
        "tumours": [row("tumour")],
        "outcome": [row("tumour", **vars(patient.outcome))],
    }


def _write_image(path: Path, voxels: np.ndarray, affine: np.ndarray, target: np.ndarray) -> None:
    image = nib.Nifti1Image(voxels, affine).as_reoriented(target)
    image.header.set_xyzt_units("mm", "sec")
    with write_whole(path) as temporary:
        nib.save(image, temporary)


def _write_table(path: Path, rows: list[dict[str, object]]) -> None:
    write_frame(path, pd.DataFrame(rows))
