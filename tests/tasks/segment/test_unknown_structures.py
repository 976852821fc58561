"""Proves that a structure which was not contoured in a scan costs nothing there, in loss or score, and teaches all that it can."""

from __future__ import annotations

import math
from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from dagman.evaluation.segmentation_scores import agree_volumes, rank_items, score_scan, summarize_scores
from dagman.scans.affine import Affine
from dagman.scans.scan import Scan
from dagman.tables.items import Item
from dagman.tables.structures import Structure
from dagman.tasks.segment.cases import Case, load_classes
from dagman.tasks.segment.training import CropDraw, list_known, measure_loss, measure_shares

TWO = (Structure(name="cord", values=(1,)), Structure(name="jaw", values=(2,)))


def _case(contoured: tuple[bool, ...] | None, labels: np.ndarray) -> Case:
    places = tuple(np.argwhere(labels == code) for code in (1, 2))
    return Case(
        item=Item(index=0, name="case", scan="x", patient="p"),
        voxels=np.full(labels.shape, 40, np.int16),
        labels=labels,
        places=places,
        modality="CT",
        content_hash="",
        labels_hash="",
        contoured=contoured,
    )


def test_the_marginal_loss_is_its_closed_form():
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 3, 4, 5, dtype=torch.float64)
    labels = torch.randint(0, 4, (2, 3, 4, 5))
    labels[0][labels[0] == 2] = 0
    # View 0 lacks class 2, view 1 knows all, class 3 is known in both.
    known = torch.tensor([[False, True, False, True], [True, True, True, True]])
    p, y = logits.softmax(1).numpy(), labels.numpy()
    likelihood = np.take_along_axis(p, y[:, None], 1)[:, 0]
    likelihood[0][y[0] == 0] = (p[0, 0] + p[0, 2])[y[0] == 0]

    def measure_dice(code: int, views: tuple[int, ...]) -> float:
        overlap = sum(p[v, code][y[v] == code].sum() for v in views)
        return (2 * overlap + 1) / (sum(p[v, code].sum() + (y[v] == code).sum() for v in views) + 1)

    dice = [measure_dice(1, (0, 1)), measure_dice(2, (1,)), measure_dice(3, (0, 1))]
    expected = 1 - np.mean(dice) - np.log(likelihood).mean()
    assert float(measure_loss(logits, labels, known)) == pytest.approx(expected, abs=1e-6)


def test_with_all_known_the_loss_is_the_usual_one_bit_for_bit():
    torch.manual_seed(1)
    logits, labels = torch.randn(2, 3, 4, 4, 4), torch.randint(0, 3, (2, 4, 4, 4))
    assert torch.equal(measure_loss(logits, labels, torch.ones(2, 3, dtype=torch.bool)), measure_loss(logits, labels))


def test_calling_unlabelled_voxels_an_unknown_structure_costs_nothing():
    labels = torch.zeros(1, 8, 8, 8, dtype=torch.long)
    labels[:, :3] = 1
    said = labels.clone()
    said[:, 5:] = 2
    logits = (40.0 * torch.nn.functional.one_hot(said, 3).movedim(-1, 1).float()).requires_grad_()
    loss = measure_loss(logits, labels, torch.tensor([[False, True, False]]))
    assert float(loss.detach()) < 1e-3
    assert float(measure_loss(logits.detach(), labels)) > 1
    loss.backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


def test_a_structure_unknown_in_every_view_leaves_a_loss():
    logits, labels = torch.zeros(1, 2, 2, 2, 2), torch.zeros(1, 2, 2, 2, dtype=torch.long)
    # Background and the one structure are all there is: every answer is right.
    assert float(measure_loss(logits, labels, torch.tensor([[False, False]]))) == pytest.approx(0.0, abs=1e-6)


def test_each_crop_knows_what_its_own_case_knows():
    labels = np.zeros((4, 4, 4), np.uint8)
    cases = [_case(None, labels), _case((True, False), labels)]
    draws = [CropDraw(case=case, start=(0, 0, 0), flips=(False,) * 3, gain=1.0, offset=0.0) for case in (1, 0)]
    assert list_known(cases, draws, 3).tolist() == [[False, True, False], [True, True, True]]


def test_shares_are_those_where_the_structure_was_drawn():
    first, second = np.zeros((10, 10, 10), np.uint8), np.zeros((10, 10, 10), np.uint8)
    first[:2], second[:1] = 1, 1
    first[8:] = 2
    shares = measure_shares([_case(None, first), _case((True, False), second)], 3)
    np.testing.assert_allclose(shares, [1 - 0.15 - 0.2, 0.15, 0.2])


def test_unknown_structures_have_no_score_and_move_no_mean():
    truth = np.zeros((6, 6, 6), np.uint8)
    truth[1:3] = 1
    predicted = truth.copy()
    predicted[4:] = 2
    rows = []
    for name, contoured in (("a", (True, False)), ("b", None), ("c", (True, False))):
        scores = score_scan(predicted, truth, TWO, (1.0, 1.0, 1.0), 2.0, contoured=contoured)
        rows += [{"item": name, "patient": name, "model": "m", "subset": "100%", **row} for row in scores]
    frame = pd.DataFrame(rows)
    unknown = frame[(frame["label"] == "jaw") & (frame["item"] != "b")]
    assert unknown[["dice", "hd95_mm", "nsd", "lesions", "found", "false_positives", "true_volume_ml"]].isna().all(axis=None)
    assert unknown["volume_ml"].tolist() == [0.072, 0.072]
    held = {one.name: one.interval for one in summarize_scores(frame, TWO, resamples=10)}
    assert held["dice:jaw"].value == 0
    assert held["dice:jaw"].patients == 1
    assert held["dice:cord"].patients == 3
    # Item b has 1 and 0, the others 1 alone.
    assert held["dice"].value == pytest.approx((1 + 0.5 + 1) / 3)
    assert held["false_positives:jaw"].value == 1
    assert held["lesion_sensitivity:cord"].value == 1
    assert agree_volumes(frame[frame["label"] == "jaw"])["bias"] == pytest.approx(0.072)
    assert rank_items(frame) == ["a", "c", "b"]


def test_a_structure_known_in_no_tested_scan_is_not_a_number():
    truth = np.zeros((4, 4, 4), np.uint8)
    truth[1] = 1
    rows = [
        {"item": "a", "patient": "a", "model": "m", "subset": "100%", **row}
        for row in score_scan(truth, truth, TWO, (1, 1, 1), 2.0, contoured=(True, False))
    ]
    held = {one.name: one.interval for one in summarize_scores(pd.DataFrame(rows), TWO, resamples=10)}
    assert math.isnan(held["dice:jaw"].value)
    assert held["dice:cord"].value == 1


def test_a_scan_with_none_of_the_structures_contoured_is_refused(tmp_path):
    values = np.zeros((4, 4, 4), np.uint8)
    values[1] = 1
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "mask.nii.gz")
    item = Item(index=0, name="a", scan=tmp_path / "ct", patient="p", mask=tmp_path / "mask.nii.gz", contoured=frozenset({"9"}))
    scan = Scan(voxels=values.astype(np.int16), affine=Affine(np.eye(4)), modality="CT", patient="p", source="ct")
    with pytest.raises(Exception, match=r"a: has none of the structures contoured \(cord, jaw\)"):
        load_classes(item, scan, TWO)
    assert np.array_equal(load_classes(replace(item, contoured=frozenset({"1"})), scan, TWO), values)


def test_each_structure_drawn_in_one_of_two_scans_is_learnt_from_both():
    """Classes of three intensities: background, cord and jaw; the first view has cord drawn alone, the second jaw alone."""
    seen = torch.arange(3).repeat(2, 9)[:, :, None, None]
    views = torch.nn.functional.one_hot(seen, 3).movedim(-1, 1).float()
    labels = torch.stack([torch.where(seen[0] == 1, 1, 0), torch.where(seen[1] == 2, 2, 0)])
    known = torch.tensor([[False, True, False], [False, False, True]])
    weights = torch.zeros(3, 3, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=0.2)
    for _ in range(100):
        optimizer.zero_grad()
        measure_loss(torch.einsum("kc,bcxyz->bkxyz", weights, views), labels, known).backward()
        optimizer.step()
    probabilities = weights.detach().softmax(dim=0)
    assert probabilities.argmax(dim=0).tolist() == [0, 1, 2]
    assert float(probabilities.diag().min()) > 0.8
