"""Every page that dagman writes, made from the built-in cohort and drawn by Chromium for docs/pages.md.

    python benchmarks/pages.py --work out/pages

makes what WORK lacks (the demo takes minutes, all else together about ten on two idle cores) and writes docs/images/pages/*.jpg.
Needs `chromium`; numbers on these pages show what a page looks like, and are no results.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from PIL import Image

IMAGES = Path(__file__).parents[1] / "docs/images/pages"
RUN, COHORT = "demo/runs/seed-0", "demo/cohort"
PATIENTS = {"organs": 6, "tumours": 4}
"""Of the tables of organs and of tumours, so that the pages are soon made."""
SIZE = (1400, 1750)
"""Pixels of the window; the picture is half as large."""


@dataclass(frozen=True)
class Page:
    """A page: the name of its picture, where it lies, and the words after `dagman` that make it."""

    name: str
    place: str
    command: str
    dark: bool = False
    width: int = SIZE[0]


PAGES = (
    Page("demo", "demo/report.html", "demo --out demo"),
    Page("inspect", "checked/inspect.html", "inspect scans --out checked"),
    Page("store", "store.html", "store stats demo/store --out store.html"),
    Page("run", f"{RUN}/report.html", f"report {RUN}"),
    Page("runs", "runs.html", "runs demo/runs --page runs.html"),
    Page("classify", "classify/report.html", f"classify {RUN} {COHORT}/nodules.csv --label label --out classify", dark=True),
    Page("regress", "regress/report.html", f"regress {RUN} {COHORT}/nodules.csv --label diameter_mm --out regress"),
    Page(
        "outcome",
        "outcome/report.html",
        f"outcome {RUN} {COHORT}/outcome.csv --time time --event event --clinical age,grade --out outcome",
    ),
    Page("segment", "segment/report.html", f"segment {RUN} {COHORT}/some-tumours.csv --folds 2 --steps 5 --no-keep --out segment"),
    Page("cluster", "cluster/report.html", f"cluster {RUN} {COHORT}/some-organs.csv --label label --map pca --out cluster"),
    Page(
        "compare",
        "compare/report.html",
        f"compare classify {RUN} scratch:tiny radiomics:size {COHORT}/nodules.csv --label label --method linear --out compare",
    ),
    Page("study", "study/report.html", "study study.toml --out study"),
    Page("viewer", "viewer.html", f"view {COHORT}/scans/phantom-000.nii.gz --attention {RUN} --out viewer.html"),
    Page("narrow", "classify/report.html", "", width=420),
)
STUDY = """title = "Two methods, two seeds"
store = "demo/store"
methods = ["dagman", "simmim"]
seeds = [0, 1]
set = ["train.steps=12", "train.batch=2", "view.side=32", "train.monitor_every=12"]

[[monitors]]
name = "Reconstruction"
path = "reconstruction.ratio"

[[tasks]]
name = "Nodules"
task = "classify"
table = "demo/cohort/nodules.csv"
measure = "auc"
options = {label = "label", method = "linear", repeats = 1}

[primary]
of = "Nodules"
first = "dagman"
second = "simmim"
"""


def make_pages(work: Path, names: Sequence[str]) -> None:
    """Run the commands whose pages are not there yet."""
    for page in PAGES:
        if not page.command or page.name not in names or (work / page.place).exists():
            continue
        print(f"dagman {page.command}", flush=True)
        done = subprocess.run([sys.executable, "-m", "dagman", *page.command.split()], cwd=work, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"dagman {page.command}: {done.stderr.strip().splitlines()[-1]}")
        if page.name == "demo":
            write_inputs(work)


def write_inputs(work: Path) -> None:
    """Tables of a few patients, a study, and a folder of scans of which some cannot be used."""
    for table, patients in PATIENTS.items():
        rows = pd.read_csv(work / COHORT / f"{table}.csv")
        some = rows[rows["patient"].isin(rows["patient"].unique()[:patients])]
        some.to_csv(work / COHORT / f"some-{table}.csv", index=False)
    (work / "study.toml").write_text(STUDY, encoding="utf-8")
    scans = work / "scans"
    scans.mkdir(exist_ok=True)
    whole = sorted((work / COHORT / "scans").glob("*.nii.gz"))[:6]
    for path in whole:
        shutil.copy(path, scans)
    image: nib.Nifti1Image = nib.load(whole[0])  # type: ignore[assignment]
    voxels = np.asanyarray(image.dataobj)
    (scans / "cut-short.nii.gz").write_bytes(whole[1].read_bytes()[:200_000])
    nib.save(nib.Nifti1Image(((voxels + 1000) / 8).clip(0, 255).astype(np.uint8), image.affine), scans / "shown-as-grey.nii.gz")
    nib.save(nib.Nifti1Image(voxels[:, :, :3], image.affine), scans / "three-slices.nii.gz")


def draw_pages(work: Path, names: Sequence[str]) -> None:
    """Write the top of each page as a JPEG of half its size."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    for page in PAGES:
        if page.name not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            shot = Path(folder) / "shot.png"
            options = ["--headless=new", "--no-sandbox", "--hide-scrollbars", f"--user-data-dir={folder}/profile"]
            options += ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--virtual-time-budget=20000"]
            # Blink counts dark as 0 and light as 1.
            options += [f"--blink-settings=preferredColorScheme={0 if page.dark else 1}", f"--screenshot={shot}"]
            options += [f"--window-size={page.width},{SIZE[1]}", (work / page.place).resolve().as_uri()]
            subprocess.run(["chromium", *options], check=True, capture_output=True, timeout=300)
            picture = Image.open(shot).convert("RGB")
        if page.width == SIZE[0]:
            picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS)
        picture.save(IMAGES / f"{page.name}.jpg", quality=72, optimize=True)
        print(f"{page.name}.jpg {(IMAGES / f'{page.name}.jpg').stat().st_size / 1e3:.0f} kB", flush=True)


def main() -> None:
    """Make and draw the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("out/pages"), help="folder of what the commands write")
    parser.add_argument("--only", nargs="*", default=[page.name for page in PAGES], help="names of pages")
    parser.add_argument("--draw", action="store_true", help="draw what is there, and make nothing")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    if not given.draw:
        make_pages(given.work, given.only)
    draw_pages(given.work, given.only)


if __name__ == "__main__":
    main()
