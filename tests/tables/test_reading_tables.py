"""Proves what a table says: items by named columns, what is left out and said, and what is refused, each in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dagman.errors import TableError
from dagman.notes import inform, warn
from dagman.tables.table import Table, read_table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with scans a to d, and a mask of each."""
    for name in "abcd":
        (tmp_path / f"{name}.nii.gz").touch()
        (tmp_path / f"{name}_mask.nii.gz").touch()
    return tmp_path


def _write(folder: Path, rows: str) -> Path:
    path = folder / "table.csv"
    path.write_text("\n".join(line.strip() for line in rows.strip().splitlines()) + "\n")
    return path


_PLAIN = """
scan,patient,label
a.nii.gz,007,benign
b.nii.gz,008,malignant
c.nii.gz,008,malignant
"""


def _refusal(path: Path, **columns) -> str:
    with pytest.raises(TableError) as caught:
        read_table(path, **columns)
    text = str(caught.value)
    assert "\n" not in text
    return text.replace(f"{path}: ", "")


def test_items_hold_what_their_row_says(folder):
    rows = """
    scan,patient,mask,label_value,center_x_mm,center_y_mm,center_z_mm,grade,split,age,side
    a.nii.gz,007,a_mask.nii.gz,3,1.5,-2,3,high,train,61,left
    b.nii.gz,008,,,,,,low,Test,,right
    """
    table = read_table(_write(folder, rows), label="grade", clinical=("age", "side"))
    first, second = table.items
    assert (first.scan, first.mask) == (folder / "a.nii.gz", folder / "a_mask.nii.gz")
    assert (first.name, first.patient, first.index, first.label_value) == ("a", "007", 0, 3)
    assert (first.center_mm, first.label, first.split) == ((1.5, -2.0, 3.0), "high", "train")
    assert first.clinical == {"age": 61.0, "side": "left"}
    assert (second.mask, second.label_value, second.center_mm, second.split) == (None, None, None, "test")
    assert second.clinical == {"age": None, "side": "right"}
    assert table.classes == ("high", "low")
    assert table.codes.tolist() == [0, 1]
    assert table.splits.tolist() == ["train", "test"]
    assert table.notes == ()
    assert len(table) == 2


def test_csv_and_parquet_say_the_same(folder):
    frame = pd.DataFrame({"scan": ["a.nii.gz", "b.nii.gz", "c.nii.gz"], "patient": [1, 2, 3], "label": [0.0, 1.0, np.nan]})
    frame.to_parquet(folder / "t.parquet")
    frame.to_csv(folder / "t.csv", index=False)
    frame.to_csv(folder / "semicolons.csv", index=False, sep=";", encoding="utf-8-sig")
    tables = [read_table(folder / name, label="label") for name in ("t.parquet", "t.csv", "semicolons.csv")]
    assert tables[0].items == tables[1].items == tables[2].items
    assert tables[0].classes == ("0", "1")
    assert tables[0].patients.tolist() == ["1", "2"]


def test_numbers_as_labels_are_ordered_as_numbers(folder):
    table = read_table(_write(folder, "scan,patient,stage\na.nii.gz,1,10\nb.nii.gz,2,9\nc.nii.gz,3,2"), label="stage")
    assert table.classes == ("2", "9", "10")
    assert table.codes.tolist() == [2, 1, 0]


def test_time_and_event_are_read(folder):
    rows = "scan,patient,days,dead\na.nii.gz,1,30.5,1\nb.nii.gz,2,0,0\nc.nii.gz,3,12,True"
    table = read_table(_write(folder, rows), time="days", event="dead")
    assert table.times.tolist() == [30.5, 0, 12]
    assert table.events.tolist() == [True, False, True]


def test_lps_points_become_ras(folder):
    rows = "scan,patient,center_x_mm,center_y_mm,center_z_mm\na.nii.gz,1,1,2,3"
    assert read_table(_write(folder, rows), coordinates="lps").items[0].center_mm == (-1, -2, 3)


def test_a_mask_label_picks_one_structure_in_every_row(folder):
    table = read_table(_write(folder, "scan,patient,mask,label_value\na.nii.gz,1,a_mask.nii.gz,3"), mask_label=5)
    assert table.items[0].label_value == 5


def test_a_stored_scan_is_known_by_its_id(folder):
    table = read_table(_write(folder, "scan,patient\n0f3a,1\na.nii.gz,2"), known_ids={"0f3a"})
    assert [item.scan for item in table.items] == ["0f3a", folder / "a.nii.gz"]


def test_rows_without_a_needed_value_are_skipped_and_noted(folder):
    rows = "scan,patient,label,split\na.nii.gz,1,0,train\nb.nii.gz,2,NA,test\n,3,1,test\nc.nii.gz,,1,test\nd.nii.gz,5,1,test"
    table = read_table(_write(folder, rows), label="label")
    assert table.names == ["a", "d"]
    assert table.notes == (
        warn("column 'scan' is empty in 1 row: skipped (row 3)"),
        warn("column 'label' is empty in 1 row: skipped (row 2)"),
        warn("column 'patient' is empty in 1 row: skipped (row 4)"),
    )


def test_a_class_may_be_called_none(folder):
    table = read_table(_write(folder, "scan,patient,spread\na.nii.gz,1,None\nb.nii.gz,2,nodal"), label="spread")
    assert table.classes == ("None", "nodal")


def test_repeated_rows_are_skipped_and_noted(folder):
    table = read_table(_write(folder, _PLAIN + "a.nii.gz,007,benign"), label="label")
    assert len(table) == 3
    assert table.notes == (warn("1 row identical to an earlier one: skipped (row 4)"),)


def test_without_a_patient_column_every_scan_is_its_own_patient(folder):
    table = read_table(_write(folder, "scan,label\na.nii.gz,0\nb.nii.gz,1"), label="label")
    assert table.patients.tolist() == ["a", "b"]
    assert table.notes == (inform("no column 'patient': each of 2 scans is treated as a separate patient"),)


def test_a_column_that_looks_like_the_patient_is_not_passed_over(folder):
    said = _refusal(_write(folder, "scan,PatientID\na.nii.gz,1"))
    assert said == "has no column 'patient'. Pass --patient PatientID, or --patient scan if every scan is of a different patient."
    assert read_table(folder / "table.csv", patient="PatientID").patients.tolist() == ["1"]
    assert read_table(folder / "table.csv", patient="scan").patients.tolist() == ["a.nii.gz"]


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ("scan,patient\nx/a.nii.gz,1\ny/a.nii.gz,2", ["x/a", "y/a"]),
        ("scan,patient,label_value,mask\na.nii.gz,1,2,a_mask.nii.gz\na.nii.gz,1,3,a_mask.nii.gz", ["a:2", "a:3"]),
        ("scan,patient,mask\na.nii.gz,1,a_mask.nii.gz\na.nii.gz,1,b_mask.nii.gz", ["a:a_mask", "a:b_mask"]),
        (
            "scan,patient,center_x_mm,center_y_mm,center_z_mm\na.nii.gz,1,1,2,3\na.nii.gz,1,1,2,3.5",
            ["a@1,2,3", "a@1,2,3.5"],
        ),
    ],
)
def test_names_are_unique_and_do_not_depend_on_the_order_of_rows(folder, rows, names):
    for place in ("x", "y"):
        (folder / place).mkdir()
        (folder / place / "a.nii.gz").touch()
    header, *body = rows.splitlines()
    assert read_table(_write(folder, rows)).names == names
    assert read_table(_write(folder, "\n".join([header, *body[::-1]]))).names == names[::-1]


def _label(rows: str) -> dict:
    return {"rows": rows, "label": "label"}


_SURVIVAL = {"time": "days", "event": "dead"}


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"rows": _PLAIN, "label": "lable"}, "has no column 'lable'. Nearest: label."),
        ({"rows": _PLAIN, "clinical": ["zzz"]}, "has no column 'zzz'. Available: scan, patient, label."),
        ({"rows": _PLAIN, "patient": "patients"}, "has no column 'patients'. Nearest: patient."),
        ({"rows": "path,label\na.nii.gz,1"}, "has no column 'scan'. "),
        (
            _label("scan,patient,label,label\na.nii.gz,1,0,1\nb.nii.gz,2,1,0"),
            "has 2 columns 'label'. Rename or remove all but one of them.",
        ),
        ({"rows": "scan,patient"}, "has no rows. Write one item per row, below a header."),
        ({"rows": ""}, "is empty. Write a header with a column 'scan', then one item per row."),
        (
            _label("scan,patient,label\na.nii.gz,1,0\nb.nii.gz,2,0"),
            "column 'label' has only one class ('0'). Give items of at least two classes, or another --label.",
        ),
        (
            _label("scan,patient,label\na.nii.gz,1,\nb.nii.gz,2,"),
            "no row can be used: column 'label' is empty in 2 rows: skipped (rows 1, 2). Fill these columns.",
        ),
        (
            {"rows": _PLAIN.replace("b.nii", "x.nii").replace("c.nii", "y.nii")},
            "2 scans do not exist: x.nii.gz, y.nii.gz. Paths are relative to the table's folder; correct them, or remove these "
            "rows.",
        ),
        ({"rows": "scan,patient,mask\na.nii.gz,1,m.nii"}, "1 mask does not exist: m.nii. "),
        (
            {"rows": "scan,patient,mask\nx.nii,1,m.nii\ny.nii,2,a_mask.nii.gz\na.nii.gz,3,n.nii\nb.nii.gz,4,m.nii"},
            "2 scans and 2 masks do not exist: x.nii, y.nii; m.nii, n.nii. Paths are relative to the table's folder; ",
        ),
        ({"rows": "scan,patient,mask\nx.nii,1,m.nii"}, "1 scan and 1 mask do not exist: x.nii; m.nii. "),
        (
            _label("scan,patient,label\na.nii.gz,1,0\na.nii.gz,1,1"),
            "the same item has different labels in rows 1, 2. Keep one of them, or distinguish them by mask, label_value or "
            "center.",
        ),
        (
            {"rows": "scan,patient,days,dead\na.nii.gz,1,-3,1\nb.nii.gz,2,4,1", **_SURVIVAL},
            "time 'days' is negative in row 1 ('-3'). Measure the time from the date of the scan.",
        ),
        (
            {"rows": "scan,patient,days,dead\na.nii.gz,1,3,0\nb.nii.gz,2,4,0", **_SURVIVAL},
            "all items are censored: column 'dead' is 0 in every row. Nothing can be learned without events; "
            "check the column, or wait for follow-up.",
        ),
        (
            {"rows": "scan,patient,days,dead\na.nii.gz,1,3,2\nb.nii.gz,2,4,yes", **_SURVIVAL},
            "event 'dead' is not 0 or 1 in rows 1 ('2'), 2 ('yes'). Write 1 if the event was observed, 0 if censored.",
        ),
        (
            {"rows": "scan,patient,days,dead\na.nii.gz,1,long,1", **_SURVIVAL},
            "column 'days' is not a number in row 1 ('long'). Write a plain number, or leave the cell empty.",
        ),
        ({"rows": _PLAIN, "time": "days"}, "time and event must be given together. Name both: --time COL --event COL."),
        (
            {"rows": "scan,patient,center_x_mm,center_y_mm,center_z_mm\na.nii.gz,1,1,2,3\nb.nii.gz,2,1,2 mm,3"},
            "column 'center_y_mm' is not a number in row 2 ('2 mm'). Write a plain number, or leave the cell empty.",
        ),
        (
            {"rows": "scan,patient,center_x_mm,center_y_mm,center_z_mm\na.nii.gz,1,1,,3"},
            "a coordinate is missing in row 1. Fill center_x_mm, center_y_mm, center_z_mm, or none of them.",
        ),
        ({"rows": "scan,patient,center_x_mm,center_y_mm\na.nii.gz,1,1,2"}, "has no column 'center_z_mm'. "),
        ({"rows": _PLAIN, "coordinates": "lpi"}, "coordinates 'lpi' are unknown. Use --coordinates ras or lps."),
        ({"rows": _PLAIN, "mask_label": 3}, "--mask-label needs a column 'mask'. Add the column, or omit --mask-label."),
        (
            {"rows": "scan,patient,label_value\na.nii.gz,1,2.5"},
            "label_value is not a whole number in row 1 ('2.5'). Write the structure's value in the mask.",
        ),
        (
            {"rows": "scan,patient,split\na.nii.gz,1,train\nb.nii.gz,2,holdout"},
            "split 'split' is unknown in row 2 ('holdout'). Write train, val or test.",
        ),
        ({"rows": _PLAIN, "split": "fold"}, "has no column 'fold'. "),
        (
            {"rows": "scan,patient,split\na.nii.gz,1,train\nb.nii.gz,1,test\nc.nii.gz,2,test"},
            "patients are in more than one split: 1 (test and train). Put all items of a patient into one split.",
        ),
        (
            {"rows": "scan,patient,age\na.nii.gz,1,60\nb.nii.gz,2,inf", "clinical": ["age"]},
            "clinical column 'age' is not finite in row 2 ('inf'). Write a plain number, or leave the cell empty.",
        ),
        (
            {"rows": _PLAIN, "label": "label", "clinical": ["label"]},
            "column 'label' is both the label and clinical. Remove it from --clinical: it would leak the label",
        ),
        ({"rows": "scan,patient\na.nii.gz,1,2\nb.nii.gz,2,3"}, "has more fields than the header in rows 1, 2. "),
        ({"rows": "scan,patient\na.nii.gz,1\nb.nii.gz,2,3"}, "has more fields than the header in row 2. Quote values that"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused_in_one_line(folder, asked, says):
    path = _write(folder, asked["rows"]) if asked["rows"] else folder / "table.csv"
    path.touch()
    assert _refusal(path, **{key: value for key, value in asked.items() if key != "rows"}).startswith(says)


def test_a_long_list_of_absent_scans_is_cut_and_counted(folder):
    rows = "\n".join(["scan,patient", *(f"gone{i}.nii.gz,{i}" for i in range(50))])
    said = _refusal(_write(folder, rows))
    assert said.startswith("50 scans do not exist: gone0.nii.gz, gone1.nii.gz, ")
    assert "gone19.nii.gz and 30 more. " in said


def test_a_split_column_can_be_ignored(folder):
    path = _write(folder, "scan,patient,split\na.nii.gz,1,train\nb.nii.gz,1,test")
    assert read_table(path, split=None).splits is None


def test_files_that_are_no_tables_are_refused(folder):
    assert _refusal(folder / "none.csv").startswith("does not exist. Give a table (.csv, ")
    assert _refusal(folder).startswith("is not a file. Give a table")
    (folder / "broken.parquet").write_bytes(b"PAR1 is not all of it")
    assert "cannot be read as a table (" in _refusal(folder / "broken.parquet")
    (folder / "latin.csv").write_bytes("scan,patient\na.nii.gz,Müller\n".encode("latin-1"))
    assert "is not UTF-8 text. Save it as CSV in UTF-8" in _refusal(folder / "latin.csv")


@pytest.mark.parametrize(
    ("place", "columns", "items"),
    [
        ("lidc-nodules", {"label": "label"}, 227),
        ("sarcoma-ct", {"time": "survival_days", "event": "death_event", "clinical": ("age", "grade", "tumour_ml")}, 43),
        ("sarcoma-ct", {"label": "lung_metastasis"}, 43),
    ],
)
def test_the_shared_tables_are_read(shared_data, place, columns, items):
    table: Table = read_table(shared_data / place / "table.csv", **columns)
    assert len(table) == items
    assert len(set(table.names)) == items
    assert all(item.mask is not None and item.center_mm is not None for item in table.items)
    if "label" in columns:
        assert table.classes == ("0", "1")
