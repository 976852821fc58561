"""Proves from the command line that fine-tuning tells the built-in cohort's nodules apart, and that permuted labels are chance."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dagman.model import SwinShape
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


@pytest.fixture(scope="module")
def encoder(make_tiny_encoder: Callable[..., Path]) -> Path:
    """Fresh weights, two thirds as wide as `tiny` and half as deep: texture in nodules is learned by less."""
    return make_tiny_encoder(semantic=False, shape=SwinShape(embed=16, depths=(1, 1, 1, 1), heads=(1, 2, 2, 4))).parent


def _classify(run_dagman: Callable, encoder: Path, table: Path, method: str, *options: object) -> dict[str, float]:
    """AUC by method; crops of 32^3 voxels hold a nodule, and cost an eighth of the default's."""
    command = [
        "classify",
        encoder,
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
    done = run_dagman(*command)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["measurements"]
    return {row["method"]: row["interval"]["value"] for row in rows if row["name"] == "auc"}


def test_fine_tuning_finds_malignant_nodules_of_other_patients(run_dagman, encoder, nodules):
    assert _classify(run_dagman, encoder, nodules / "split.csv", "finetune", "--epochs", 15)["finetune"] > 0.8


def test_permuted_labels_are_chance(run_dagman, encoder, nodules):
    areas = _classify(run_dagman, encoder, nodules / "permuted.csv", "linear,knn", "--repeats", 1)
    assert all(abs(area - 0.5) < 0.15 for area in areas.values())
