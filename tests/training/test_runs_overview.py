"""`dagman runs` finds every run below a folder, with its state, last losses and light; one that is damaged hides no other."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import tomli_w
from typer.testing import CliRunner

from dagman.cli import report
from dagman.cli.training import runs
from dagman.errors import DagmanError
from dagman.records.lock import hold_lock, is_held
from dagman.reports.run.overlay import name_runs
from dagman.training.monitoring.health import judge_run
from dagman.training.monitoring.overview import list_runs
from dagman.training.run import Run

_MADE_BEFORE = Path(__file__).parents[1] / "made_before" / "run"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A finished run, one of seed 1 that was killed after its second of three steps, one not begun, and one that is damaged."""
    for name in ("done", "deep/killed", "new", "broken"):
        shutil.copytree(_MADE_BEFORE, tmp_path / name)
    settings = Run(_MADE_BEFORE).settings.model_dump(mode="json", exclude_none=True)
    settings["train"]["steps"], settings["seed"] = 3, 1
    for name in ("deep/killed", "new"):
        (tmp_path / name / "settings.toml").write_text(tomli_w.dumps(settings))
    for file in ("metrics.jsonl", "timing.jsonl", "monitors.jsonl"):
        (tmp_path / "new" / file).unlink()
    (tmp_path / "broken" / "settings.toml").write_text("[view\n")
    (tmp_path / "store" / "scans").mkdir(parents=True)
    (tmp_path / "store" / "store.json").write_text("{}")
    return tmp_path


def test_every_run_has_its_state_steps_losses_and_light(folder):
    states = {Path(one.path).name: one for one in list_runs(folder)}
    assert {name: one.state for name, one in states.items()} == {
        "done": "finished",
        "killed": "killed",
        "new": "waiting",
        "broken": "damaged",
    }
    done = states["done"]
    assert (done.step, done.steps, done.light, done.seconds_left) == (2, 2, "amber", 0)
    assert done.losses == {key: value for key, value in Run(folder / "done").steps[-1].items() if key in done.losses}
    assert "optim.lr" in done.remedy
    assert states["new"].light is None
    assert "is damaged" in states["broken"].problem


def test_a_run_is_waiting_where_its_last_step_is_in_a_checkpoint(folder):
    state = folder / "deep" / "killed" / "checkpoints" / "step-000002" / "state.json"
    state.parent.mkdir(parents=True)
    state.write_text("{}")
    assert [one.state for one in list_runs(folder / "deep")] == ["waiting"]


def test_a_run_is_running_while_a_process_holds_it_and_not_after_that_was_killed(folder):
    with hold_lock(folder / "new"):
        assert [one.state for one in list_runs(folder / "new")] == ["running"]
    assert not is_held(folder / "new")
    # What a killed process leaves: its name in the file, and the lock free.
    (folder / "new" / ".lock").write_text("process 4711")
    assert not is_held(folder / "new")


def test_a_run_that_was_killed_before_its_first_step_is_not_called_waiting(folder):
    (folder / "new" / ".lock").write_text("process 4711")
    assert [one.state for one in list_runs(folder / "new")] == ["killed"]


def test_settings_of_other_programs_and_closed_folders_are_passed_over(folder):
    (folder / "web").mkdir()
    (folder / "web" / "settings.toml").write_text("debug = true\n[server]\nport = 80\n")
    (folder / "closed").mkdir(mode=0)
    try:
        assert {Path(one.path).name for one in list_runs(folder)} == {"done", "killed", "new", "broken"}
    finally:
        (folder / "closed").chmod(0o700)


def test_the_verdict_shown_is_the_most_severe_one_and_the_others_are_counted(folder):
    (done,) = list_runs(folder / "done")
    noticed = [one for one in judge_run(Run(folder / "done")) if one.light != "green"]
    assert done.text in {one.to_json()["text"] for one in noticed}
    assert done.others == len(noticed) - 1
    assert "below" not in done.text


def test_the_command_prints_a_row_a_run_and_writes_one_page(folder):
    page = folder / "runs.html"
    result = CliRunner().invoke(runs.app, [str(folder), "--page", str(page)], env={"COLUMNS": "140"})
    assert result.exit_code == 0, result.output
    assert re.search(r"deep/killed\s+killed\s+2 of 3", result.output)
    assert "done: Gradient: clipped to 3 in 100% of the later steps" in result.output
    assert "broken: " in result.output
    html = page.read_text()
    assert "deep/killed" not in html  # names alone tell them apart
    assert "<code>broken</code>" in html  # a damaged run is listed with the reason
    assert "train.steps" in html
    assert html.count("<figcaption>") >= 8
    # Said once, above the figures; what each of them shows is its own sentence.
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", html, re.DOTALL)
    assert "each run has one colour" in html
    assert len(set(captions)) >= len(captions) - 1
    assert not any("colour" in caption for caption in captions)
    assert "https://" not in html


def test_json_holds_the_same(folder):
    result = CliRunner().invoke(runs.app, [str(folder), "--json"])
    assert [one["state"] for one in json.loads(result.output)] == ["damaged", "killed", "finished", "waiting"]


def test_report_of_several_runs_is_one_page_where_it_is_asked_for(folder, monkeypatch):
    both = [str(folder / "done"), str(folder / "deep" / "killed")]
    assert "Give --out" in str(CliRunner().invoke(report.app, both).exception)
    drawn = []
    monkeypatch.setattr("dagman.reports.run.overlay.render_runs", lambda runs: drawn.extend(runs) or "<html>")
    assert CliRunner().invoke(report.app, [*both, "--out", str(folder / "both.html")]).exit_code == 0
    assert [str(run.path) for run in drawn] == both
    assert (folder / "both.html").read_text() == "<html>"


def test_runs_of_one_name_are_told_apart_by_their_folders(folder):
    shutil.copytree(folder / "done", folder / "deep" / "done")
    runs = [Run(folder / "done"), Run(folder / "deep" / "done")]
    assert list(name_runs(runs)) == [f"{folder.name}/done", "deep/done"]
    assert list(name_runs(runs[:1])) == ["done"]


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(DagmanError, match="holds no runs"):
        list_runs(tmp_path)
    with pytest.raises(DagmanError, match="does not exist"):
        list_runs(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(DagmanError, match=r"is not a folder\. Give a folder"):
        list_runs(tmp_path / "file")
