"""Proves that the registries are open: a masking, a backbone and a measure of one's own go through commands and onto pages."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from dagman.encoder.loading import load_encoder
from dagman.evaluation.classification_measures import METRICS, ClassMetric, register_metric
from dagman.evaluation.measures import MEASURES, Measure
from dagman.method import masking
from dagman.model import BACKBONES, Backbone, BackboneKind, SwinShape, register_backbone
from dagman.settings import choices
from dagman.testing import TINY_SETTINGS
from dagman.training.assembly import register_masking

pytestmark = pytest.mark.journey

Call = Callable[..., tuple[int, str, str]]
SETTINGS = [word for one in (*TINY_SETTINGS, "train.steps=2", "train.monitor_every=1") for word in ("--set", one)]


class Averages(Backbone):
    """Averages of voxels, and linear maps of them: the least that is a backbone."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.widths = widths
        self.projections = nn.ModuleList(nn.Conv3d(1, width, kernel_size=1) for width in widths)

    def forward(
        self, view: Tensor, hidden: Tensor | None = None, drop: Tensor | None = None, stages: int | None = None
    ) -> list[Tensor]:
        x = nn.functional.avg_pool3d(view, 2)
        if hidden is not None:
            x = torch.where(hidden[:, None], 0.0, x)
        maps = []
        for projection in self.projections[:stages]:
            x = nn.functional.avg_pool3d(x, 2)
            maps.append(projection(x))
        return maps

    def layers(self) -> list[list[nn.Parameter]]:
        return [list(projection.parameters()) for projection in self.projections]


def _build(shape: SwinShape, variant: str, mask_fill: str) -> Averages:
    return Averages(shape.widths)


def _mask_first(attention: Tensor | None, grid: masking.Grid, counts: masking.Counts, draws: Tensor) -> Tensor:
    return torch.arange(draws.shape[1]).expand(draws.shape[:2]) < counts.hidden


def _average_certainty(labels: np.ndarray, scores: np.ndarray) -> float:
    return float(scores.max(axis=2).mean())


@pytest.fixture
def own_parts() -> Iterator[None]:
    """The masking `first`, the backbone `averages` and the measure `certainty`, for one test."""
    register_masking("first", _mask_first, choices.MaskingChoice(description="the first in order"))
    register_backbone("averages", BackboneKind(build=_build, mask_fills=("zero",)))
    register_metric("certainty", ClassMetric(measure=_average_certainty, compared=True), Measure(label="mean certainty"))
    yield
    del masking.MASKINGS["first"], choices.MASKINGS["first"], BACKBONES["averages"], METRICS["certainty"], MEASURES["certainty"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six bodies at 4 mm, a table of two kinds of points in each, and the settings of a run of two steps."""
    folder = tmp_path_factory.mktemp("own")
    rows = []
    for number in range(6):
        random = np.random.default_rng(number)
        hu = np.full((40, 38, 36), -1000.0)
        hu[4:-4, 4:-4] = 40
        for x, value in ((12, -400), (28, 300)):
            hu[x - 4 : x + 4, 15:23, 14:22] = value
            rows.append((f"body{number}.nii.gz", f"p{number}", "yes" if value > 0 else "no", -4.0 * x, 76.0, 72.0))
        image = nibabel.Nifti1Image(np.rint(hu + random.normal(0, 20, hu.shape)).astype(np.int16), np.diag([-4.0, 4.0, 4.0, 1.0]))
        image.header.set_xyzt_units("mm")
        nibabel.save(image, folder / f"body{number}.nii.gz")
    columns = ["scan", "patient", "dense", "center_x_mm", "center_y_mm", "center_z_mm"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "points.csv", index=False)
    return folder


def _pretrain(call_dagman: Call, place: Path, out: Path, *sets: str) -> tuple[int, str, str]:
    options = [part for one in sets for part in ("--set", one)]
    return call_dagman("pretrain", *sorted(place.glob("*.nii.gz")), "--out", out, *SETTINGS, *options)


def test_a_masking_and_a_backbone_of_ones_own_are_pretrained_read_back_and_compared(own_parts, call_dagman, place, tmp_path):
    run = tmp_path / "run"
    code, _, errors = _pretrain(call_dagman, place, run, "masking.kind=first", "model.backbone=averages")
    assert code == 0, errors
    assert call_dagman("report", run)[0] == 0
    assert "Masked units are the first in order." in (run / "report.html").read_text(encoding="utf-8")
    encoder = load_encoder(run, device="cpu")
    assert isinstance(encoder.network.encoder, Averages)
    fast = ("--folds", 2, "--repeats", 1, "--shares", 100, "--crop-mm", 64, "--crop-spacing", 2, "--device", "cpu")
    models = (run, "scratch:tiny", "histogram")
    out = tmp_path / "compared"
    code, _, errors = call_dagman(
        "compare", "classify", *models, place / "points.csv", "--label", "dense", *fast, "--method", "linear", "--out", out
    )
    assert code == 0, errors
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("mean certainty") > 3
    tuned = tmp_path / "tuned"
    code, _, errors = call_dagman(
        "classify", run, place / "points.csv", "--label", "dense", *fast, "--method", "finetune", "--epochs", 2, "--out", tuned
    )
    assert code == 0, errors
    assert "mean certainty" in (tuned / "report.html").read_text(encoding="utf-8")
    code, _, errors = call_dagman("predict", tuned, place / "points.csv", "--out", tmp_path / "predicted", "--device", "cpu")
    assert code == 0, errors


def test_monais_swin_is_pretrained_and_read_back(call_dagman, place, tmp_path):
    pytest.importorskip("monai")
    run = tmp_path / "run"
    code, _, errors = _pretrain(call_dagman, place, run, "model.backbone=monai-swin", "model.window=2")
    assert code == 0, errors
    config = json.loads((run / "encoder" / "config.json").read_text())
    assert config["backbone"] == "monai-swin"
    assert load_encoder(run, device="cpu").config.step == 2


@pytest.mark.parametrize(
    ("sets", "reason"),
    [
        (
            ["model.backbone=unmasked"],
            "model.backbone = 'unmasked' cannot be pretrained, as it does not support masking: it reads all",
        ),
        (["model.backbone=swim"], "model.backbone: there is no backbone 'swim'. Nearest: swin"),
        (["model.backbone=monai-swin", "masking.mask_fill=token"], "masking.mask_fill = 'token' is not supported by the backbone"),
    ],
)
def test_a_backbone_that_cannot_be_pretrained_is_refused_before_anything_is_written(
    call_dagman, place, tmp_path, monkeypatch, sets, reason
):
    monkeypatch.setitem(BACKBONES, "unmasked", BackboneKind(build=_build, no_masks="it reads all"))
    code, _, errors = _pretrain(call_dagman, place, tmp_path / "run", *sets)
    assert code == 2
    assert reason in errors
    assert len(errors.splitlines()) == 1
    assert not (tmp_path / "run").exists()
