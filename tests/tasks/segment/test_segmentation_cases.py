"""Proves that the labels a segmentation learns are those of the masks: whole numbers whatever their type, never rounded chances."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dagman.errors import TableError, TaskError
from dagman.scans.affine import Affine
from dagman.scans.scan import Scan
from dagman.tables.items import Item
from dagman.tables.structures import Structure
from dagman.tasks.segment.cases import find_structures, load_classes

_SHAPE = (6, 5, 4)


def _make_item(folder: Path, name: str, values: np.ndarray) -> Item:
    nib.save(nib.Nifti1Image(values, np.eye(4)), folder / f"{name}.nii.gz")
    return Item(index=0, name=name, scan=folder / "ct.nii.gz", patient="p", mask=folder / f"{name}.nii.gz")


def _draw(inside: float) -> np.ndarray:
    values = np.zeros(_SHAPE, np.float32)
    values[2:4, 1:3, 1:3] = inside
    return values


def test_structures_are_found_in_label_maps_and_chances_are_none(tmp_path):
    whole, chances = _make_item(tmp_path, "whole", _draw(2.0)), _make_item(tmp_path, "chances", _draw(0.43))
    assert find_structures([chances, whole]) == [Structure(name="structure", values=(2,))]
    with pytest.raises(TaskError) as caught:
        find_structures([chances])
    assert str(caught.value).startswith(
        "all masks are empty or cannot be used; the first: row 1 (chances): mask chances.nii.gz holds values that are not whole "
        "numbers, such as 0.43. "
    )
    assert "\n" not in str(caught.value)


def test_a_mask_of_chances_is_refused_where_one_of_whole_floats_is_learnt(tmp_path):
    scan = Scan(voxels=np.zeros(_SHAPE, np.int16), affine=Affine(np.eye(4)), modality="CT", patient="p", source="ct")
    structures = [Structure(name="ball", values=(1,))]
    classes = load_classes(_make_item(tmp_path, "whole", _draw(1.0)), scan, structures)
    assert np.array_equal(classes, _draw(1.0))
    with pytest.raises(TableError, match=r"mask chances.nii.gz holds values that are not whole numbers, such as 0.8. Threshold it"):
        load_classes(_make_item(tmp_path, "chances", _draw(0.8)), scan, structures)
