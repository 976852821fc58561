"""Each way a pretraining fails silently is made to happen in a run of a few steps, and its light turns red or amber, with a remedy.

A healthy run of the same size is the control: none of these keys stands in it.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from dagman.method.masking import MASKINGS, Counts, MaskingShares
from dagman.settings import choices
from dagman.settings.choices import MaskingChoice
from dagman.store.manifest import Store
from dagman.store.preparation import Preparation
from dagman.store.writer import prepare_store
from dagman.testing import make_body, write_nifti
from dagman.training import assembly
from dagman.training.monitoring.cohort import describe_cohort
from dagman.training.monitoring.health import judge_run
from dagman.training.pretraining import pretrain
from dagman.training.run import Run


@pytest.fixture
def fail(store, tiny, tmp_path):
    """A function that trains for some steps with further settings; the verdicts that are not green by their keys."""

    def train(*assignments: str, steps: int = 4, method: str = "dagman", source=store) -> dict[str, str]:
        length = [f"train.steps={steps}", f"train.monitor_every={steps}", f"train.checkpoint_every={steps}"]
        run = pretrain(source.path, tmp_path / "run", method=method, assignments=[*tiny, *length, *assignments])
        judged = [verdict for verdict in judge_run(run) if verdict.key]
        summary = json.loads((run.path / "summary.json").read_text())
        assert [one for one in summary["verdicts"] if one["key"]] == [one.to_json() for one in judged]
        assert all(verdict.remedy for verdict in judged)
        assert {row["key"] for row in run.warnings} >= {verdict.key for verdict in judged}
        return {verdict.key: verdict.light for verdict in judged}

    return train


def test_a_healthy_run_shows_none_of_the_failures_below(fail):
    assert {key for key, light in fail().items() if light == "red"} == set()


def test_a_teacher_frozen_at_a_constant(fail, monkeypatch):
    build = assembly.build_networks

    def build_constant(settings, **ways):
        student, teacher = build(settings, **ways)
        for parameter in teacher.parameters():
            parameter.zero_()
        return student, teacher

    monkeypatch.setattr(assembly, "build_networks", build_constant)
    noticed = fail("teacher.momentum=1", "teacher.momentum_end=1")
    assert (
        noticed.items() >= {"teacher-frozen": "red", "features-point": "red", "uniform-ampd": "red", "uniform-gitd": "red"}.items()
    )


def test_a_temperature_that_is_too_high(fail):
    noticed = fail("teacher.temperature=schedule", "teacher.temperature_start=5", "teacher.temperature_end=5")
    assert noticed.items() >= {"uniform-ampd": "red", "uniform-aitd": "red", "uniform-gitd": "red"}.items()


def test_a_learning_rate_that_is_too_large(fail):
    assert fail("optim.lr=1", "optim.warmup=0", steps=12, method="simmim")["reconstruction"] == "red"


def test_masks_that_cover_nothing(fail, monkeypatch):
    # Settings of which this would follow are refused, and so is a masking of one's own on a CPU, where it is counted.
    monkeypatch.setattr(MaskingShares, "count", lambda shares, n: Counts(ranked=0, hints=0, pool=0))
    assert fail()["masks-empty"] == "red"


def test_a_masking_of_ones_own_that_hides_another_number_than_asked_is_refused(fail, monkeypatch):
    monkeypatch.setitem(choices.MASKINGS, "nothing", MaskingChoice(description="none"))
    monkeypatch.setitem(MASKINGS, "nothing", lambda attention, grid, counts, draws: torch.zeros(draws.shape[:2], dtype=torch.bool))
    with pytest.raises(ValueError, match=r"the masking hid \[0, 0.* units of the views where \[5, 5.* were requested"):
        fail("masking.kind=nothing")


def _prepare(folder, bodies) -> Store:
    for number, body in enumerate(bodies):
        write_nifti(folder / "scans" / f"{number}.nii.gz", body, 4.0)
    return Store(prepare_store(folder / "scans", folder / "store", Preparation(spacing=4.0), workers=1).path)


def test_a_store_of_one_scan(fail, tmp_path):
    noticed = fail(method="simmim", source=_prepare(tmp_path, [make_body((40, 38, 36))]))
    assert noticed["one-scan"] == "red"


def test_two_scans_swapped_in_as_copies(fail, tmp_path):
    body, other = make_body((40, 38, 36), 0), make_body((36, 40, 34), 1)
    # Saved anew by another program: 1 HU off, so that neither the content nor the bytes are the same.
    store = _prepare(tmp_path, [body, body + np.int16(1), other])
    (copies,) = describe_cohort(store, [row.id for row in store.rows]).copies
    assert len(copies) == 2
    assert fail(method="simmim", source=store)["copies"] == "amber"


def test_bodies_of_one_shape_that_differ_by_noise_alone_are_no_copies(tmp_path):
    store = _prepare(tmp_path, [make_body((40, 38, 36), seed) for seed in range(2)])
    assert store.rows[0].shape == store.rows[1].shape
    assert describe_cohort(store, [row.id for row in store.rows]).copies == ()


def test_a_run_that_ended_in_a_number_that_is_not_finite_stays_red(fail, tmp_path, monkeypatch):
    fail(method="simmim")
    (tmp_path / "run" / "notes.jsonl").write_text(json.dumps({"step": 4, "key": "not-finite", "text": "..."}) + "\n")
    assert judge_run(Run(tmp_path / "run"))[0].key == "not-finite"
