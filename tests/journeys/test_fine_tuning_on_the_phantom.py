"""Proves from the command line that fine-tuning tells the built-in cohort's nodules apart, and that permuted labels are chance."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dagman.scans.phantom import write_cohort

pytestmark = [pytest.mark.journey, pytest.mark.slow]

TRAINED = 26
"""Of 40 patients: a fresh encoder needs about 100 nodules."""


@pytest.fixture(scope="module")
def nodules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cohort's table of nodules with a split by patient, and the same with labels dealt anew."""
    cohort = write_cohort(tmp_path_factory.mktemp("cohort"), patients=40, spacing=3.0, workers=1)
    table = pd.read_csv(cohort.nodules_table)
    numbers = table["patient"].str.removeprefix("phantom-").astype(int)
    table["split"] = np.where(numbers < TRAINED, "train", "test")
    table.to_csv(cohort.folder / "split.csv", index=False)
    permuted = table.drop(columns="split").assign(label=np.random.default_rng(0).permutation(table["label"]))
    permuted.to_csv(cohort.folder / "permuted.csv", index=False)
    return cohort.folder


def _classify(table: Path, method: str, *options: object) -> dict[str, float]:
    """AUC by method; crops of 32^3 voxels hold a nodule, and cost an eighth of the default's."""
    command = [
        "classify",
        "scratch:tiny",
        table,
        "--label",
        "label",
        "--method",
        method,
        "--crop-mm",
        "22.4",
        "--crop-spacing",
        "0.7",
    ]
    command += ["--out", table.with_suffix(""), "--cache", table.parent / "features", "--device", "cpu", "--json", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "dagman", *map(str, command)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["measurements"]
    return {row["method"]: row["interval"]["value"] for row in rows if row["name"] == "auc"}


def test_fine_tuning_finds_malignant_nodules_of_other_patients(nodules):
    assert _classify(nodules / "split.csv", "finetune", "--epochs", 15)["finetune"] > 0.8


def test_permuted_labels_are_chance(nodules):
    areas = _classify(nodules / "permuted.csv", "linear,knn", "--repeats", 1)
    assert all(abs(area - 0.5) < 0.15 for area in areas.values())
