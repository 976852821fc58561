"""A path with square brackets, which rich would take for markup, is printed as it is by every command that names one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from dagman.cli import demo, report
from dagman.cli.scans import store
from dagman.cli.training import pretrain


@pytest.fixture
def place(tmp_path):
    """The folder "[" makes "[/x]" of the path, which rich takes for a closing tag without an opening one."""
    return tmp_path / "[bold]" / "[" / "x]"


def run_command(app, *arguments) -> str:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.output


def test_pretrain_says_where_the_encoder_lies(place, tmp_path, monkeypatch):
    run = SimpleNamespace(last_step=3, settings=SimpleNamespace(train=SimpleNamespace(steps=3)), warnings=[])
    monkeypatch.setattr("dagman.training.pretraining.pretrain", lambda *_, **__: run)
    monkeypatch.setattr("dagman.training.monitoring.health.judge_run", lambda run: ())
    told = run_command(pretrain.app, tmp_path, "--out", place)
    assert told.endswith(f"\n{place}/encoder holds the encoder after 3 steps. Next: dagman report {place}\n")


def test_the_demo_says_where_its_page_lies(place, monkeypatch):
    result = SimpleNamespace(report=place / "report.html", comparisons=(), seconds={"cohort": 30.0}, earlier=0.0)
    monkeypatch.setattr("dagman.demo.run_demo", lambda *_, **__: result)
    assert run_command(demo.app, "--out", place).splitlines()[-1] == f"Report: {place / 'report.html'}"


def test_report_says_where_its_page_lies(place, monkeypatch):
    monkeypatch.setattr("dagman.training.run.Run", lambda path: SimpleNamespace(path=path))
    monkeypatch.setattr("dagman.reports.run.run_page.write_run_report", lambda run, out: run.path / "report.html")
    monkeypatch.setattr("dagman.training.monitoring.health.judge_run", lambda run: ())
    monkeypatch.setattr("dagman.reports.run.verdicts.summarize_verdicts", lambda verdicts: SimpleNamespace(text="fine"))
    assert run_command(report.app, place) == f"fine\n{place / 'report.html'}\n"


def test_verify_names_a_file_that_does_not_belong(tmp_path, monkeypatch):
    finding = SimpleNamespace(file="scans/[/x].b2nd", problem="has no row in the manifest")
    monkeypatch.setattr("dagman.store.manifest.Store", lambda path: [path])
    monkeypatch.setattr("dagman.store.upkeep.verification.verify_store", lambda opened, notify: [finding])
    assert run_command(store.app, "verify", tmp_path).startswith("scans/[/x].b2nd: has no row in the manifest\n")
