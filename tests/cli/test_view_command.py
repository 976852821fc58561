"""Proves what `dagman view` prints and refuses, and that labels, their names and marks reach its file."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest


class _Data(HTMLParser):
    """The JSON that a viewer's file holds."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self._within, self.text = False, ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._within = dict(attrs).get("id") == "data"

    def handle_data(self, data: str) -> None:
        self.text += data if self._within else ""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    voxels = np.random.default_rng(0).integers(-900, 300, (20, 18, 16)).astype(np.int16)
    labels = np.zeros(voxels.shape, np.uint8)
    labels[4:8, 4:8, 4:8], labels[10:12, 4:8, 4:8] = 1, 2
    for name, values in (("ct", voxels), ("labels", labels)):
        nib.save(nib.Nifti1Image(values, affine), tmp_path / f"{name}.nii.gz")
    (tmp_path / "marks.csv").write_text("scan,x,y,z,diameter_mm\nct.nii.gz,5,5,5,6\nct.nii.gz,500,0,0,6\nct.nii.gz,6,5,5,6\n")
    return tmp_path


def test_labels_with_their_names_and_marks_are_written_together(folder, call_dagman):
    given = ["--labels", folder / "labels.nii.gz", "--names", "liver=1,spleen=2", "--marks", folder / "marks.csv"]
    code, printed, said = call_dagman(
        "view", folder / "ct.nii.gz", *given, "--coordinates", "voxels", "--out", folder / "view.html"
    )
    assert code == 0
    assert printed.startswith(f"written: {folder / 'view.html'}, 2.")
    assert printed.endswith(" MB, 2 marks\n")
    assert said == "1 of 3 points falls outside its scan: excluded (item mark 2)\n"
    (data,) = json.loads(_Data((folder / "view.html").read_text(encoding="utf-8")).text)
    (layer,) = data["labels"]
    assert [(one["name"], one["ml"]) for one in layer["structures"]] == [("liver", 0.768), ("spleen", 0.384)]
    assert [mark["mm"] for mark in data["marks"]] == [[10.0, 10.0, 15.0], [12.0, 10.0, 15.0]]
    assert data["point"] == [10.0, 10.0, 15.0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--names", "liver=1"], "--names was given without --labels. Give --labels, or leave --names out."),
        (["--coordinates", "lps"], "--coordinates was given without --marks. Give --marks, or leave --coordinates out."),
        (["--labels", "ct.nii.gz"], "holds 1200 values; 255 can be shown. Give a label map of fewer structures."),
        (["--labels", "labels.nii.gz", "--names", "none.csv"], "does not exist"),
    ],
)
def test_what_cannot_be_meant_is_one_line_and_no_file(folder, call_dagman, monkeypatch, given, said):
    monkeypatch.chdir(folder)
    code, _, errors = call_dagman("view", "ct.nii.gz", *given)
    assert (code, errors.count("\n")) == (2, 1)
    assert said in errors or "values; 255 can be shown" in errors
    assert not (folder / "view.html").exists()
