"""Proves that nnU-Net plans, preprocesses, trains and predicts with an exported encoder, by its own commands, on the CPU.

Runs where nnU-Net is installed beside dagman (it is no part of the extra `dev`): `pip install nnunetv2==2.8.1`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

import dagman
from dagman.encoder.encoder import Encoder
from dagman.export.forms import export_encoder
from dagman.model.foreign.cnn import MEAN
from dagman.model.foreign.residual_encoder import STD
from dagman.testing import make_body, write_nifti

pytest.importorskip("nnunetv2", reason="needs nnunetv2 2.8.1 beside dagman")
pytestmark = pytest.mark.slow

# nnU-Net looks up the arguments by the names in the signature.
_SHORT = """
import torch
from {module} import {trainer}

class ShortTrainer({trainer}):
    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 2, 8, 1
        # At 3e-4 the Swin called all of a scan body after eight steps.
        self.initial_lr = {rate}
        torch.manual_seed(0)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):
        # An eighth of the time of its validation.
        *others, _ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        self.inference_allowed_mirroring_axes = None
        return (*others, None)
"""
_AFFINE = np.array([[0, 0, 4.0, -70], [-4.5, 0, 0, 60], [0, 3.7, 0, -90], [0, 0, 0, 1]])


@pytest.fixture(scope="module", params=["swin", "resenc"])
def trained(request, encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which everything was done, and what the training printed; by our trainer, and by nnU-Net's own of a CNN."""
    place, own = tmp_path_factory.mktemp("nnunet"), request.param == "resenc"
    export_encoder(_load_cnn() if own else encoder, "nnunet", place / "export")
    raw = place / "raw" / "Dataset001_Body"
    for number in range(6):
        voxels = make_body((36, 44, 40), seed=number)
        kind = "Tr" if number else "Ts"
        for folder, name, values in ((f"images{kind}", "_0000", voxels), (f"labels{kind}", "", (voxels > -200).astype(np.uint8))):
            (raw / folder).mkdir(parents=True, exist_ok=True)
            write_nifti(raw / folder / f"case{number}{name}.nii.gz", values, _AFFINE)
    dataset = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "body": 1}, "numTraining": 5, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(dataset), encoding="utf-8")
    (place / "short").mkdir()
    module, trainer = (
        ("nnunetv2.training.nnUNetTrainer.nnUNetTrainer", "nnUNetTrainer") if own else ("dagman_trainer", "DagmanTrainer")
    )
    (place / "short" / "short_trainer.py").write_text(
        _SHORT.format(module=module, trainer=trainer, rate=1e-2 if own else 3e-3), encoding="utf-8"
    )
    environment = {
        **os.environ,
        "nnUNet_raw": str(place / "raw"),
        "nnUNet_preprocessed": str(place / "preprocessed"),
        "nnUNet_results": str(place / "results"),
        "nnUNet_extTrainer": str(place / "short"),
        "PYTHONPATH": str(place / "export"),
        "nnUNet_n_proc_DA": "1",
        "nnUNet_def_n_proc": "1",
    }

    def call(command: str, *arguments: object) -> str:
        program = (
            [sys.executable, place / "export" / command] if command.endswith(".py") else [Path(sys.executable).with_name(command)]
        )
        run = subprocess.run(
            [*map(str, program), *map(str, arguments)], capture_output=True, text=True, env=environment, check=False
        )
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    which = ("-c", "3d_fullres", "-p", "dagmanPlans", "-tr", "ShortTrainer")
    call("nnUNetv2_plan_and_preprocess", "-d", 1, "--no_pp", "-npfp", 1)
    call("make_plans.py", 1)
    call("nnUNetv2_preprocess", "-d", 1, "-plans_name", "dagmanPlans", "-c", "3d_fullres", "-np", 1)
    start = ("-pretrained_weights", place / "export" / "pretrained.pth") if own else ()
    printed = call("nnUNetv2_train", 1, "3d_fullres", 0, "-p", "dagmanPlans", "-tr", "ShortTrainer", "-device", "cpu", *start)
    call(
        "nnUNetv2_predict", "-d", 1, "-i", raw / "imagesTs", "-o", place / "out", "-f", 0, *which,
        *("-device", "cpu", "-npp", 1, "-nps", 1, "--disable_tta"),
    )  # fmt: skip
    return place, printed


def _load_cnn() -> Encoder:
    """At the spacing and with the window of the other encoder."""
    cnn = dagman.load("resenc:8", device="cpu")
    return replace(cnn, config=replace(cnn.config, spacing=4.0, low=-900.0, high=400.0))


def test_the_weights_are_loaded_and_trained_for_two_epochs(trained: tuple[Path, str]):
    _, printed = trained
    assert re.search(
        r"\d+ weights of the encoder loaded .* none missing, none left over|# Loading pretrained weights from", printed
    )
    losses = [float(value) for value in re.findall(r"train_loss (-?[\d.]+)", printed)]
    assert len(losses) == 2
    assert np.isfinite(losses).all()


def test_what_nnunet_prepared_is_upright_and_in_the_encoders_window(trained: tuple[Path, str], encoder: Encoder):
    import blosc2

    place, _ = trained
    (path,) = place.glob("preprocessed/*/dagmanPlans_3d_fullres/case1.b2nd")
    values = blosc2.open(str(path))[:][0]
    if (place / "export" / "pretrained.pth").is_file():
        values = values * STD + MEAN
    scan = nibabel.load(next(place.glob("raw/*/imagesTr/case1_0000.nii.gz")))
    upright = nibabel.as_closest_canonical(scan).get_fdata()
    assert values.shape == tuple(round(size * step / 4) for size, step in zip(upright.shape, (4.0, 4.5, 3.7), strict=True))
    wanted = np.clip((upright - encoder.config.low) / (encoder.config.high - encoder.config.low), 0, 1)
    # Splines overshoot, and the grids differ by less than a voxel: the means along each axis tell axes and flips apart.
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        profile, reference = values.mean(axis=others), wanted.mean(axis=others)
        reference = np.interp(np.linspace(0, 1, len(profile)), np.linspace(0, 1, len(reference)), reference)
        assert np.abs(profile - reference).max() < 0.05


def test_a_prediction_lies_on_the_grid_of_the_scan(trained: tuple[Path, str]):
    place, _ = trained
    scan = nibabel.load(next(place.glob("raw/*/imagesTs/case0_0000.nii.gz")))
    label = nibabel.load(next(place.glob("raw/*/labelsTs/case0.nii.gz"))).get_fdata() > 0
    predicted = nibabel.load(place / "out" / "case0.nii.gz")
    assert predicted.shape == scan.shape
    np.testing.assert_allclose(predicted.affine, scan.affine, atol=1e-4)
    found = predicted.get_fdata() > 0
    # A few steps tell a body from air: were an axis turned on the way, they would not overlap so.
    assert 2 * (found & label).sum() / (found.sum() + label.sum()) > 0.7
