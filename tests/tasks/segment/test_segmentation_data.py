"""Proves that labelled scans are read from tables and from both layouts of dataset.json, and that mistakes are one line each."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dagman.errors import TableError, TaskError
from dagman.scans.label_files import name_outputs
from dagman.tables.labelled_scans import parse_structures, read_labelled_scans
from dagman.tables.structures import Structure
from dagman.tasks.segment.segmentation import SegmentationSettings, segment_scans


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4)), path)
    return path


def write_table(folder: Path, text: str) -> Path:
    path = folder / "table.csv"
    path.write_text(text)
    return path


def write_decathlon(folder: Path, **changes: object) -> Path:
    for case in ("liver_1", "liver_2", "liver_3"):
        touch(folder / "imagesTr" / f"{case}.nii.gz")
        touch(folder / "labelsTr" / f"{case}.nii.gz")
    about = {
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "cancer"},
        "training": [{"image": f"./imagesTr/liver_{i}.nii.gz", "label": f"./labelsTr/liver_{i}.nii.gz"} for i in (1, 2, 3)],
        "test": ["./imagesTs/liver_9.nii.gz"],
        **changes,
    }
    path = folder / "dataset.json"
    path.write_text(json.dumps(about))
    return path


def write_nnunet(folder: Path, tested: tuple[str, ...] = (), **changes: object) -> Path:
    for part, cases in (("Tr", ("a", "b", "c")), ("Ts", tested)):
        for case in cases:
            touch(folder / f"images{part}" / f"{case}_0000.nii.gz")
            touch(folder / f"labels{part}" / f"{case}.nii.gz")
    about = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "tumour": 1}, "file_ending": ".nii.gz", **changes}
    path = folder / "dataset.json"
    path.write_text(json.dumps(about))
    return path


def test_a_decathlon_dataset_is_read_with_its_structures(tmp_path):
    data = read_labelled_scans(write_decathlon(tmp_path))
    assert [item.name for item in data.items] == ["liver_1", "liver_2", "liver_3"]
    assert data.structures == (Structure(name="liver", values=(1,)), Structure(name="cancer", values=(2,)))
    assert data.splits is None
    assert data.items[0].scan == tmp_path / "imagesTr" / "liver_1.nii.gz"
    assert any("1 test scan has no label" in note.text for note in data.notes)


def test_a_decathlon_test_part_with_labels_is_the_split(tmp_path):
    entry = {"image": "imagesTr/liver_3.nii.gz", "label": "labelsTr/liver_3.nii.gz"}
    training = [{"image": f"imagesTr/liver_{i}.nii.gz", "label": f"labelsTr/liver_{i}.nii.gz"} for i in (1, 2)]
    data = read_labelled_scans(write_decathlon(tmp_path, training=training, test=[entry]))
    assert data.splits is not None
    assert data.splits.tolist() == ["train", "train", "test"]


def test_an_nnunet_dataset_is_read_with_its_structures_and_split(tmp_path):
    data = read_labelled_scans(write_nnunet(tmp_path, tested=("z",)).parent)
    assert [item.name for item in data.items] == ["a", "b", "c", "z"]
    assert data.items[3].scan == tmp_path / "imagesTs" / "z_0000.nii.gz"
    assert data.structures == (Structure(name="tumour", values=(1,)),)
    assert data.splits is not None
    assert data.splits.tolist() == ["train", "train", "train", "test"]


def test_an_nnunet_dataset_without_test_labels_has_no_split(tmp_path):
    path = write_nnunet(tmp_path)
    touch(tmp_path / "imagesTs" / "new_0000.nii.gz")
    data = read_labelled_scans(path)
    assert data.splits is None
    assert len(data.items) == 3
    assert any("dagman predict" in note.text for note in data.notes)


def test_rows_of_one_scan_are_joined_and_named_by_their_label(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz", "m.nii.gz", "n.nii.gz"):
        touch(tmp_path / name)
    organs = "scan,mask,patient,label_value,label\n" + "".join(
        f"{scan}.nii.gz,{mask}.nii.gz,{scan},{value},{name}\n"
        for scan, mask in (("a", "m"), ("b", "n"))
        for value, name in ((5, "liver"), (6, "spleen"))
    )
    data = read_labelled_scans(write_table(tmp_path, organs))
    assert [item.name for item in data.items] == ["a", "b"]
    assert data.structures == (Structure(name="liver", values=(5,)), Structure(name="spleen", values=(6,)))

    nodules = organs.replace("liver", "0").replace("5,", "1,").replace("spleen", "0").replace("6,", "2,")
    data = read_labelled_scans(write_table(tmp_path, nodules))
    assert data.structures == (Structure(name="structure", values=(1, 2)),)
    assert any("one structure" in note.text for note in data.notes)


def test_a_split_is_taken_from_the_column_that_is_named(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        touch(tmp_path / name)
    rows = "scan,mask,patient,split,site\na.nii.gz,b.nii.gz,p,train,test\nb.nii.gz,a.nii.gz,q,test,train\n"
    path = write_table(tmp_path, rows)
    for column, parts in (("split", ["train", "test"]), ("site", ["test", "train"])):
        splits = read_labelled_scans(path, split=column).splits
        assert splits is not None
        assert splits.tolist() == parts
    with pytest.raises(TableError, match=r"a dataset.json has no column 'site'. Omit --split"):
        read_labelled_scans(write_decathlon(tmp_path), split="site")


def test_structures_that_are_named_come_first(tmp_path):
    path = write_decathlon(tmp_path)
    assert read_labelled_scans(path, labels="both=1+2").structures == (Structure(name="both", values=(1, 2)),)
    assert read_labelled_scans(path, mask_label=2).structures == (Structure(name="label 2", values=(2,)),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("liver", "'liver' is not a structure"),
        ("liver=x", "'liver=x' is not a structure"),
        ("", "is empty"),
        ("a=1,b=1", "the value 1 is assigned to two structures"),
        ("a=1,a=2", "the name a is assigned to two structures"),
        ("a=0", "0 is background"),
    ],
)
def test_structures_that_cannot_be_meant_are_refused(text, message):
    with pytest.raises(TableError, match=message):
        parse_structures(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modality": {"0": "FLAIR", "1": "T1w"}}, r"2 input channels \(FLAIR, T1w\)"),
        ({"modality": ["FLAIR", "T1w"]}, r"2 input channels \(FLAIR, T1w\)"),
        ({"labels": {"0": "background"}}, "names no structure except background"),
        ({"labels": {"0": "background", "ignore": 3}}, "a label 'ignore'"),
        ({"labels": {"background": 0, "whole": [1, 2]}}, r"label 'whole' is \[1, 2\], not one value"),
        ({"labels": []}, "has no 'labels'"),
        ({"training": []}, "lists no training cases"),
        ({"training": 32}, "'training' is not a list"),
        ({"test": {"image": "x.nii.gz"}}, "'test' is not a list"),
        ({"training": [{"image": "x.nii.gz"}]}, "lacks image or label"),
        ({"training": [{"image": "x.nii.gz", "label": 1}]}, "lacks image or label"),
    ],
)
def test_a_dataset_that_cannot_be_used_is_one_line(tmp_path, changes, message):
    with pytest.raises(TableError, match=message) as caught:
        read_labelled_scans(write_decathlon(tmp_path, **{"test": [], **changes}))
    assert "\n" not in str(caught.value)


def test_all_absent_files_of_a_dataset_are_named_at_once(tmp_path):
    path = write_decathlon(tmp_path)
    (tmp_path / "imagesTr" / "liver_1.nii.gz").unlink()
    (tmp_path / "labelsTr" / "liver_3.nii.gz").unlink()
    with pytest.raises(TableError, match="2 files do not exist") as caught:
        read_labelled_scans(path)
    assert "liver_1.nii.gz" in str(caught.value)
    assert "liver_3.nii.gz" in str(caught.value)


def test_absent_files_of_an_nnunet_dataset_are_named_both_ways(tmp_path):
    path = write_nnunet(tmp_path)
    (tmp_path / "imagesTr" / "a_0000.nii.gz").unlink()
    (tmp_path / "labelsTr" / "b.nii.gz").unlink()
    with pytest.raises(TableError, match=r"2 files do not exist: imagesTr/a_0000.nii.gz, labelsTr/b.nii.gz"):
        read_labelled_scans(path)


def test_a_table_without_masks_or_with_several_a_scan_is_refused(tmp_path):
    for name in ("a.nii.gz", "m.nii.gz", "n.nii.gz"):
        touch(tmp_path / name)
    with pytest.raises(TableError, match="no column 'mask'"):
        read_labelled_scans(write_table(tmp_path, "scan,patient\na.nii.gz,p\n"))
    with pytest.raises(TableError, match=r"scans have several masks: a.nii.gz"):
        read_labelled_scans(write_table(tmp_path, "scan,mask,patient\na.nii.gz,m.nii.gz,p\na.nii.gz,n.nii.gz,p\n"))
    with pytest.raises(TableError, match="cannot be combined"):
        read_labelled_scans(tmp_path / "table.csv", labels="a=1", mask_label=1)


def test_files_are_named_by_as_many_folders_as_tell_them_apart():
    assert name_outputs(["x/one.nii.gz", "y/two.nii"]) == ["one", "two"]
    assert name_outputs(["p1/ct.nii.gz", "p2/ct.nii.gz"]) == ["p1_ct", "p2_ct"]
    assert len(set(name_outputs(["a/b_c.nii", "a_b/c.nii", "a/b/c.nii"]))) == 3


def test_folders_that_a_killed_call_left_are_removed(tmp_path, monkeypatch):
    for name in ("a.nii.gz", "b.nii.gz"):
        touch(tmp_path / name)
    data = read_labelled_scans(
        write_table(tmp_path, "scan,mask,patient\na.nii.gz,b.nii.gz,p\nb.nii.gz,a.nii.gz,q\n"), labels="ball=1"
    )
    left = tmp_path / "out" / ".prepared-killed" / "case.npy"
    left.parent.mkdir(parents=True)
    left.touch()
    seen = []

    def stop(*arguments):
        seen.extend(path.name for path in (tmp_path / "out").glob(".prepared-*"))
        raise TaskError("stopped")

    monkeypatch.setattr("dagman.tasks.segment.segmentation._prepare_all", stop)
    with pytest.raises(TaskError, match="stopped"):
        segment_scans([], data, tmp_path / "out", SegmentationSettings(folds=2))
    assert len(seen) == 1
    assert ".prepared-killed" not in seen
    assert list((tmp_path / "out").glob(".prepared-*")) == []
