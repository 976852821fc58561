"""`dagman bench`: its figures agree with one another, the ceiling is a rate of products, and nothing is written."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from dagman.cli.training import bench as command
from dagman.training.plan import bench


def test_the_command_measures_steps_beside_the_ceiling_and_writes_nothing(store, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dagman.training.plan.rehearsal.READING_SECONDS", 0.05)
    monkeypatch.setattr(bench, "_CPU_SIDE", 128)
    monkeypatch.setattr(bench, "LARGEST_MICRO_BATCH", 8)
    result = CliRunner().invoke(command.app, [str(store.path), "--json", *(f"--set={line}" for line in (*tiny, "train.steps=4"))])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output[result.output.index("{") :])
    assert list(tmp_path.iterdir()) == []
    seconds, views = found["plan"]["seconds"][0], found["plan"]["views"]
    assert found["views_per_s"] == pytest.approx(views / seconds)
    assert found["ceiling_share"] == pytest.approx(found["flop_per_step"] / seconds / found["flop_per_s"])
    assert found["crops_per_s"] > 0
    assert found["largest_micro_batch"] in (2, 4, 8)


def test_the_micro_batch_that_fits_grows_with_memory(store, tiny, monkeypatch):
    rehearsal = bench.prepare_rehearsal(store.path, assignments=[*tiny, "train.steps=4"])
    sizes = []
    for free in (0, 2**30, 2**50):
        monkeypatch.setattr(bench.devices, "free_memory", lambda device, free=free: free)
        sizes.append(bench.find_largest_micro_batch(rehearsal))
    assert sizes[0] == 2 < sizes[1] < sizes[2] == bench.LARGEST_MICRO_BATCH
