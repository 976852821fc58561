"""Generates the patients of the built-in cohort, and writes them as files and tables."""

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
    """One synthetic patient; all images are on the same grid."""

    name: str
    hu: np.ndarray
    "X Y Z int16, RAS+."
    affine: np.ndarray
    "4 x 4, to RAS mm."
    organs: np.ndarray
    "X Y Z uint8: labels of `ORGANS`."
    nodule_map: np.ndarray
    "X Y Z uint8: labels of the nodules."
    tumour: np.ndarray
    "X Y Z bool."
    nodules: tuple[PlacedNodule, ...]
    tumour_texture: float
    "Texture of the tumour on a standard scale, on which the outcome depends."
    outcome: Outcome


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome and clinical values of a patient."""

    time: int
    "Days to the event, or to the end of follow-up."
    event: int
    "1 if the event was observed, 0 if censored."
    response: int
    "0 or 1."
    age: int
    "Years."
    grade: int
    "1 to 3."


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """The folders and tables of a cohort; paths in a table are relative to the table."""

    folder: Path
    scans: Path
    masks: Path
    nodules_table: Path
    organs_table: Path
    tumours_table: Path
    outcome_table: Path
    labels: Path


def make_patient(seed: int, index: int, spacing: float = 3.0) -> PhantomPatient:
    """Generate patient `index` of a seed at an isotropic spacing in mm; the size of the cohort does not matter."""
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
    """Draw the outcome of patient `index`: a tumour with an uneven texture shortens the time; age and grade have a small effect.

    Times follow a Weibull distribution with proportional hazards; about 40 % are censored.
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
    """Write a cohort of synthetic patients: NIfTI scans and masks, and one table per task.

    Files differ in axis order and direction, like those of hospitals. The same seed gives the same bytes, and a patient is the same
    in a cohort of any size.

    Args:
        folder: output folder.
        patients: number of patients.
        seed: seed of all random numbers.
        spacing: voxel size in mm, 1 to 8.
        workers: number of threads; it does not affect the result.

    Raises:
        ScanError: if `patients` or `spacing` is out of range.
    """
    if patients < 1:
        raise ScanError(f"patients = {patients}", do="Use 1 or more")
    if not 1.0 <= spacing <= 8.0:
        raise ScanError(f"spacing is {spacing} mm", do="Choose between 1 and 8 mm")
    cohort = name_cohort(folder)
    cohort.scans.mkdir(parents=True, exist_ok=True)
    cohort.masks.mkdir(parents=True, exist_ok=True)
    # Threads suffice, since numpy, scipy and zlib release the GIL.
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
        _write_table(table, [row for patient_rows in rows for row in patient_rows[name]])
    _write_table(cohort.labels, [{"id": value, "name": name} for name, value in ORGANS.items()])
    return cohort


def name_cohort(folder: str | Path) -> Cohort:
    """Return the paths of a cohort in a folder, whether or not they exist."""
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
    # A smooth deformation, so that no two patients' organs have the same outline.
    deformation = [3.5 * make_field(rng, x.shape, 70 / spacing) + 1.2 * make_field(rng, x.shape, 30 / spacing) for _ in range(3)]
    return Canvas(
        hu=np.full(x.shape, -1000, dtype=np.float32),
        organs=np.zeros(x.shape, dtype=np.uint8),
        x=x + deformation[0],
        y=y + deformation[1],
        z=z + deformation[2],
        spacing=spacing,
    )


def _paint_table(canvas: Canvas, depth: np.ndarray) -> None:
    """Paint a curved, hollow table under the patient's back."""
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
        center = _choose_center(rng, room, lesion.diameter / 2 + 4)
        mask = render_lesion(lesion, rng, canvas.hu, center, canvas.spacing, background=0, grain=4.5)
        nodule_map[mask & lungs & (nodule_map == 0)] = value
        distance = canvas.spacing * np.sqrt(sum((axis - at) ** 2 for axis, at in zip(grid, center, strict=True)))
        room = np.minimum(room, distance - lesion.diameter / 2 - 6)
    return lesions, nodule_map


def _place_tumour(seed: int, index: int, canvas: Canvas) -> tuple[np.ndarray, float]:
    lesion, texture = draw_tumour(seed, index)
    rng = generator(seed, "phantom tumour place", index)
    liver = canvas.organs == ORGANS["liver"]
    center = _choose_center(rng, _measure_room(liver, canvas.spacing), lesion.diameter / 2)
    background = float(np.median(canvas.hu[liver]))
    mask = render_lesion(lesion, rng, canvas.hu, center, canvas.spacing, background=background, grain=8)
    return mask, texture


def _measure_room(region: np.ndarray, spacing: float) -> np.ndarray:
    """Return the distance (mm) of each voxel of a region to the region's edge; 0 outside."""
    box = ndimage.find_objects(region.astype(np.uint8))[0]
    room = np.zeros(region.shape, dtype=np.float32)
    inner = np.pad(region[box], 1)
    room[box] = ndimage.distance_transform_edt(inner)[1:-1, 1:-1, 1:-1] * spacing
    return room


def _choose_center(rng: np.random.Generator, room: np.ndarray, need: float) -> np.ndarray:
    """Choose a random voxel with `need` mm of room around it, or the one with most room if there is none."""
    candidates = np.flatnonzero(room >= need)
    chosen = rng.choice(candidates) if candidates.size else int(np.argmax(room))
    return np.array(np.unravel_index(chosen, room.shape), dtype=float)


def _center_mm(mask: np.ndarray, affine: np.ndarray) -> tuple[float, float, float]:
    center = affine[:3, :3] @ np.argwhere(mask).mean(0) + affine[:3, 3]
    return (float(center[0]), float(center[1]), float(center[2]))


def _write_patient(cohort: Cohort, patient: PhantomPatient, seed: int, index: int) -> dict[str, list[dict[str, object]]]:
    rng = generator(seed, "phantom file", index)
    # Any order and direction of axes, such as RAS, LPS or SAR.
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
