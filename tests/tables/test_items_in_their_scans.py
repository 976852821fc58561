"""Proves that a mask lands on its scan's voxels whatever its axis order, and that masks and points elsewhere are said."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from dagman.errors import ScanError, TableError
from dagman.scans.affine import Affine
from dagman.scans.reading import read_scan
from dagman.scans.scan import Scan
from dagman.tables.items import Item, align_mask, check_points, load_mask, read_mask

_SHAPE = (6, 7, 8)
_AFFINE = np.array([[-0.7, 0.1, 0, 40], [0.1, 0.7, 0, -90], [0, 0, 2.5, -400], [0, 0, 0, 1.0]])


@pytest.fixture
def scan() -> Scan:
    """An oblique scan, stored right to left."""
    return Scan(voxels=np.zeros(_SHAPE, np.int16), affine=Affine(_AFFINE), modality="CT", patient="p", source="a.nii.gz")


def _item(tmp_path: Path, labels: np.ndarray, affine: np.ndarray = _AFFINE, label_value: int | None = None) -> Item:
    nibabel.save(nibabel.Nifti1Image(labels, affine), tmp_path / "m.nii.gz")
    return Item(index=4, name="a:m", scan="a", patient="p", mask=tmp_path / "m.nii.gz", label_value=label_value)


def _labels() -> np.ndarray:
    labels = np.zeros(_SHAPE, np.uint8)
    labels[1:3, 2, 3:6], labels[4, 5:, 7] = 2, 5
    return labels


@pytest.mark.parametrize("label_value", [None, 2, 5])
@pytest.mark.parametrize("axes", ["LAS", "RAS", "SPL", "ASR"])
def test_a_mask_in_any_axis_order_lands_on_its_scans_voxels(tmp_path, scan, axes, label_value):
    image = nibabel.Nifti1Image(_labels(), _AFFINE)
    turn = nibabel.orientations.ornt_transform(nibabel.io_orientation(_AFFINE), nibabel.orientations.axcodes2ornt(tuple(axes)))
    turned = image.as_reoriented(turn)
    item = _item(tmp_path, np.asarray(turned.dataobj), turned.affine, label_value)
    found = load_mask(item, scan)
    assert found.dtype == bool
    assert np.array_equal(found, _labels() > 0 if label_value is None else _labels() == label_value)


@pytest.mark.parametrize("axes", ["LAS", "PSR"])
@pytest.mark.parametrize(("low", "high"), [((1, 1, 2), (5, 7, 8)), ((-2, 0, -1), (6, 9, 8)), ((0, 2, 3), (9, 8, 11))])
def test_a_mask_that_was_cropped_or_grown_is_placed_exactly(tmp_path, scan, axes, low, high):
    low, high = np.array(low), np.array(high)
    inner = tuple(slice(max(0, a), min(n, b)) for a, b, n in zip(low, high, _SHAPE, strict=True))
    expected = np.zeros(_SHAPE, np.uint8)
    expected[inner] = _labels()[inner]
    labels = np.zeros(high - low, np.uint8)
    labels[tuple(slice(s.start - a, s.stop - a) for s, a in zip(inner, low, strict=True))] = expected[inner]
    image = nibabel.Nifti1Image(labels, Affine(_AFFINE).crop(low).matrix)
    turn = nibabel.orientations.ornt_transform(nibabel.io_orientation(_AFFINE), nibabel.orientations.axcodes2ornt(tuple(axes)))
    turned = image.as_reoriented(turn)
    item = _item(tmp_path, np.asarray(turned.dataobj), turned.affine)
    assert np.array_equal(align_mask(item, read_mask(item), scan), expected)


@pytest.mark.parametrize("suffix", [".nii.gz", ".seg.nrrd"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mask_that_was_cropped_to_one_slice_is_placed_by_its_thickness(tmp_path, scan, axis, suffix):
    low, high = np.zeros(3, int), np.array(_SHAPE)
    low[axis], high[axis] = 2, 3
    inner = tuple(map(slice, low, high))
    labels, expected = np.zeros(_SHAPE, np.uint8), np.zeros(_SHAPE, np.uint8)
    labels[1:5, 2:4, 1:6] = 3
    expected[inner] = labels[inner]
    assert expected.any()
    path, affine = tmp_path / f"m{suffix}", Affine(_AFFINE).crop(low).matrix
    if suffix == ".nii.gz":
        nibabel.save(nibabel.Nifti1Image(labels[inner], affine), path)
    else:
        image = SimpleITK.GetImageFromArray(np.ascontiguousarray(labels[inner].T))
        lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        image.SetSpacing(spacing), image.SetOrigin(lps[:3, 3]), image.SetDirection((lps[:3, :3] / spacing).ravel())
        SimpleITK.WriteImage(image, str(path))
    item = Item(index=4, name="a:m", scan="a", patient="p", mask=path)
    assert np.array_equal(align_mask(item, read_mask(item), scan), expected)


def test_a_single_slice_of_another_thickness_or_of_none_is_refused(tmp_path, scan):
    slab = Affine(_AFFINE).crop((0, 0, 3)).matrix @ np.diag([1, 1, 1.3, 1])
    with pytest.raises(TableError, match=r"on another grid: spacing 0\.707 x 0\.707 x 3\.25 against 0\.707 x 0\.707 x 2\.5 mm"):
        load_mask(_item(tmp_path, _labels()[:, :, 3:4], slab), scan)
    with pytest.raises(ScanError, match=r"m\.nii\.gz: is one slice \(6 x 7\)\. "):
        load_mask(_item(tmp_path, _labels()[:, :, 3], _AFFINE), scan)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_a_scan_of_one_slice_is_refused_all_the_same(tmp_path, suffix):
    image = SimpleITK.GetImageFromArray(np.zeros((1, 6, 7), np.int16))
    SimpleITK.WriteImage(image, str(tmp_path / f"a{suffix}"))
    with pytest.raises(ScanError, match=r"is one slice \(7 x 6 x 1\)"):
        read_scan(tmp_path / f"a{suffix}")


@pytest.mark.parametrize(
    ("change", "label_value", "says"),
    [
        (
            lambda labels, affine: (labels, affine + np.eye(4, k=3)),
            None,
            "is on another grid: first voxel at 41, -90, -400 against 40, -90, -400 mm, not a whole number of voxels away "
            "(mask against scan). Resample it (nearest neighbour) to the scan it was drawn on.",
        ),
        (
            lambda labels, affine: (labels, affine @ np.diag([1.0004, 1, 1, 1]) + 0.5 * np.eye(4, k=3)),
            None,
            "is on another grid: spacing 0.7074 x 0.7071 x 2.5 against 0.7071 x 0.7071 x 2.5 mm; first voxel at ",
        ),
        (lambda labels, affine: (labels, np.eye(4)), None, "is on another grid: spacing 1 x 1 x 1 against 0.707 x 0.707 x 2.5 mm"),
        (
            lambda labels, affine: (labels, Affine(affine).crop((20, 0, 0)).matrix),
            None,
            "marks only voxels outside its scan. Check that it was drawn on this scan.",
        ),
        (lambda labels, affine: (0 * labels, affine), None, "is empty. Correct the mask or label_value, or remove the row."),
        (lambda labels, affine: (labels, affine), 3, "has no voxels of label 3 (its labels: 2, 5). "),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_with_its_row(tmp_path, scan, change, label_value, says):
    with pytest.raises(TableError) as caught:
        load_mask(_item(tmp_path, *change(_labels(), _AFFINE), label_value), scan)
    assert str(caught.value).startswith(f"row 5 (a:m): mask m.nii.gz {says}")


def test_whole_numbers_stored_as_floats_are_labels(tmp_path, scan):
    # As a program's scaling leaves them: 2 is 1.9999999, 5 is 5.0000005.
    for labels in (_labels().astype(np.float64), _labels().astype(np.float32) * np.float32(1.0000001)):
        assert np.array_equal(load_mask(_item(tmp_path, labels, label_value=5), scan), _labels() == 5)


@pytest.mark.parametrize("label_value", [None, 1])
def test_a_map_of_probabilities_is_refused_never_rounded(tmp_path, scan, label_value):
    chances = np.where(_labels() > 0, 0.97, 0.0).astype(np.float32)
    chances[1, 2, 3] = 0.43
    with pytest.raises(TableError) as caught:
        load_mask(_item(tmp_path, chances, label_value=label_value), scan)
    assert str(caught.value) == (
        "row 5 (a:m): mask m.nii.gz holds values that are not whole numbers, such as 0.43. "
        "Threshold it if it holds probabilities, or give a label map (resampled by nearest neighbour, if at all)."
    )


def test_an_item_without_a_mask_says_so(scan):
    with pytest.raises(TableError, match=r"row 1 \(a\): has no mask. Fill the column 'mask'."):
        load_mask(Item(index=0, name="a", scan="a", patient="p"), scan)


def _points(*points: tuple[float, float, float] | None) -> list:
    items = [Item(index=i, name=f"n{i}", scan="a", patient="p", center_mm=point) for i, point in enumerate(points)]
    return [(item, _SHAPE, Affine(_AFFINE)) for item in items]


_INSIDE = (38.0, -88.0, -390.0)


def test_points_inside_are_kept_without_a_word():
    first_corner, last_corner = Affine(_AFFINE).to_world([[-0.49] * 3, np.array(_SHAPE) - 0.51])
    kept, notes = check_points(_points(_INSIDE, None, tuple(first_corner), tuple(last_corner)))
    assert len(kept) == 4
    assert notes == []


def test_a_point_outside_is_excluded_and_noted():
    kept, notes = check_points(_points(_INSIDE, _INSIDE, (0, 0, 0), _INSIDE))
    assert [item.name for item in kept] == ["n0", "n1", "n3"]
    assert notes == ["1 of 4 points falls outside its scan: excluded (item n2)"]


def test_points_in_lps_are_recognised():
    flipped = (-_INSIDE[0], -_INSIDE[1], _INSIDE[2])
    with pytest.raises(TableError) as caught:
        check_points(_points(flipped, flipped, _INSIDE))
    assert str(caught.value) == (
        "2 of 3 points fall outside their scans, but 2 would lie inside with x and y negated: they appear to be LPS. "
        "Pass --coordinates lps."
    )


def test_points_that_are_nowhere_are_refused():
    with pytest.raises(TableError) as caught:
        check_points(_points((3, 3, 4), (1, 2, 3)))
    assert str(caught.value) == (
        "2 of 2 points fall outside their scans (item n0, n1). Give centers in RAS millimetres of the scan's coordinate "
        "system, not in voxels."
    )
