"""Proves that pages call things by their names, quote their methods from what is on record, and keep an interval on one line."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from dagman.evaluation.results import Measurement, Results, Summary, write_summary
from dagman.evaluation.statistics import Interval, bootstrap_interval
from dagman.notes import inform, warn
from dagman.reports.figures.survival import draw_survival_calibration
from dagman.reports.methods import quote_results
from dagman.reports.names import explain_intervals, format_interval, format_p, name_measure, name_method
from dagman.reports.page import DataTable, Figure, FigureGrid, Listing, Section, Text, Verdict, mark_cell, render_page
from dagman.reports.provenance import tabulate_settings
from dagman.reports.tasks.classification import add_warnings, describe_design, list_notes, show_warnings
from dagman.reports.tasks.comparison import tabulate_models
from dagman.tasks.classify.classification import SMOOTHING
from dagman.tasks.finetuning import FinetuneSettings

_SETTINGS = {
    "folds": 5,
    "repeats": 2,
    "draws": 1,
    "seed": 3,
    "finetuning": {"epochs": 30},
    "crop_mm": None,
    "methods": ["linear", "knn"],
}


@pytest.fixture
def results(tmp_path: Path) -> Results:
    interval = Interval(value=0.7, low=0.6, high=0.8, level=0.95, items=6, patients=4, how="BCa bootstrap over patients")
    rows = [Measurement(name="auc", model="run", method="linear", subset=s, interval=interval) for s in ("25%", "100%")]
    extra = {"counts": {"0": 4, "1": 2}, "patients": 4, "spacing": 0.7}
    write_summary(tmp_path, Summary(task="classify", classes=("0", "1"), measurements=tuple(rows), extra=extra))
    command = {
        "dagman": "0.1.0",
        "arguments": ["classify", "run", "t.csv", "--label", "malignant", "--out=x"],
        "written": "2026-11-26",
        "settings": _SETTINGS,
        "inputs": {"items": 6},
        "environment": {"python": "3.11.7", "libraries": {"torch": "2.13.0"}},
    }
    (tmp_path / "command.json").write_text(json.dumps(command))
    lines = [f"{repeat},{fold},a,p,test" for repeat in range(2) for fold in range(5)]
    (tmp_path / "splits.csv").write_text("\n".join(["repeat,fold,item,patient,part", *lines]))
    return Results(tmp_path)


def test_methods_are_quoted_from_the_record(results):
    told = " ".join(block.text for block in quote_results(results) if isinstance(block, Text))
    for words in (
        "6 items (4 `0`, 2 `1`) of 4 patients",
        "voxel size of 0.7 mm",
        "5-fold",
        "repeated 2 times",
        "25% of the labels",
    ):
        assert words in told
    assert "logistic regression" in told
    assert "nearest training items" not in told, "k-NN has no measurement here"
    assert "Seed 3; dagman 0.1.0, Python 3.11.7, torch 2.13.0." in told


def test_settings_are_rows_of_plain_values(results):
    (table,) = tabulate_settings(results)
    assert isinstance(table, DataTable)
    held = {row[0]: row[1] for row in table.rows}
    assert held["finetuning.epochs"] == 30
    assert "['linear'" not in render_page("A", "b", [Section("c", [table])])


def test_a_note_leads_a_page_by_its_kind_and_not_by_its_words(results):
    notes = (inform("scans left out of pretraining do not matter here"), warn("believe nothing"))
    summary = replace(results.summary, notes=notes)
    assert [block.text for block in show_warnings(summary) if isinstance(block, Verdict)] == ["believe nothing"]
    (listed,) = list_notes(summary)
    assert isinstance(listed, Listing)
    assert listed.items == [note.text for note in notes]
    assert list_notes(replace(summary, notes=())) == []


def test_scans_seen_in_pretraining_stand_below_what_was_found_as_a_count_and_one_name(results):
    note = "run: 3 test scans were seen in pretraining (unlabelled), so results may be optimistic: a.nii, b.nii, c.nii"
    found = [Verdict("ok", "better than chance"), Text("of a network")]
    verdict, remark, text = add_warnings(found, replace(results.summary, notes=(warn(note),)))
    assert [verdict, text] == found
    assert isinstance(remark, Verdict)
    assert remark.text.endswith("may be optimistic: a.nii and 2 more (listed under Notes)")


def test_the_column_of_the_labels_is_the_one_on_record(results):
    assert "6 items (`malignant`: 4 `0`, 2 `1`)" in describe_design(results), "an old folder has it in its command line alone"
    path = results.path / "command.json"
    command = json.loads(path.read_text(encoding="utf-8"))
    for columns, shown in (({"label": "grade"}, "6 items (`grade`: 4 `0`, 2 `1`)"), ({}, "6 items (4 `0`, 2 `1`)")):
        path.write_text(json.dumps(command | {"inputs": {"items": 6, "columns": columns}}), encoding="utf-8")
        assert shown in describe_design(Results(results.path))


def test_an_interval_is_kept_on_one_line_and_other_text_is_left_alone():
    assert mark_cell("0.71 (0.60 to 0.80)") == '0.71 <span class="interval">(0.60 to 0.80)</span>'
    assert mark_cell("<b> (a to b)") == "&lt;b&gt; (a to b)"


def test_readers_words_stand_for_keys_and_p_is_never_a_bare_zero():
    assert (name_method("cox"), name_method("new")) == ("Cox, elastic net", "new")
    assert (name_measure("dice:liver"), name_measure("balanced_accuracy")) == ("Dice, liver", "balanced accuracy")
    assert (format_p(0.0), format_p(0.0312), format_p(float("nan"))) == ("< 0.001", "0.031", "–")


@pytest.mark.parametrize(
    ("ends", "sign", "shown"),
    [
        ((0.7, 0.6, 0.8), False, "0.700 (0.600 to 0.800)"),
        ((0.1, -0.2, 0.4), True, "+0.100 (-0.200 to +0.400)"),
        ((0.7, float("nan"), float("nan")), False, "0.700"),
        ((float("nan"), float("nan"), float("nan")), False, "n/a"),
    ],
)
def test_a_value_without_an_interval_stands_alone(ends, sign, shown):
    assert format_interval(*ends, sign=sign) == shown


def test_methods_say_that_too_few_patients_have_no_interval(results):
    interval = bootstrap_interval(np.mean, np.array([0.2, 0.4]), patients=["a", "b"], draws=10)
    row = Measurement(name="auc", model="run", method="linear", subset="100%", interval=interval)
    write_summary(results.path, replace(results.summary, measurements=(row,)))
    text = quote_results(Results(results.path))[1].text
    why = interval.how.partition("no interval: ")[2]
    assert why
    assert f"95 % intervals: none ({why})." in text


def test_fine_tuning_is_told_with_its_smoothing_and_when_it_may_stop(results):
    row = replace(results.summary.measurements[-1], method="finetune")
    write_summary(results.path, replace(results.summary, measurements=(row,)))
    path = results.path / "command.json"
    command = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(command | {"settings": _SETTINGS | {"finetuning": asdict(FinetuneSettings())}}), encoding="utf-8")
    text = quote_results(Results(results.path))[1].text
    assert f"label smoothing of {SMOOTHING:g}" in text
    assert "after 6 epochs without improvement training stopped, but not in the first half" in text


def test_many_models_are_rows_and_few_are_columns(results):
    row = results.summary.measurements[-1]
    for count, headings in ((2, ["m0", "m1"]), (6, ["AUC"])):
        measurements = tuple(replace(row, model=f"m{n}") for n in range(count))
        (table,) = tabulate_models(replace(results.summary, measurements=measurements))
        assert list(table.columns[3:]) == headings
        assert sum("0.700 (0.600 to 0.800)" in map(str, line) for line in table.rows) == (1 if count == 2 else 6)


def test_small_pictures_can_be_enlarged_and_stand_closer():
    png = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + (120).to_bytes(4) + (90).to_bytes(4)
    page = render_page("A", "b", [Section("c", [FigureGrid([Figure(png, "d", "e", scale=2.0)], narrow=True)])])
    assert 'class="grid narrow"' in page
    assert 'width="192"' in page


def test_a_horizon_is_said_with_the_digits_it_deserves():
    calibration = {"horizon": 1325.444, "predicted": [0.5], "observed": [0.4], "low": [0.3], "high": [0.5], "counts": [9]}
    (axes,) = draw_survival_calibration(calibration, x="days").axes
    assert axes.get_xlabel() == "predicted event-free fraction at 1325 (days)"


def test_what_is_special_of_an_interval_is_stated_once_a_kind():
    def measure(name: str, how: str) -> Measurement:
        interval = Interval(value=1.0, low=0.7, high=1.0, level=0.95, items=12, patients=12, how=how)
        return Measurement(name=name, model="run", method="linear", interval=interval)

    plain, exact = "BCa bootstrap over patients, 2000 resamples", "exact (Clopper-Pearson) over 12 patients"
    few = f"{plain}; only 36 pairs of items compared in each repeat"
    rows = [measure("auc", few), measure("accuracy", exact), measure("sensitivity", exact), measure("brier", plain)]
    assert explain_intervals(rows) == [
        f"AUC of run (linear probe, 100%): {few}.",
        f"accuracy of run (linear probe, 100%), sensitivity of run (linear probe, 100%): {exact}.",
    ]
    shown = tabulate_models(Summary(task="classify", classes=("a", "b"), measurements=tuple(rows)))
    assert exact in str(shown[-1])
