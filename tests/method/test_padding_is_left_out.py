"""What lies outside a scan is neither masked nor restored: shares hold for the part of a view that lies in it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from dagman.method import Method, Network, Targets, ViewPair, copy_student, teacher_forward
from dagman.method.losses import cross_entropy, masked_l1
from dagman.method.masking import MASKINGS, MaskingShares, mask_units
from dagman.method.networks import ProjectorShape, SemanticShape
from dagman.method.step import find_inside_units, find_inside_voxels, weight_rows
from dagman.method.targets import TargetRules
from dagman.model import SwinShape
from dagman.settings.tree import ViewSettings
from dagman.training.accumulation import accumulate_gradients
from dagman.training.augmentation import augment_views, mirror_boxes
from dagman.training.draws import draw_masking

SHARES = MaskingShares(ratio=0.7, hints=0.1)


def _place(*boxes) -> torch.Tensor:
    return torch.tensor(boxes)


@pytest.mark.parametrize("kind", MASKINGS)
def test_only_units_in_the_scan_are_masked_and_the_shares_hold_for_them(kind):
    grid, n = (4, 4, 4), 64
    inside = _place([[0, 0, 0], [4, 4, 4]], [[1, 0, 0], [4, 4, 2]], [[0, 2, 1], [2, 4, 4]])
    attention = torch.rand(3, n, generator=torch.Generator().manual_seed(0))
    draws = draw_masking(0, 0, range(3), n)
    masked = mask_units(MASKINGS[kind], attention, grid, SHARES, draws, inside)
    for row, box in zip(masked, inside, strict=True):
        volume = row.view(grid)
        part = volume[tuple(slice(*ends) for ends in box.T.tolist())]
        count = part.numel()
        assert int(volume.sum()) == int(part.sum()) == math.floor(0.7 * count + 1e-9) - math.floor(0.1 * count + 1e-9)
    whole = mask_units(MASKINGS[kind], attention[:1], grid, SHARES, draws[:1])
    assert torch.equal(masked[:1], whole)


def test_attention_ranks_the_units_in_the_scan_alone():
    attention = torch.arange(64.0)[None]
    masked = mask_units(
        MASKINGS["attention-high"], attention, (4, 4, 4), SHARES, draw_masking(0, 0, [0], 64), _place([[0, 0, 0], [2, 4, 4]])
    )
    ranked = attention.view(4, 4, 4)[:2].flatten().argsort(descending=True)
    expected = torch.zeros(64, dtype=torch.bool)
    expected[ranked[3:22]] = True
    assert torch.equal(masked[0], expected)


def test_a_unit_that_holds_one_voxel_of_the_scan_is_in_it():
    assert find_inside_units(_place([[17, 0, 15], [33, 64, 49]])).tolist() == [[[1, 0, 0], [3, 4, 4]]]
    voxels = find_inside_voxels(_place([[1, 0, 2], [3, 4, 4]]), torch.zeros(1, 4, 4, 4, dtype=torch.bool))
    expected = torch.zeros(4, 4, 4, dtype=torch.bool)
    expected[1:3, :, 2:] = True
    assert torch.equal(voxels[0], expected)


def test_losses_average_within_a_view_before_they_average_over_views():
    view, prediction = torch.zeros(2, 1, 2, 2, 2), torch.zeros(2, 1, 2, 2, 2)
    prediction[0], prediction[1] = 1.0, 3.0
    hidden = torch.zeros(2, 2, 2, 2, dtype=torch.bool)
    hidden[0, 0, 0, 0], hidden[1] = True, True
    assert masked_l1(prediction, view, hidden).item() == pytest.approx(2.0)
    hidden[1] = False
    assert masked_l1(prediction, view, hidden).item() == pytest.approx(0.5)
    units = torch.tensor([[True, False, False], [True, True, True]])
    targets, logits = torch.eye(4), torch.tensor([[2.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0], [0, 0, 0, 1.0]])
    rows = -torch.log_softmax(logits, dim=1).diagonal()
    assert cross_entropy(targets, logits, 1.0, weight_rows(units)).item() == pytest.approx(
        ((rows[0] + rows[1:].mean()) / 2).item(), rel=1e-6
    )


def test_boxes_are_mirrored_as_their_views_are():
    settings = ViewSettings(side=32, flip=0.5)
    boxes = torch.stack([_place([0, 3, 5], [30, 32, 20])] * 16)
    views = find_inside_voxels(boxes, torch.zeros(16, 32, 32, 32, dtype=torch.bool)).float()[:, None]
    mirrored = augment_views(views, settings, 1, 2, range(16))
    ours = find_inside_voxels(mirror_boxes(boxes, 32, settings, 1, 2, range(16)), torch.zeros(16, 32, 32, 32, dtype=torch.bool))
    assert torch.equal(ours, mirrored[:, 0].bool())
    assert not torch.equal(mirrored, views)


def test_what_stands_in_the_padding_changes_neither_masks_nor_the_restored_voxels():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        projectors = ProjectorShape(names=(), hidden=16, bottleneck=8, prototypes=12)
        student = Network(SwinShape(embed=8, depths=(1, 1, 1, 1), heads=(1, 2, 2, 4)), SemanticShape(heads=2), projectors)
        teacher = copy_student(student)
        pair = ViewPair(
            views=torch.rand(1, 2, 1, 64, 64, 64),
            masking=torch.rand(1, 2, 64, 8),
            noise=torch.rand(1, 2, 64),
            drop_path=torch.ones(8, 1, 2),
            inside=torch.tensor([[[[0, 0, 0], [64, 64, 40]], [[0, 0, 0], [64, 64, 64]]]]),
        )
    method = Method(
        masking=MASKINGS["random"],
        shares=SHARES,
        needs_attention=False,
        attention_from="clean",
        noise=0.0,
        granularity="unit",
        weights={"amip": 1.0},
        student_temperature=0.1,
        symmetric=True,
    )
    masked = teacher_forward(teacher, pair, method).masked
    assert not masked[0, 0].view(4, 4, 4)[:, :, 3].any()
    assert masked[0, 0].sum() == 33 - 4
    student.reconstruction.start_at(0.5)
    torch.nn.init.zeros_(student.reconstruction.linear.weight)
    other = pair.views.clone()
    other[0, 0, 0, :, :, 40:] = 0.123
    errors = [
        accumulate_gradients(student, teacher, [p], method, Targets(TargetRules(), 12, ()), 0.04).parts["amip"].item()
        for p in (pair, replace(pair, views=other))
    ]
    assert errors[0] == errors[1]
