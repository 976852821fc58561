"""Proves that the marks of a scan are read from tables as they come, and that what cannot be meant is one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dagman.errors import TableError
from dagman.scans.affine import Affine
from dagman.scans.scan import Scan
from dagman.tables.marks import read_marks

_AFFINE = Affine(np.array([[-2.0, 0, 0, 150], [0, 2, 0, 20], [0, 0, 3, -400], [0, 0, 0, 1]]))


@pytest.fixture
def scan() -> Scan:
    return Scan(voxels=np.zeros((30, 40, 20), np.int16), affine=_AFFINE, modality="CT", patient="p7", source="a/ct.nii.gz")


def _read(tmp_path: Path, scan: Scan, text: str, **given: str):
    (tmp_path / "marks.csv").write_text(text)
    marks, notes = read_marks(tmp_path / "marks.csv", scan, place=tmp_path / "a" / "ct.nii.gz", **given)
    return [(mark.name, *mark.center_mm, mark.diameter_mm) for mark in marks], [note.text for note in notes]


_ONE = [("mark 1", 110.0, 50.0, -370.0, 7.5)]


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("center_x_mm,center_y_mm,center_z_mm,diameter_mm\n110,50,-370,7.5\n", {}),
        ("x;y;z;diameter\n110,0;50;-370;7,5\n", {}),
        ("x_mm,y_mm,z_mm,size_mm\n-110,-50,-370,7.5\n", {"coordinates": "lps"}),
        ("x,y,z,diameter_mm\n20,15,10,7.5\n", {"coordinates": "voxels"}),
    ],
)
def test_points_are_read_in_millimetres_of_either_system_and_in_voxels(tmp_path, scan, text, given):
    marks, notes = _read(tmp_path, scan, text, **given)
    assert marks == _ONE
    assert notes[0] == "marks.csv names no scans: all its rows are treated as marks of this one"


def test_luna16s_annotations_are_in_the_millimetres_of_dicom(tmp_path, scan):
    rows = "seriesuid,coordX,coordY,coordZ,diameter_mm\n1.2.3,-110,-50,-370,7.5\n1.2.4,0,0,0,5\nct,-110,-50,-370,7.5\n"
    assert _read(tmp_path, scan, rows) == ([("mark 3", *_ONE[0][1:])], [])


def test_rows_are_chosen_by_scan_and_named_as_the_table_names_them(tmp_path, scan):
    text = "scan,patient,nodule,label,x_mm,y_mm,z_mm\na/ct.nii.gz,x,1,0,110,50,-370\nb/other.nii.gz,x,2,0,0,0,0\n"
    text += "ct,x,left,,110,52,-370\n"
    marks, notes = _read(tmp_path, scan, text)
    assert marks == [("nodule 1 (label 0)", 110.0, 50.0, -370.0, None), ("left", 110.0, 52.0, -370.0, None)]
    assert notes == []
    marks, (note,) = _read(tmp_path, scan, "patient,x,y,z\nsomeone,1,2,3\n")
    assert (marks, note) == ([], "marks.csv has no row for this scan in 1 row: 'patient' is someone")
    marks, _ = _read(tmp_path, scan, "patient,x,y,z\nsomeone,1,2,3\np7,110,50,-370\n")
    assert [mark[0] for mark in marks] == ["mark 2"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", "has no columns with points. Name them center_x_mm, center_y_mm, center_z_mm"),
        ("x,y,z\n110,,-370\n", "a coordinate is missing in row 1. Fill x, y, z, or remove these rows"),
        ("x,y,z,diameter_mm\n110,50,-370,0\n", "a diameter is not above 0 in row 1"),
        ("x,y,z\n-110,-50,-370\n", "they appear to be LPS. Pass --coordinates lps"),
    ],
)
def test_what_cannot_be_meant_is_one_line(tmp_path, scan, text, said):
    with pytest.raises(TableError) as raised:
        _read(tmp_path, scan, text)
    assert said in str(raised.value)
    with pytest.raises(TableError, match="Use --coordinates ras, lps or voxels"):
        _read(tmp_path, scan, text, coordinates="xyz")
