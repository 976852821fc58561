"""Proves that MONAI runs an exported segmentation model as a bundle, without dagman, and labels scans as dagman does."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from dagman.encoder.encoder import Encoder
from dagman.errors import EncoderError, TaskError
from dagman.export.forms import export_model
from dagman.tables.structures import Structure
from dagman.tasks.segment.model import SegmentationModel, start_model
from dagman.testing import make_body, write_nifti

pytest.importorskip("monai", reason="needs the extra `monai`")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def model(encoder: Encoder) -> SegmentationModel:
    """Random weights. Without the cut to the body, which MONAI does not make and which moves its windows."""
    config = replace(encoder.config, crop_body=False)
    started = start_model(
        replace(encoder, config=config), [Structure(name="liver", values=(6,)), Structure(name="spleen", values=(1, 2))]
    )
    started.network.requires_grad_(False).eval()
    return started


@pytest.fixture(scope="module")
def folder(model: SegmentationModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle, with a scan at the encoder's spacing (its axes flipped and turned) in `scans`."""
    out = tmp_path_factory.mktemp("bundle") / "out"
    export_model(model, "monai-bundle", out)
    affine = np.array([[0, 0, 4.0, -70], [-4.0, 0, 0, 60], [0, 4.0, 0, -90], [0, 0, 0, 1]])
    (out / "scans").mkdir()
    write_nifti(out / "scans" / "a.nii.gz", make_body((30, 44, 26), seed=5), affine)
    return out


def test_monais_own_command_writes_the_label_map_of_dagman(folder: Path, model: SegmentationModel, tmp_path: Path):
    """By the line of the card, where dagman cannot be imported."""
    pytest.importorskip("fire", reason="MONAI's bundle command needs fire")
    card = (folder / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^python -m monai\.bundle run .*$", card, re.MULTILINE)
    command = shlex.split(line.replace("SCANS", "scans").replace("OUT", str(tmp_path)))
    (tmp_path / "without" / "dagman").mkdir(parents=True)
    (tmp_path / "without" / "dagman" / "__init__.py").write_text("raise ImportError", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "without")}
    run = subprocess.run([sys.executable, *command[1:]], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    given = nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(given.affine, nibabel.load(folder / "scans" / "a.nii.gz").affine, atol=1e-5)
    wanted = model.to_values(model.label_scan(model.encoder.read(folder / "scans" / "a.nii.gz")))
    agreeing = float((np.asarray(given.dataobj) == wanted).mean())
    print(f"{agreeing:.4%} of the voxels have one label of {np.unique(wanted, return_counts=True)}")
    assert len(np.unique(wanted)) > 1
    assert agreeing > 0.9995


def test_its_code_needs_no_dagman(folder: Path):
    code = (folder / "scripts" / "dagman_network.py").read_text(encoding="utf-8")
    assert "import dagman" not in code
    assert "from dagman" not in code


def test_the_metadata_say_what_it_takes_and_gives(folder: Path, model: SegmentationModel):
    values = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
    needed = (
        "version",
        "changelog",
        "monai_version",
        "pytorch_version",
        "numpy_version",
        "task",
        "description",
        "network_data_format",
    )
    assert set(needed) <= set(values)
    assert values["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "liver", "2": "spleen"}
    assert "HU from -900 to 400 become 0 to 1" in values["preprocessing"]
    assert json.loads((folder / "preprocessing.json").read_text(encoding="utf-8"))["spacing_mm"] == [4.0] * 3
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "python -m monai.bundle run" in card
    assert "## Out-of-scope use" in card


def test_models_that_monai_could_not_build_are_refused(model: SegmentationModel, tmp_path: Path):
    mine = replace(model.encoder, config=replace(model.encoder.config, backbone="averages"))
    with pytest.raises(EncoderError, match="its backbone averages has no code that runs without dagman"):
        export_model(replace(model, encoder=mine), "monai-bundle", tmp_path / "out")
    mr = replace(model.encoder, config=replace(model.encoder.config, modalities=("MR",)))
    with pytest.raises(TaskError, match="bundles need HU"):
        export_model(replace(model, encoder=mr), "monai-bundle", tmp_path / "out")
