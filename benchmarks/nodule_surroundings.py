"""What an encoder adds to a nodule's diameter: pretrained at 1 mm on lung CT, read inside the mask and in a ball around it.

The endpoints are in docs/experiments.md (2026-11-29). One nodule per patient, the one of largest diameter: its rating is the
response, its diameter the clinical column. DATA has the layout of shared/data/README.md.
Example: python benchmarks/nodule_surroundings.py ../shared/data --work out/surroundings
The same call repeated goes on where it stopped; about 40 minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

SETS = ("torso/scans", "chest-dicom", "other-ct/LIDC-IDRI-0314.nii.gz", "lidc-cubes/scans")
STEPS = 1000
RIM_MM = 5.0
"""The ball's radius beyond the nodule's."""
MODELS = ("pretrained", "scratch:tiny", "radiomics:size")


def draw_ball(mask_file: Path, diameter_mm: float, out: Path) -> None:
    """A label map on the mask's grid: 1 within the nodule's radius + RIM_MM of the mask's centroid."""
    mask = nib.load(mask_file)
    inside = np.argwhere(np.asarray(mask.dataobj) > 0)
    places = np.stack(np.meshgrid(*(np.arange(size) for size in mask.shape), indexing="ij"), axis=-1)
    offsets = (places - inside.mean(axis=0)) * np.asarray(mask.header.get_zooms()[:3])
    ball = np.linalg.norm(offsets, axis=-1) <= diameter_mm / 2 + RIM_MM
    nib.save(nib.Nifti1Image(ball.astype(np.uint8), mask.affine), out)


def write_tables(data: Path, folder: Path) -> dict[str, Path]:
    """The table of nodules, one per patient, with the radiologists' masks and with balls in their place."""
    nodules = pd.read_csv(data / "lidc-nodules/table.csv").sort_values("diameter_mm", ascending=False, kind="stable")
    nodules = nodules.drop_duplicates("patient").sort_values("patient", kind="stable")
    masks = [data / "lidc-nodules" / mask for mask in nodules["mask"]]
    balls = [folder / "balls" / mask.name for mask in masks]
    balls[0].parent.mkdir(parents=True, exist_ok=True)
    for mask, diameter, ball in zip(masks, nodules["diameter_mm"], balls, strict=True):
        if not ball.is_file():
            draw_ball(mask, diameter, ball)
    kept = nodules[["patient", "nodule", "label", "diameter_mm"]].assign(
        scan=[str(data / "lidc-nodules" / scan) for scan in nodules["scan"]]
    )
    tables = {}
    for name, files in {"mask": masks, "ball": balls}.items():
        tables[name] = folder / f"{name}.csv"
        kept.assign(mask=[str(file) for file in files]).to_csv(tables[name], index=False)
    return tables


def call(arguments: Sequence[str], folder: Path) -> None:
    """Run `dagman` in `folder`."""
    print("$ dagman", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "dagman", *arguments], cwd=folder, check=True)


def print_results(folder: Path) -> None:
    """AUC of each arm, and the differences that the endpoints name, as they are in metrics.json."""
    for name in ("mask", "ball", "mask-alone", "ball-alone"):
        found = json.loads((folder / name / "metrics.json").read_text())
        for one in found["measurements"]:
            if one["name"] == "auc":
                print(name, one["method"], one["model"], one["interval"])
        for one in found["comparisons"]:
            if one["name"] == "auc":
                print(name, one["method"], one["first"], "-", one["second"], one["difference"], one.get("corrected"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for the store, the run and the results")
    arguments = parser.parse_args()
    data, folder = arguments.data.resolve(), arguments.work.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    tables = write_tables(data, folder)
    call(["prepare", *(str(data / name) for name in SETS), "--out", "store", "--spacing", "1"], folder)
    more = ["--resume"] if (folder / "pretrained").exists() else []
    call(
        [
            *("pretrain", "store", "--out", "pretrained", "--size", "tiny", "--set", "view.spacing=1"),
            *("--set", f"train.steps={STEPS}", *more),
        ],
        folder,
    )
    for name, table in tables.items():
        judged = [str(table), "--label", "label", "--crop-mm", "64", "--crop-spacing", "1", "--repeats", "10"]
        call(["compare", "outcome", *MODELS, *judged, "--clinical", "diameter_mm", "--out", name], folder)
        call(["compare", "outcome", *MODELS[:2], *judged, "--out", f"{name}-alone"], folder)
    print_results(folder)


if __name__ == "__main__":
    main()
