"""Makes docs/results.md: pretrains on the CTs of a data folder, runs the paper's tasks on its tables, writes the results.

Every number comes from a `dagman` command that the page shows. Repeating the same command resumes where it stopped.
DATA has the layout of shared/data/README.md (lidc-nodules, sarcoma-ct, organs, other-ct, chest-dicom, dicom-quirks).
Needs the extras monai, survival and cluster; about three hours on one core. With a GPU (or if WORK already holds a run named
`pretrained-small` from a machine with one), tasks 1 to 5 and 7 also have rows for a `small` encoder.
Example: python benchmarks/results.py ../shared/data --work out/results
Only one part: python benchmarks/results.py ../shared/data --work out/results --only tumours; only the page: --only page
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from results_page import write_page

from dagman.devices import choose_device
from dagman.evaluation.segmentation_metrics import measure_dice
from dagman.records.files import write_json

SETS = ("chest-dicom", "lidc-nodules", "organs", "other-ct", "sarcoma-ct", "dicom-quirks")
STEPS, GPU_STEPS = 1000, 2100
FRESH, GPU_FRESH = "scratch:tiny", "scratch:small"
GPU_RUN = "pretrained-small"
CLINICAL = "age,grade,tumour_ml"
ORGANS = "colon=20,liver=5,small_bowel=18,urinary_bladder=21,autochthon_left=86,autochthon_right=87,aorta=52"
"""The six largest organs of the body scan, and the one that the other scan also has, for testing."""
KINDS = {
    "bone": ("vertebrae", "rib", "hip", "sacrum", "femur", "skull", "sternum", "scapula", "clavicula", "humerus", "costal"),
    "muscle": ("autochthon", "gluteus", "iliopsoas"),
    "vessel": ("aorta", "vena", "vein", "artery", "iliac", "trunk", "portal", "atrial", "sinotubular"),
    "hollow organ": ("colon", "bowel", "duodenum", "stomach", "bladder", "esophagus"),
    "solid organ": ("liver", "spleen", "kidney", "pancreas", "adrenal", "prostate", "heart"),
    "lung": ("lung",),
}
"""Words in the names of structures. With two patients most structures occur once, so they are grouped by kind."""


def list_commands(data: Path, pretrained: Path) -> dict[str, list[str]]:
    """Each part's command without `dagman` and --out; a GPU run next to `pretrained` is added, except for segmentation."""
    run, nodules, sarcoma = str(pretrained), str(data / "lidc-nodules/table.csv"), str(data / "sarcoma-ct/table.csv")
    large = pretrained.with_name(GPU_RUN)
    pairs = {"": (run, FRESH), **({"-small": (str(large), GPU_FRESH)} if large.is_dir() else {})}
    shares = ["--label", "label", "--folds", "5", "--shares", "25,50,100"]
    encoders = [name for pair in pairs.values() for name in pair]
    outcome = ["compare", "outcome", *encoders, "radiomics:size", sarcoma, "--clinical", CLINICAL, "--repeats", "10"]
    probes = {
        f"malignancy{size}": [
            *("compare", "classify", *pair, "radiomics:size", nodules, "--method", "linear"),
            *(*shares, "--repeats", "10"),
        ]
        for size, pair in pairs.items()
    }
    tuned = {
        f"malignancy-finetuned{size}": [
            *("compare", "classify", *pair, nodules, "--method", "linear,finetune"),
            *(*shares, "--repeats", "1", "--crop-mm", "32", "--crop-spacing", "1", "--epochs", "12"),
        ]
        for size, pair in pairs.items()
    }
    return {
        **probes,
        **tuned,
        "metastasis": [*outcome, "--label", "lung_metastasis"],
        "progression": [*outcome, "--time", "progression_days", "--event", "progression_event"],
        "survival": [*outcome, "--time", "survival_days", "--event", "death_event"],
        "tumours": ["compare", "segment", run, FRESH, sarcoma, "--folds", "5", "--steps", "250"],
        "structures": ["compare", "cluster", *encoders, "pixels", "structures.csv", "--label", "kind"],
        "organs": [
            *("segment", run, "organs.csv", "--labels", ORGANS, "--spacing", "6", "--side", "32", "--steps", "600"),
            *("--note", "labels are of TotalSegmentator models, not of readers"),
        ],
    }


def call(arguments: Sequence[str], folder: Path, part: str) -> None:
    """Run `dagman` in `folder`, and add its wall-clock seconds to those of the part in `seconds/`."""
    print("$ dagman", shlex.join(arguments), flush=True)
    kept = folder / "seconds" / f"{part}.json"
    before = json.loads(kept.read_text()) if kept.is_file() else 0.0
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "dagman", *arguments], cwd=folder, check=True)
    kept.parent.mkdir(exist_ok=True)
    write_json(kept, round(before + time.perf_counter() - began, 1))


def write_tables(data: Path, folder: Path) -> None:
    """Write structures.csv, one row per structure with its kind, and organs.csv, which trains on the scan with abdominal organs."""
    organs = data / "organs"
    names = pd.read_csv(organs / "labels.csv")
    names["kind"] = [next((kind for kind, words in KINDS.items() if any(w in name for w in words)), "") for name in names["name"]]
    kept = names[(names["kind"] != "") & (names["voxels"] >= 20)]
    rows = {
        "scan": [str(organs / mask.replace("masks", "scans")) for mask in kept["mask"]],
        "mask": [str(organs / mask) for mask in kept["mask"]],
        "label_value": kept["id"],
        "patient": [Path(mask).name.removesuffix(".nii.gz") for mask in kept["mask"]],
        "kind": kept["kind"],
        "name": kept["name"],
    }
    pd.DataFrame(rows).to_csv(folder / "structures.csv", index=False)
    table = pd.read_csv(organs / "table.csv")
    for column in ("scan", "mask"):
        table[column] = [str(organs / name) for name in table[column]]
    table["split"] = ["train" if patient == "totalseg-body" else "test" for patient in table["patient"]]
    table.to_csv(folder / "organs.csv", index=False)


def score_organs(data: Path, folder: Path) -> None:
    """Dice of the organ model on its own training scan: a smoke test, not an estimate of performance."""
    truth = np.asarray(nib.load(data / "organs/masks/totalseg-body.nii.gz").dataobj)
    (found,) = (folder / "organs-predicted/predictions").glob("*.nii.gz")
    predicted = np.asarray(nib.load(found).dataobj)
    scores = {}
    for one in ORGANS.split(","):
        name, value = one.split("=")
        # Predictions hold the label map's own values.
        scores[name] = measure_dice(predicted == int(value), truth == int(value))
    write_json(folder / "organs-dice.json", scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for the store, the run and the results")
    parser.add_argument("--only", action="append", help="a part, or page; repeatable; an unknown name lists them")
    arguments = parser.parse_args()
    data, folder = arguments.data.resolve(), arguments.work.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    pretrained = folder / "pretrained"
    commands = list_commands(data, pretrained)
    parts = ["pretraining", *(["pretraining-small"] if choose_device().value != "cpu" else []), *commands, "page"]
    wanted = arguments.only or parts
    unknown = sorted(set(wanted) - set(parts))
    if unknown:
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(parts)}")
    write_tables(data, folder)
    for part in wanted:
        place = folder / part
        commands = list_commands(data, pretrained)
        if part == "pretraining":
            call(["prepare", *(str(data / name) for name in SETS), "--out", "store"], folder, part)
            pretrain(pretrained, "tiny", STEPS, part)
        elif part == "pretraining-small":
            pretrain(folder / GPU_RUN, "small", GPU_STEPS, part)
        elif part == "page":
            write_page(folder, {name: _shorten(command, data, folder) for name, command in commands.items()})
        else:
            call([*commands[part], "--out", str(place)], folder, part)
            if part == "organs":
                scan = str(data / "organs/scans/totalseg-body.nii.gz")
                call(["predict", "organs", scan, "--out", "organs-predicted"], folder, part)
                score_organs(data, folder)


def pretrain(run: Path, size: str, steps: int, part: str) -> None:
    """Pretrain on WORK's store, or resume the run."""
    more = ["--resume"] if run.exists() else []
    call(
        ["pretrain", "store", "--out", run.name, "--size", size, "--modality", "ct", "--set", f"train.steps={steps}", *more],
        run.parent,
        part,
    )


def _shorten(command: Sequence[str], data: Path, folder: Path) -> str:
    said = [word.replace(f"{folder}{os.sep}", "").replace(f"{data}{os.sep}", "") for word in command]
    return "dagman " + shlex.join(said)


if __name__ == "__main__":
    main()
