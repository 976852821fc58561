"""Proves from the command line that a segmentation learns the built-in cohort's organs, and says so of other patients."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from dagman.model import SwinShape
from dagman.scans.phantom import write_cohort

pytestmark = [pytest.mark.journey, pytest.mark.slow]


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of label maps: five patients to train, one to choose by, two to test."""
    cohort = write_cohort(tmp_path_factory.mktemp("cohort"), patients=8, spacing=4.0, workers=1)
    table = pd.read_csv(cohort.organs_table).drop_duplicates("mask")[["scan", "mask", "patient"]]
    table["split"] = ["train"] * 5 + ["val"] + ["test"] * 2
    table.to_csv(cohort.folder / "maps.csv", index=False)
    return cohort.folder / "maps.csv"


def test_lungs_and_liver_of_other_patients_are_found(maps, make_tiny_encoder, run_dagman):
    # Half as wide and deep as `tiny`: these organs are found by far less.
    shape = SwinShape(embed=12, depths=(1, 1, 1, 1), heads=(1, 2, 2, 4))
    encoder = make_tiny_encoder(spacing=6.0, semantic=False, shape=shape).parent
    done = run_dagman(
        *("segment", encoder, maps, "--labels", "lungs=1+2,liver=5", "--spacing", 6, "--side", 32, "--steps", 100),
        *("--out", maps.parent / "out", "--device", "cpu", "--json"),
    )
    assert done.returncode == 0, done.stderr
    dice = {row["name"]: row["interval"]["value"] for row in json.loads(done.stdout)["measurements"] if "dice" in row["name"]}
    assert dice["dice"] > 0.7
    assert min(dice.values()) > 0.6
