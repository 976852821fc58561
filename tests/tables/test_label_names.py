"""Proves that the names of labels are found wherever programs keep them: tables, JSON, models, headers."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dagman.errors import TableError
from dagman.tables.labels import find_label_names, read_own_names

_NAMES = {1: "spleen", 5: "liver"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "mask,id,name\nm,1,spleen\nm,5,liver\nn,5,liver\n"),
        ("predictions.csv", "item,structure,value,volume_ml\na,spleen,1,3\na,liver,5,7\nb,liver,5,8\n"),
        ("a.json", json.dumps({"1": "spleen", "5": "liver"})),
        ("a.json", json.dumps({"background": 0, "spleen": 1, "liver": 5})),
        ("dataset.json", json.dumps({"labels": {"background": 0, "spleen": 1, "liver": 5, "both": [1, 5]}})),
        ("segmentation.json", json.dumps({"structures": [{"name": "spleen", "values": [1]}, {"name": "liver", "values": [5]}]})),
    ],
)
def test_names_are_read_from_tables_json_and_models(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert find_label_names(str(tmp_path / name)) == _NAMES
    if name in ("dataset.json", "segmentation.json"):
        assert find_label_names(str(tmp_path)) == _NAMES


def test_names_may_be_given_as_they_are():
    assert find_label_names("kidneys=7+8, liver=5") == {7: "kidneys", 8: "kidneys", 5: "liver"}


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"a": "b"}', '{"labels": {}}', '{"structures": [{"name": "a"}]}', '{"structures": [1]}']
)
def test_a_json_file_that_names_nothing_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(TableError, match=r"a\.json: .*Give a table with columns id and name"):
        find_label_names(str(tmp_path / "a.json"))


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(TableError, match=r"holds no segmentation model and no dataset\.json"):
        find_label_names(str(tmp_path))


def _write_map(path: Path, extension: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(np.zeros((3, 3, 3), np.uint8), np.eye(4))
    if extension:
        image.header.extensions.append(nib.nifti1.Nifti1Extension(0, extension))
    nib.save(image, path)
    return path


def test_totalsegmentators_names_are_read_from_the_maps_header(tmp_path):
    # As its save_multilabel_nifti writes them.
    rows = "".join(f'<Label Key="{key}" Red="1" Alpha="1"><![CDATA[{name}]]></Label>\n' for key, name in _NAMES.items())
    xml = f'<?xml version="1.0" encoding="UTF-8"?> <CaretExtension><VolumeInformation Index="0"><LabelTable>{rows}</LabelTable>'
    path = _write_map(tmp_path / "total.nii.gz", f"{xml}</VolumeInformation></CaretExtension>\n   ".encode())
    assert read_own_names(path) == (_NAMES, "its header")
    with pytest.raises(TableError, match="the names in its header are damaged"):
        read_own_names(_write_map(tmp_path / "total.nii", b"<CaretExtension><a></CaretExtension>"))


def test_a_prediction_finds_its_names_in_the_table_beside_it(tmp_path):
    (tmp_path / "predictions.csv").write_text("item,structure,value\na,spleen,1\na,liver,5\n")
    path = _write_map(tmp_path / "predictions" / "a.nii.gz")
    assert read_own_names(path) == (_NAMES, str(tmp_path / "predictions.csv"))
    assert read_own_names(_write_map(tmp_path / "elsewhere" / "a.nii.gz")) == ({}, "")
