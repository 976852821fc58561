"""Proves that a kept model records what it was trained on, and that predicting holds it to that."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dagman.errors import TaskError
from dagman.tables.items import Item
from dagman.tasks.contract import Contract, make_contract, read_contract

_SCAN = Item(index=0, name="s", scan=Path("s.nii"), patient="p")
_STRUCTURE = replace(_SCAN, name="m", mask=Path("m.nii"))
_POINT = replace(_SCAN, name="c", center_mm=(1.0, 2.0, 3.0))


@pytest.mark.parametrize(
    ("trained", "given", "says"),
    [
        (
            _STRUCTURE,
            _SCAN,
            r"on structures \(masks\), but 1 item was given as whole scans \(s\)\. Give a table",
        ),
        (_SCAN, _STRUCTURE, r"on whole scans, but 1 item was given as structures \(masks\) \(m\)\. Give the scans themselves"),
        (_POINT, _SCAN, r"on points \(centers\), but 1 item was given as whole scans \(s\)\. Give a table with .* center_x_mm"),
    ],
)
def test_items_of_another_kind_are_refused_with_what_to_give(trained, given, says):
    contract = make_contract([trained], ["hash"])
    contract.refuse_other_units([trained])
    with pytest.raises(TaskError, match=says):
        contract.refuse_other_units([trained, given])


def test_a_missing_clinical_column_is_named():
    contract = make_contract([_SCAN], ["hash"], clinical=["age", "grade"])
    contract.refuse_missing_columns([replace(_SCAN, clinical={"age": 50.0, "grade": None})])
    with pytest.raises(TaskError, match=r"needs the clinical column 'grade'\. Give a table .* or the scans and --clinical TABLE"):
        contract.refuse_missing_columns([replace(_SCAN, clinical={"age": 50.0})])


def test_items_that_were_trained_on_are_counted():
    contract = make_contract([_SCAN, _STRUCTURE], ["one", "two"])
    assert contract.note_training_items(["three"]) == []
    (said,) = contract.note_training_items(["one", "three", "two"])
    assert said.startswith("2 of 3 items are of scans the model was trained on")


def test_a_contract_is_written_and_read_and_names_nobody():
    more = {"labels": ("0", "1"), "spacing": 2.0, "modalities": ("CT",)}
    contract = make_contract([_SCAN, _POINT, replace(_SCAN, patient="MILLER")], ["b", "a", "a"], ["age"], **more)
    text = json.dumps(contract.to_values())
    assert "MILLER" not in text
    assert read_contract(json.loads(text)) == contract
    assert contract == Contract(units=("point", "scan"), clinical=("age",), items=3, patients=2, scans=("a", "b"), **more)
    assert read_contract(None) is None
    older = {name: value for name, value in contract.to_values().items() if name not in more}
    assert read_contract(older) == replace(contract, labels=(), spacing=None, modalities=())
