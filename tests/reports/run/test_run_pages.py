"""Proves that the page of a run shows all there is, says what each curve means, and survives whatever is missing.

The runs are written through the same functions as real ones; their numbers are made up.
"""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dagman.cli.report import app
from dagman.errors import RunError
from dagman.records.journal import append_row
from dagman.records.provenance import write_command
from dagman.reports.run.curves import describe_losses
from dagman.reports.run.pictures import show_masks, show_reconstructions
from dagman.reports.run.run_page import exhibit_run, render_run, write_run_report
from dagman.reports.viewer.examples import exhibit_views
from dagman.settings import load_settings, resolve_settings
from dagman.training.monitoring.health import judge_run
from dagman.training.run import Run, write_gallery, write_note, write_settings

_UNITS, _HEADS = 8, 8


def _write_run(folder: Path, *, method: str = "dagman", steps: int = 45, views: int = 2) -> Run:
    settings = resolve_settings(
        load_settings("tiny", method, assignments=["train.steps=45", "view.side=32", "train.workers=3"])[0]
    )[0]
    folder.mkdir(parents=True)
    write_settings(folder, settings)
    write_command(folder, "pretrain", inputs={"store": {"scans": 24}})
    write_note(folder, 0, "choice", "optim.lr = 0.0003: recipe R <b>")
    write_note(folder, 10, "waiting", "30% of the time is spent waiting for data.")
    losses = [name for name in ("amip", "ampd", "aitd", "gitd") if getattr(settings.losses, name)]
    for step in range(1, steps + 1):
        row = {"step": step, "total": 2 / step, **dict.fromkeys(losses, 1 / step), "lr": 1e-4, "momentum": 0.99, "grad_norm": 1.0}
        append_row(folder / "metrics.jsonl", row | {f"tau_{name}": 0.05 for name in losses if name != "amip"})
        timing = {"step": step, "seconds": 1.5, "views_per_s": 2.0, "voxels_per_s": 1e6, "waiting_share": 0.05, "memory_gib": 2.5}
        append_row(folder / "timing.jsonl", timing)
    for step in sorted({0, steps}) if views else []:
        _write_look(folder, step, losses, views, semantic=settings.model.semantic_attention)
    return Run(folder)


def _write_look(folder: Path, step: int, losses: list[str], views: int, *, semantic: bool) -> None:
    draws = np.random.default_rng(step)
    heads = {"entropy": 3.0, "entropy_spread": 0.1, "distance_mm": 20.0, "distance_spread": 1.0, "js": 0.03}
    row = {
        "step": step,
        "features": {"std": 0.3 + step / 1000, "effective_rank": 20.0},
        "diversity": {f"stage{stage}": heads for stage in range(1, 5)},
    }
    gallery = {
        "view": draws.random((views, 1, 32, 32, 32), dtype=np.float32),
        "hidden": (np.arange(_UNITS) % 2 * np.ones((views, 1))).astype(np.uint8),
        "spacing": np.array([2.0], dtype=np.float32),
    }
    targets = {"H": 0.5, "Hx": 0.9, "MI": 0.4, "gain": 0.3, "ce": 5.0, "ln_k": 6.93}
    if losses != ["amip"]:
        row["projectors"] = {name: targets for name in losses if name != "amip"}
    if "amip" in losses:
        trivial = {"visible_mean": 0.28, "training_median": 0.24, "push_pull": 0.22, "best": 0.22}
        row["reconstruction"] = {"student": 0.15, **trivial, "ratio": 0.15 / 0.22}
        gallery["reconstruction"] = draws.random((views, 1, 32, 32, 32), dtype=np.float32)
    if semantic:
        row["attention"] = {"entropy": 0.999, "brightness": 0.2, "body_share": 0.8, "body_units": 0.7}
        row["diversity"]["sa"] = heads
        gallery["attention"] = np.full((views, _UNITS), 1 / _UNITS, dtype=np.float32)
        gallery["attention_heads"] = draws.dirichlet(np.ones(_UNITS), (views, _HEADS)).astype(np.float32)
    append_row(folder / "monitors.jsonl", row)
    write_gallery(folder, step, gallery, [{"scan": f"scan-{view}", "patient": "P-0123456789abcdef"} for view in range(views)])


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> tuple[Run, str]:
    run = _write_run(tmp_path_factory.mktemp("report") / "first")
    return run, write_run_report(run).read_text(encoding="utf-8")


def _titles(html: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", html)


def test_each_view_has_its_patient_and_scan_beside_it(full):
    # Its masks, its reconstruction, its attention.
    assert full[1].count('<span class="whole">P-0123456789abcdef</span></code>, scan <code>scan-0</code>.') == 3


def test_all_sections_are_there_with_the_verdict_first(full):
    assert _titles(full[1]) == [
        "Health of the run",
        "Size and settings of the run",
        "Views and masks",
        "Reconstructions",
        "Attention",
        "One view over the course of training",
        "Attention entropy and head diversity over time",
        "Losses",
        "Reconstruction against trivial baselines",
        "Targets and features",
        "Schedules and gradient",
        "Speed, memory and data loading",
        "Warnings during the run",
        "Methods text",
        "Settings",
        "Provenance",
    ]


def test_the_page_is_whole_in_itself_and_parses(full):
    html = full[1]
    assert set(re.findall(r'src="(.{5})', html)) == {"data:"}
    assert not re.search(r"https?://|url\((?!#)|@import|<link", html)
    parser = HTMLParser()
    parser.feed(html)
    parser.close()
    assert parser.rawdata == ""


def test_views_are_linked_to_the_viewer_beside_the_page_with_their_heads_and_hu(full):
    run, html = full
    assert re.findall(r'href="(report-viewer\.html#[^"]*)"', html) == ["report-viewer.html#view-1", "report-viewer.html#view-2"]
    assert (run.path / "report-viewer.html").stat().st_size < 4e6
    first, second = exhibit_run(run)
    low, high = run.settings.view.low, run.settings.view.high
    assert first.scan.voxels == pytest.approx(low + run.gallery(45)["view"][0, 0] * (high - low), abs=0.51)
    assert first.labels[0].labels.voxels.shape == (2, 2, 2)
    assert [one.attention.heads.shape for one in (first, second)] == [(_HEADS, 2, 2, 2)] * 2
    assert first.attention.heads.mean() == pytest.approx(1), "relative to uniform"


def test_views_of_mr_have_no_hounsfield_units(full):
    run = full[0]
    gallery, sources = run.gallery(45), [{"scan": "a", "patient": "p", "modality": "MR"}, {"modality": "CT"}]
    first, second = exhibit_views(gallery, run.settings, [*sources[:1], {"scan": "b", "patient": "p", "modality": "CT"}])
    assert (first.scan.modality, second.scan.modality) == ("MR", "CT")
    assert first.scan.voxels == pytest.approx(gallery["view"][0, 0] * 10_000, abs=0.51)
    assert (" HU" in first.words, " HU" in second.words) == (False, True)
    text = show_masks(gallery, run.settings, [dict.fromkeys(("scan", "patient"), "") | one for one in sources])[0].text
    assert "HU (white) in CT, and from the 0.5 (black) to the 99.5 percentile (white) of their scans in MR" in text
    of_mr = run.settings.model_copy(update={"view": run.settings.view.model_copy(update={"modality": "mr"})})
    pages = [*show_masks(gallery, of_mr), *show_reconstructions(gallery, of_mr)]
    assert not any("HU" in str(getattr(block, part, "")) for block in pages for part in ("text", "caption"))
    assert not any("HU" in curve.what for curve in describe_losses(of_mr))


def test_every_picture_has_words_for_those_who_cannot_see_it(full):
    words = re.findall(r'<img [^>]*alt="([^"]*)"', full[1])
    assert len(words) == full[1].count("<img ")
    assert min(map(len, words)) > 20


def test_every_curve_says_what_it_is_what_is_normal_and_what_is_not(full):
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", full[1], re.DOTALL)
    told = [caption for caption in captions if "Normal:" in caption]
    names = [re.match(r"<strong>(.*?)\.?</strong>", caption.strip())[1] for caption in told]
    assert all("Warning sign:" in caption for caption in told)
    assert set(names) >= {
        "Total loss",
        "AMIP loss",
        "AMPD loss",
        "AITD loss",
        "GITD loss",
        "Learning rate",
        "Teacher momentum",
        "Teacher temperatures",
        "Gradient norm",
        "Reconstruction against trivial baselines",
        "Entropy of the attention",
        "Divergence between heads",
        "Throughput",
        "Memory",
    }
    assert len(names) == len(set(names))


def test_uniform_attention_and_the_papers_claim_are_put_plainly(full):
    assert "it is almost uniform" in full[1]
    assert "<strong>seeds differ by as much</strong>" in full[1]
    assert "The actual range is 1.000 to 1.000 times uniform" in full[1]


def test_settings_that_differ_come_before_all_settings(full):
    html = full[1]
    differing, everything = html.index("Settings that differ"), html.index("All settings.")
    assert differing < html.index("train.workers", differing) < everything < html.rindex("train.workers")
    assert differing < html.index("view.side", differing) < everything
    assert "masking.kind" not in html[differing:everything]


def test_what_was_printed_and_warned_is_shown_and_never_markup(full):
    assert "recipe R &lt;b&gt;" in full[1]
    assert "30% of the time is spent waiting" in full[1]
    assert "inputs.store.scans" in full[1]


def test_a_good_run_is_green(full):
    assert [verdict.text for verdict in judge_run(full[0]) if verdict.light != "green"] == []
    assert "Green. <strong>This run is healthy</strong>" in full[1]


@pytest.mark.parametrize(
    ("method", "steps", "views"),
    [("dagman", 1, 1), ("simmim", 2, 1), ("attmask", 2, 1), ("smit", 0, 0)],
)
def test_whatever_is_missing_the_page_is_there(tmp_path, method, steps, views):
    run = _write_run(tmp_path / "run", method=method, steps=steps, views=views)
    html = render_run(run)
    titles = _titles(html)
    assert titles[0] == "Health of the run"
    assert titles[-1] == "Provenance"
    assert f"{steps} of 45 steps" in html
    assert ("Losses" in titles) == (steps > 0)
    assert ("Views and masks" in titles) == (views > 0)
    assert ("Reconstructions" in titles) == (views > 0 and method != "attmask")
    assert ("has no semantic attention" in html) == (method == "simmim")


def test_a_run_without_command_or_notes_says_so(tmp_path):
    run = _write_run(tmp_path / "run", steps=0, views=0)
    (run.path / "command.json").unlink()
    (run.path / "notes.jsonl").unlink()
    html = render_run(run)
    assert "There is no <code>command.json</code>" in html
    assert "None." in html


def test_the_command_prints_the_headline_and_the_path(tmp_path):
    run = _write_run(tmp_path / "run", steps=0, views=0)
    result = CliRunner().invoke(app, [str(run.path)])
    assert result.exit_code == 0
    assert "Amber. No fault was detected, but there is 1 warning" in result.output
    assert str(run.path / "report.html") in result.output
    assert (run.path / "report.html").is_file()


def test_a_folder_that_is_no_run_is_refused_in_one_line(tmp_path):
    result = CliRunner().invoke(app, [str(tmp_path)])
    assert isinstance(result.exception, RunError)
    assert "settings.toml is missing" in str(result.exception)


def test_writing_again_replaces_the_page_and_changes_nothing_else(tmp_path):
    run = _write_run(tmp_path / "run", steps=0, views=0)
    before = {path: path.read_bytes() for path in run.path.iterdir()}
    first = write_run_report(run).read_bytes()
    assert write_run_report(run).read_bytes() == first
    assert {path: path.read_bytes() for path in run.path.iterdir() if path.name != "report.html"} == before
    assert json.loads((run.path / "command.json").read_text())["command"] == "pretrain"
