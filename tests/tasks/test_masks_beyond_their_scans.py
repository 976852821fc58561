"""A mask that reaches beyond its scan is cut to it, and every task that reads it says by how much."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from dagman.notes import warn
from dagman.scans.affine import Affine
from dagman.tables.structures import Structure
from dagman.tables.table import read_table
from dagman.tasks.inputs.features import extract_features
from dagman.tasks.inputs.item_crops import cut_items
from dagman.tasks.inputs.model_inputs import gather_inputs
from dagman.tasks.models import parse_model
from dagman.tasks.segment.cases import prepare_cases

_SAID = "1 mask extends beyond its scan: up to 12 % of the label voxels lie outside and are ignored (c)"


@pytest.fixture
def table(tmp_path, make_ball):
    """Three scans with a ball; the mask of `c` is 4 voxels taller than its scan, and an eighth of it is marked out there."""
    rows, affine = ["item,scan,mask,patient"], np.diag([5.0, 5.0, 5.0, 1.0])
    for number, name in enumerate("abc"):
        hu, mask = make_ball(number)
        nibabel.save(nibabel.Nifti1Image(hu, affine), tmp_path / f"{name}.nii.gz")
        place = affine
        if name == "c":
            mask[:], mask[10:17, 10:14, 10] = 0, 1
            mask, place = np.pad(mask, ((0, 0), (0, 0), (4, 0))), Affine(affine).crop((0, 0, -4)).matrix
            mask[10:14, 10, 1] = 1
            assert mask[:, :, :4].sum() / mask.sum() == 0.125
        nibabel.save(nibabel.Nifti1Image(mask, place), tmp_path / f"{name}-mask.nii.gz")
        rows.append(f"{name},{name}.nii.gz,{name}-mask.nii.gz,p{name}")
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    return read_table(tmp_path / "table.csv")


def test_what_is_cut_of_a_mask_is_said_wherever_it_is_read(table, small_encoder, tmp_path):
    assert extract_features(small_encoder, table).cut == {"c": 0.125}
    assert cut_items(small_encoder.reader, table.items).cut == {"c": 0.125}
    assert [note for note in gather_inputs([parse_model("pixels")], table).notes if "beyond" in note.text] == [warn(_SAID)]
    cases, refused = prepare_cases(small_encoder, table.items, [Structure(name="ball", values=(1,))], tmp_path)
    assert refused == []
    assert {case.item.name: case.cut for case in cases} == {"a": 0.0, "b": 0.0, "c": 0.125}
