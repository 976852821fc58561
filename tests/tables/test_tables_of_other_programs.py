"""Proves that tables are read as other programs write them, and that what would cost a result unseen is refused with its rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagman.errors import TableError
from dagman.notes import inform
from dagman.records.alike import find_alike
from dagman.tables.table import read_table

_COLUMNS = {"label": "grade", "clinical": ("age",)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four scans, one of them below another folder."""
    (tmp_path / "sub").mkdir()
    for name in ("a", "b", "c", "sub/d d"):
        (tmp_path / f"{name}.nii.gz").touch()
    return tmp_path


def _frame(**columns: list) -> pd.DataFrame:
    plain = {
        "scan": ["a.nii.gz", "b.nii.gz", "c.nii.gz", "sub/d d.nii.gz"],
        "patient": ["001", "002", "003", "004"],
        "grade": ["low", "high", "low", "high"],
        "age": [50.5, 61.25, 70.0, 44.0],
    }
    return pd.DataFrame(plain | columns)


def _read(folder: Path, frame: pd.DataFrame, **asked):
    frame.to_csv(folder / "t.csv", index=False)
    return read_table(folder / "t.csv", **{**_COLUMNS, **asked})


def _refusal(folder: Path, frame: pd.DataFrame, **asked) -> str:
    with pytest.raises(TableError) as caught:
        _read(folder, frame, **asked)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "kind", ["german", "sep", "sep with mark", "trailing commas", "trailing in rows", "quoted commas", "tab", "excel"]
)
def test_every_program_s_way_of_writing_gives_the_same_items(folder, kind):
    frame, path = _frame(), folder / "t.csv"
    plain = _read(folder, frame)
    text = frame.to_csv(index=False)
    if kind == "german":
        frame.to_csv(path, index=False, sep=";", decimal=",", encoding="utf-8-sig", lineterminator="\r\n")
    elif kind == "sep":
        path.write_text("sep=;\n" + frame.to_csv(index=False, sep=";"))
    elif kind == "sep with mark":
        path.write_text('"sep=,"\r\n' + text, encoding="utf-8-sig")
    elif kind == "trailing commas":
        path.write_text(text.replace("\n", ",,\n"))
    elif kind == "trailing in rows":
        header, _, rows = text.partition("\n")
        path.write_text(header + "\n" + rows.replace("\n", ",\n") + ",,,,\n")
    elif kind == "quoted commas":
        frame.to_csv(path, index=False, decimal=",")
    elif kind == "tab":
        frame.to_csv(path, index=False, sep="\t")
    else:
        pytest.importorskip("openpyxl")
        path = folder / "t.xlsx"
        frame.to_excel(path, index=False)
    assert read_table(path, **_COLUMNS).items == plain.items


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.replace("/", "\\"),
        lambda path: ".\\" + path.replace("/", "\\"),
        lambda path: f"'{path}'",
        lambda path: f'"{path}"',
    ],
)
def test_paths_are_read_with_backslashes_and_quotes(folder, write):
    plain = _read(folder, _frame())
    written = _read(folder, _frame(scan=[write(path) for path in _frame()["scan"]]))
    assert [item.scan.resolve() for item in written.items] == [item.scan.resolve() for item in plain.items]
    assert written.names == plain.names


def test_file_addresses_are_read(folder):
    address = (folder / "sub" / "d d.nii.gz").as_uri()
    table = _read(folder, _frame(scan=["a.nii.gz", "b.nii.gz", "c.nii.gz", address]))
    assert table.items[3].scan == folder / "sub" / "d d.nii.gz"


def test_a_windows_drive_is_named_as_the_reason(folder):
    said = _refusal(folder, _frame(scan=["C:\\data\\a.nii.gz", "b.nii.gz", "\\\\server\\c.nii.gz", "sub/d d.nii.gz"]))
    assert "holds paths on a Windows drive or share in rows 1, 3, such as C:\\data\\a.nii.gz. Write paths relative" in said


@pytest.mark.parametrize("word", ["unknown", "Unknown", "n.a.", "missing", "-", "None"])
def test_words_for_missing_are_missing_among_numbers_and_said(folder, word):
    table = _read(folder, _frame(age=[50.5, word, 70, 44]))
    assert [item.clinical["age"] for item in table.items] == [50.5, None, 70.0, 44.0]
    assert table.notes == (inform(f"column 'age' has '{word}' in 1 row: treated as missing (row 2)"),)


def test_a_label_that_is_unknown_leaves_its_row_out(folder):
    table = _read(folder, _frame(grade=["low", "high", "Unknown", "low"]))
    assert table.classes == ("high", "low")
    assert len(table) == 3
    assert any("skipped (row 3)" in note.text and note.kind == "warning" for note in table.notes)


def test_numbers_among_words_are_refused_with_their_rows(folder):
    said = _refusal(folder, _frame(age=["50", ">89", "70", "44"]))
    assert "clinical column 'age' mixes numbers and text: text in row 2 ('>89'). Write a plain number, or leave" in said
    assert "mixes numbers and text: numbers in row 3 ('4')" in _refusal(folder, _frame(age=["T1", "T2a", "4", "T3"]))


def test_commas_that_may_be_thousands_are_refused(folder):
    said = _refusal(folder, _frame(age=["1,234", "2,345", "800", "900"]))
    assert "column 'age' has commas that could separate thousands or decimals in rows 1 ('1,234'), 2 ('2,345')." in said
    assert "mixes numbers and text" in _refusal(folder, _frame(age=["50,5", "61.5", "70", "44"]))


@pytest.mark.parametrize(
    ("one", "other"), [("007", "7"), ("P1", "p1"), ("P-01", "p 1"), ("A_12", "a12"), ("12-34", "1234"), ("7.0", "7")]
)
def test_one_patient_written_in_two_ways_is_refused_until_told(folder, one, other):
    frame = _frame(patient=[one, other, "x", "y"])
    said = _refusal(folder, frame)
    assert "values of column 'patient' differ only in leading zeros, case, blanks or dashes: " in said
    assert f"'{one}'" in said
    assert f"'{other}'" in said
    assert "pass --ids exact" in said
    assert len(set(_read(folder, frame, ids="exact").patients)) == 4


def test_one_class_written_in_two_ways_is_refused_until_told(folder):
    frame = _frame(grade=["benign", "BENIGN", "Malignant", "benign"])
    assert "values of column 'grade' differ only in leading zeros, case" in _refusal(folder, frame)
    assert len(_read(folder, frame, ids="exact").classes) == 3


def test_names_that_differ_in_more_are_left_alone():
    assert find_alike(["-1", "1", "0"]) == []
    assert find_alike(["1-12", "11-2", "01-13"]) == []
    assert find_alike(["10", "1", "100", "P1", "P10", "1.5", "15"]) == []
    assert find_alike(["1-12", "01-12", "112"]) == [("01-12", "1-12", "112")]


@given(st.lists(st.integers(0, 10**6), unique=True, max_size=20), st.integers(0, 4))
def test_different_numbers_are_never_alike_however_they_are_padded(numbers, width):
    assert find_alike(f"P{number:0{width}d}" for number in numbers) == []


def test_files_of_other_programs_are_refused_by_name(folder):
    (folder / "t.xls").touch()
    (folder / "t.xlsx").write_bytes(b"PK no workbook")
    with pytest.raises(TableError, match=r"\.xls files are not supported\. Save it as \.xlsx, or as CSV"):
        read_table(folder / "t.xls")
    with pytest.raises(TableError, match="cannot be read as a table"):
        read_table(folder / "t.xlsx")


def test_a_quote_that_is_never_closed_is_refused(folder):
    (folder / "t.csv").write_text('scan,patient\n"a.nii.gz,1\nb.nii.gz,2\n')
    with pytest.raises(TableError, match="cannot be read as a table"):
        read_table(folder / "t.csv")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Path:
    """The tables that failed, made by the shared script."""
    script = shared_data.parent / "cases" / "tables.py"
    if not script.is_file():
        pytest.skip("the cases are not here")
    out = tmp_path_factory.mktemp("cases")
    subprocess.run([sys.executable, str(script), str(out)], check=True)
    return out


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("plain", None),
        ("german", None),
        ("german_int_days", None),
        ("excel_sep", None),
        ("relative_backslash", None),
        ("file_url", None),
        ("tilde_quotes", None),
        ("unknown_age", None),
        ("index_column", None),
        ("over89", "mixes numbers and text: text in rows 5 ('>89'), 6 ('>89')"),
        ("leading_zero", "differ only in"),
        ("patient_case", "differ only in"),
        ("mixed_case", "differ only in"),
        ("backslash", "Windows drive"),
        ("contradiction", "the same item has different labels"),
        ("utf16", "is not UTF-8"),
    ],
)
def test_the_tables_that_failed(cases, name, says):
    columns = {"label": "malignant", "clinical": ("age", "sex")}
    if says:
        with pytest.raises(TableError, match=says.replace("(", r"\(").replace(")", r"\)")):
            read_table(cases / f"{name}.csv", **columns)
        return
    table = read_table(cases / f"{name}.csv", **columns)
    ages = [item.clinical["age"] for item in table.items]
    expected = [50.5 + i // 2 for i in range(16)]
    if name == "unknown_age":
        expected[4:6] = [None, None]
    assert ages == expected
    assert len(set(table.patients)) == 8
