"""Backbones other than the Swin go the whole road: pretraining, page, maps, features, tasks; or one line says what to do."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from dagman.encoder.loading import load_encoder
from dagman.model import ViTEncoder
from dagman.testing import TINY_SETTINGS

pytestmark = pytest.mark.journey

VIT = ("model.embed=16", "model.depths=[1, 1, 1, 1]", "model.heads=[2, 2, 2, 2]")
OTHERS = tuple(one for one in TINY_SETTINGS if not one.startswith("model."))
FAST = ("--folds", 2, "--repeats", 1, "--shares", 100, "--device", "cpu")
SMALL = ("--crop-mm", 64, "--crop-spacing", 2)
"""Crops of 32^3 voxels."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six bodies at 4 mm with a bright or a dark cube each, its mask, and a table."""
    folder = tmp_path_factory.mktemp("bodies")
    rows = []
    for number in range(6):
        random = np.random.default_rng(number)
        hu, mask = np.full((40, 38, 36), -1000.0), np.zeros((40, 38, 36), dtype=np.uint8)
        hu[4:-4, 4:-4] = 40
        hu[12:20, 15:23, 14:22] = 300 if number % 2 else -400
        mask[12:20, 15:23, 14:22] = 1
        for name, voxels in (("body", np.rint(hu + random.normal(0, 20, hu.shape)).astype(np.int16)), ("mask", mask)):
            image = nibabel.Nifti1Image(voxels, np.diag([-4.0, 4.0, 4.0, 1.0]))
            image.header.set_xyzt_units("mm")
            nibabel.save(image, folder / f"{name}{number}.nii.gz")
        rows.append((f"body{number}.nii.gz", f"p{number}", "yes" if number % 2 else "no", f"mask{number}.nii.gz"))
    pd.DataFrame(rows, columns=["scan", "patient", "dense", "mask"]).to_csv(folder / "table.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def vit_run(place, tmp_path_factory) -> Path:
    from dagman.training.pretraining import pretrain

    out = tmp_path_factory.mktemp("vit") / "run"
    scans = sorted(place.glob("body*.nii.gz"))
    pretrain(scans, out, size="tiny-vit", assignments=[*OTHERS, *VIT, "train.steps=2", "train.monitor_every=1"])
    return out


def test_a_vit_is_pretrained_and_its_encoder_is_read_used_and_described(vit_run, place, call_dagman, tmp_path):
    encoder = load_encoder(vit_run, device="cpu")
    assert isinstance(encoder.network.encoder, ViTEncoder)
    assert (encoder.config.size, encoder.config.backbone, encoder.config.step) == ("tiny-vit", "vit", 2)
    row = json.loads((vit_run / "monitors.jsonl").read_text().splitlines()[-1])
    assert set(row["projectors"]) == {"ampd", "aitd", "gitd"}
    assert set(row["diversity"]) == {"stage1", "stage2", "stage3", "stage4", "sa"}
    assert call_dagman("report", vit_run)[0] == 0
    page = (vit_run / "report.html").read_text(encoding="utf-8")
    assert "A 3D vision transformer (4 blocks of 16 channels with 2 heads" in page
    code, said, errors = call_dagman("info", vit_run, "--json")
    assert code == 0, errors
    assert json.loads(said)["made_of"]["positions"].startswith("its positions were learned for views of 32^3 voxels")
    code, _, errors = call_dagman("attention", vit_run, place / "body0.nii.gz", "--out", tmp_path / "maps")
    assert code == 0, errors
    assert nibabel.load(tmp_path / "maps" / "attention_mean.nii.gz").shape == (40, 38, 36)
    code, said, errors = call_dagman("embed", vit_run, place / "table.csv", "--out", tmp_path / "f.parquet", "--device", "cpu")
    assert code == 0, errors
    assert "its positions were learned for views of 32^3 voxels" in said + errors
    assert pd.read_parquet(tmp_path / "f.parquet").filter(regex=r"^x4_mean_").shape == (6, 16)
    code, _, errors = call_dagman("export", vit_run, "--to", "monai", "--out", tmp_path / "monai")
    assert code == 0, errors
    assert list(tmp_path.glob("monai/*.safetensors"))


def test_a_vit_is_fine_tuned_and_segments(vit_run, place, call_dagman, tmp_path):
    asked = ("--label", "dense", *FAST, *SMALL, "--method", "finetune", "--epochs", 1, "--out", tmp_path / "tuned")
    code, _, errors = call_dagman("classify", vit_run, place / "table.csv", *asked)
    assert code == 0, errors
    code, _, errors = call_dagman("predict", tmp_path / "tuned", place / "table.csv", "--out", tmp_path / "p", "--device", "cpu")
    assert code == 0, errors
    asked = (*FAST[:4], "--steps", 2, "--batch", 2, "--device", "cpu", "--out", tmp_path / "segmented")
    code, _, errors = call_dagman("segment", vit_run, place / "table.csv", *asked)
    assert code == 0, errors
    models = tmp_path / "segmented"
    code, _, errors = call_dagman("predict", models, place / "body0.nii.gz", "--out", tmp_path / "q", "--device", "cpu")
    assert code == 0, errors


def test_a_vit_goes_on_in_larger_views_with_positions_interpolated_and_says_so(vit_run, place, tmp_path):
    from dagman.training.pretraining import pretrain

    said: list[str] = []
    pretrain(
        sorted(place.glob("body*.nii.gz"))[:2],
        tmp_path / "run",
        continue_from=str(vit_run),
        assignments=["view.side=64", "train.steps=1", "train.monitor_views=2", "train.device=cpu", "train.workers=0"],
        on_event=lambda name, values: said.append(values.get("text", "")),
    )
    assert "positions interpolated from 2 x 2 x 2 to 4 x 4 x 4 units" in "\n".join(said)
    assert load_encoder(tmp_path / "run", device="cpu").network.encoder.view == 64


def test_a_cnn_is_pretrained_by_simmim_and_stands_in_the_table(place, call_dagman, tmp_path):
    pytest.importorskip("monai")
    from dagman.training.pretraining import pretrain

    run, said = tmp_path / "cnn", []
    pretrain(
        sorted(place.glob("body*.nii.gz"))[:3],
        run,
        size="tiny-resnet",
        method="simmim",
        assignments=[*OTHERS, "train.steps=1", "train.monitor_every=1", "model.embed=7", "masking.mask_fill=token"],
        on_event=lambda name, values: said.append(values.get("text", "")),
    )
    assert "model.embed has no effect: the sizes of resnet3d:10 follow from its name." in "\n".join(said)
    row = json.loads((run / "monitors.jsonl").read_text().splitlines()[-1])
    assert set(row["reconstruction"]) >= {"student"}
    encoder = load_encoder(run, device="cpu")
    assert (encoder.config.backbone, encoder.config.mask_fill, encoder.config.step) == ("resnet3d:10", "token", 1)
    asked = ("--label", "dense", *FAST, *SMALL, "--method", "linear", "--out", tmp_path / "compared")
    code, _, errors = call_dagman("compare", "classify", run, "scratch:tiny-resnet", place / "table.csv", *asked)
    assert code == 0, errors
    page = (tmp_path / "compared" / "report.html").read_text(encoding="utf-8")
    assert "scratch:tiny-resnet" in page


def test_patches_of_a_vits_units_cannot_be_dropped_singly(call_dagman, place, tmp_path):
    options = [word for one in (*OTHERS, *VIT, "teacher.granularity=patch") for word in ("--set", one)]
    code, _, errors = call_dagman("pretrain", place / "body0.nii.gz", "--size", "tiny-vit", "--out", tmp_path / "run", *options)
    assert (code, len(errors.splitlines())) == (2, 1)
    assert "those of the backbone 'vit' have 16^3. Set teacher.granularity=unit" in errors
