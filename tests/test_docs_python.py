"""Proves that the Python of the documentation runs as it is written, on a small scan in the folder it names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dagman
from dagman.evaluation.classification_measures import METRICS
from dagman.evaluation.measures import MEASURES
from dagman.method.masking import MASKINGS, count_units
from dagman.model import BACKBONES, SwinShape, build_backbone
from dagman.scans.formats import FORMATS
from dagman.scans.reading import read_scan
from dagman.settings import choices, load_settings
from dagman.study.plan import Endpoint, MonitorPlan, Study, TaskPlan, list_jobs, read_study

_GUIDES = Path(__file__).parents[1] / "docs" / "guides"
_REGISTRIES: tuple[dict[str, Any], ...] = (METRICS, MEASURES, MASKINGS, BACKBONES, FORMATS, choices.MASKINGS)


def _run_blocks(guide: str) -> dict[str, Any]:
    """All Python of a guide, one block after the other; the names it leaves."""
    blocks = re.findall(r"^```python\n(.*?)^```", (_GUIDES / guide).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    return names


@pytest.fixture
def restored_registries() -> Iterator[None]:
    """Registries as they were, once the test is over."""
    before = [dict(registry) for registry in _REGISTRIES]
    yield
    for registry, held in zip(_REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(held)


def test_python_of_the_guides_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = _run_blocks("python.md")
    features, attention, frame, joined = (names[name] for name in ("features", "attention", "frame", "joined"))
    assert features.values.shape == (1, len(features.columns))
    assert np.isfinite(features.values).all()
    assert len(attention.heads) > 1
    assert names["run"].last_step == 2
    assert names["store"].kept == len(frame) == 2
    assert frame.attrs["refused"] == []
    assert np.array_equal(frame[list(features.columns)].to_numpy(dtype=np.float32)[0], features.values[0])
    assert np.allclose(names["of_array"].values, features.values, rtol=1e-3, atol=1e-3)
    assert joined["age"].tolist() == [61, 54]
    assert [x.shape[0] for x in names["maps"]] == [1] * 4


def test_every_public_name_is_in_the_guide_to_python():
    guide = (_GUIDES / "python.md").read_text(encoding="utf-8")
    assert [name for name in dagman.__all__ if f"dagman.{name}" not in guide] == []


def test_parts_of_ones_own_are_what_their_guide_says(restored_registries, tmp_path):
    _run_blocks("own-parts.md")
    settings, _ = load_settings(assignments=["masking.kind=checkerboard", "model.backbone=averages"])
    assert settings.masking.choice.description == "every second unit"
    draws = torch.rand(2, 64, 8, generator=torch.Generator().manual_seed(0))
    hidden = MASKINGS["checkerboard"](None, (4, 4, 4), count_units(64, 0.5, 0.0), draws)
    assert hidden.sum(dim=1).tolist() == [32, 32]
    assert torch.equal(hidden[0], hidden[1])
    backbone = build_backbone("averages", SwinShape(embed=8))
    maps = backbone(torch.rand(1, 1, 32, 32, 32))
    assert [tuple(x.shape[1:3]) for x in maps] == [(16, 8), (32, 4), (64, 2), (128, 1)]
    labels, scores = np.array([0, 1]), np.array([[[0.5, 0.5]], [[0.75, 0.25]]])
    assert METRICS["log_loss"].measure(labels, scores) == pytest.approx((np.log(2) + np.log(4)) / 2)
    np.save(tmp_path / "scan.npy", np.zeros((20, 21, 22), dtype=np.int16))
    assert read_scan(tmp_path / "scan.npy").affine.spacing == (2.0, 2.0, 2.0)


def test_the_study_of_its_guide_is_read_and_its_keys_are_all_explained(tmp_path):
    guide = (_GUIDES / "study.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```toml\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)
    (tmp_path / "study.toml").write_text(block)
    jobs = list_jobs(read_study(tmp_path / "study.toml"), tmp_path, tmp_path / "out")
    assert [job.kind for job in jobs] == ["pretrain"] * 6 + ["task"] * 3
    keys = {name for section in (Study, TaskPlan, MonitorPlan, Endpoint) for name in section.model_fields}
    assert {key for key in keys if f"`{key}`" not in guide and f"[{key}]" not in guide} == set()
