"""Proves that a column of contoured structures says what is unknown in a scan: by value or name, an empty cell is refused."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dagman.errors import TableError
from dagman.tables.labelled_scans import read_labelled_scans
from dagman.tables.structures import Structure, list_contoured

_STRUCTURES = (Structure(name="cord", values=(1,)), Structure(name="parotids", values=(2, 3)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contoured")
    for name in ("a", "b", "a_mask", "b_mask"):
        nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)), folder / f"{name}.nii.gz")
    return folder


def _write(folder: Path, a: str, b: str, column: str = "contoured") -> Path:
    path = folder / "table.csv"
    path.write_text(f"scan,mask,patient,{column}\na.nii.gz,a_mask.nii.gz,p,{a}\nb.nii.gz,b_mask.nii.gz,q,{b}\n")
    return path


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("1 2 3", (True, True)),
        ("1;2;3", (True, True)),
        ('"1, 3"', (True, False)),
        ("cord", (True, False)),
        ("2;3", (False, True)),
        ("cord;left parotid", (True, False)),
        ("parotids;cord", (True, True)),
        ("All", (True, True)),
    ],
)
def test_a_cell_lists_structures_by_value_or_name(folder, cell, expected):
    data = read_labelled_scans(_write(folder, cell, "all"), labels="cord=1,parotids=2+3")
    assert list_contoured(data.items[0].contoured, data.structures) == expected
    assert list_contoured(data.items[1].contoured, data.structures) == (True, True)
    assert any("unknown there" in note.text for note in data.notes)


def test_without_the_column_all_are_known(folder):
    data = read_labelled_scans(_write(folder, "1", "1", column="remark"), labels="cord=1")
    assert [item.contoured for item in data.items] == [None, None]
    assert not any("unknown" in note.text for note in data.notes)


def test_another_column_can_be_named(folder):
    data = read_labelled_scans(_write(folder, "1", "2", column="drawn"), labels="cord=1,parotid=2", contoured="drawn")
    assert [list_contoured(item.contoured, data.structures) for item in data.items] == [(True, False), (False, True)]


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ("1", "", r"column 'contoured' is empty in row 2. List the structures"),
        ("1", "1;pharynx", r"no scan lists structure 'parotids' \(value 2\+3\) as contoured \(listed: 1, pharynx\)"),
    ],
)
def test_what_may_mean_two_things_is_refused(folder, a, b, message):
    with pytest.raises(TableError, match=message) as caught:
        read_labelled_scans(_write(folder, a, b), labels="cord=1,parotids=2+3")
    assert "\n" not in str(caught.value)


def test_rows_of_one_scan_are_joined(folder):
    path = folder / "rows.csv"
    path.write_text("scan,mask,patient,label_value,contoured\n" + "".join(f"a.nii.gz,a_mask.nii.gz,p,{v},{v}\n" for v in (1, 2)))
    assert read_labelled_scans(path).items[0].contoured == {"1", "2"}
