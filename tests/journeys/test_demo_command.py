"""Proves the demo's road end to end in its smallest form, and that the same command repeated does nothing twice."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from dagman.cli.demo import app


@pytest.mark.slow
def test_the_demo_compares_and_a_repeat_continues(tmp_path):
    arguments = ["--out", str(tmp_path), "--patients", "5", "--seeds", "1", "--steps", "1", "--few-shot-steps", "1"]
    arguments += ["--set", "view.side=32", "--set", "train.monitor_views=2"]
    first = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert first.exit_code == 0
    kept = json.loads((tmp_path / "comparisons.json").read_text(encoding="utf-8"))["comparisons"]
    questions = [one["question"] for one in kept]
    assert [question.split()[-3:] for question in questions[:2]] == [["1", "labelled", "patient"], ["2", "labelled", "patients"]]
    assert all(0 <= value <= 1 for one in kept[:3] for value in (*one["pretrained"], *one["fresh"]))
    assert {one["outcome"] for one in kept} == {"open"}
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("With a single seed, random variation cannot be estimated, so no difference is claimed.") == 1
    assert page.index("An example") < page.index("Effect of pretraining") < page.index("How these results were obtained")

    seconds = json.loads((tmp_path / "seconds.json").read_text(encoding="utf-8"))

    made = [*(tmp_path / "cohort" / "scans").iterdir(), tmp_path / "few-shot" / "scores.jsonl"]
    before = {path: path.stat().st_mtime_ns for path in made}
    again = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert again.exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in made} == before
    assert json.loads((tmp_path / "comparisons.json").read_text(encoding="utf-8"))["comparisons"] == kept
    both = json.loads((tmp_path / "seconds.json").read_text(encoding="utf-8"))
    assert both.keys() == seconds.keys()
    assert all(both[part] > seconds[part] for part in both)
    total, last = sum(both.values()), sum(both.values()) - sum(seconds.values())
    for text in (again.output, (tmp_path / "report.html").read_text(encoding="utf-8")):
        assert f"{total / 60:.1f} minutes ({last / 60:.1f} of them in the last call)" in text
