"""Maskings hide exactly what they say, hints come from the most attended, and every draw is a pure function of its address."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dagman.method.masking import DRAWS, MASKINGS, count_share, count_units, expand_units, rank_units
from dagman.method.noise import count_noise_draws, patch_dropout, share_dropped
from dagman.training.draws import draw_masking, draw_noise

GRIDS = [(4, 4, 4), (2, 2, 2), (3, 5, 2), (8, 8, 8), (1, 1, 1)]


def _attention(views: int, units: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(views, units, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", MASKINGS)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("ratio", "hints"), [(0.7, 0.1), (0.7, 0.0), (0.5, 0.2), (0.0, 0.0), (1.0, 0.0)])
def test_hidden_units_are_exactly_floor_rn_minus_floor_sn(kind, grid, ratio, hints):
    n = math.prod(grid)
    counts = count_units(n, ratio, hints)
    hidden = MASKINGS[kind](_attention(3, n), grid, counts, draw_masking(0, 1, range(3), n))
    wanted = math.floor(ratio * n + 1e-9) - math.floor(hints * n + 1e-9)
    assert hidden.dtype == torch.bool
    assert hidden.sum(dim=1).tolist() == [wanted] * 3


@given(st.integers(0, 2000), st.integers(0, 100))
def test_a_share_is_floored_as_on_paper(n, percent):
    assert count_share(percent / 100, n) == percent * n // 100


def test_hints_are_the_most_attended_and_the_rest_below_the_cut_stays_visible():
    n = 64
    attention = _attention(2, n)
    hidden = MASKINGS["attention-high"](attention, (4, 4, 4), count_units(n, 0.7, 0.1), draw_masking(0, 0, range(2), n))
    order = attention.argsort(dim=1, descending=True)
    for row, ranked in zip(hidden, order, strict=True):
        assert not row[ranked[:6]].any()
        assert row[ranked[6:44]].all()
        assert not row[ranked[44:]].any()


def test_a_wider_hint_pool_draws_hints_at_random_among_its_members():
    n = 64
    attention = _attention(1, n).expand(200, n)
    counts = count_units(n, 0.7, 0.1, hint_pool=0.5)
    hidden = MASKINGS["attention-high"](attention, (4, 4, 4), counts, draw_masking(0, 0, range(200), n))
    ranked = attention[0].argsort(descending=True)
    hints = Counter(int(unit) for row in hidden for unit in ranked[:44][~row[ranked[:44]]])
    assert set(hints) == set(ranked[:32].tolist())
    assert sum(hints.values()) == 200 * 6


def test_attention_low_hides_the_least_attended():
    n = 64
    attention = _attention(2, n)
    hidden = MASKINGS["attention-low"](attention, (4, 4, 4), count_units(n, 0.7, 0.1), draw_masking(0, 0, range(2), n))
    assert (attention[hidden].reshape(2, -1).amax(dim=1) < attention[~hidden].reshape(2, -1).amin(dim=1)).all()


@pytest.mark.parametrize("kind", ["attention-high", "attention-low", "random"])
def test_constant_attention_masks_uniformly(kind):
    n, views = 27, 4000
    constant = torch.full((views, n), 1 / n)
    hidden = MASKINGS[kind](constant, (3, 3, 3), count_units(n, 0.7, 0.1), draw_masking(3, 0, range(views), n))
    share = hidden.float().mean(dim=0)
    expected = 16 / 27
    assert (share - expected).abs().max() < 5 * math.sqrt(expected * (1 - expected) / views)


@pytest.mark.parametrize("kind", MASKINGS)
def test_a_batch_equals_element_by_element(kind):
    n, grid = 64, (4, 4, 4)
    attention, draws, counts = _attention(5, n), draw_masking(0, 7, range(5), n), count_units(n, 0.7, 0.1, 0.3)
    together = MASKINGS[kind](attention, grid, counts, draws)
    apart = torch.cat([MASKINGS[kind](attention[i : i + 1], grid, counts, draws[i : i + 1]) for i in range(5)])
    assert torch.equal(together, apart)


@pytest.mark.parametrize("kind", MASKINGS)
def test_an_address_decides_the_mask_and_another_address_changes_it(kind):
    n, counts = 64, count_units(64, 0.7, 0.1)
    flat = torch.full((4, n), 1 / n)

    def mask(seed, step):
        return MASKINGS[kind](flat, (4, 4, 4), counts, draw_masking(seed, step, range(4), n))

    assert torch.equal(mask(0, 1), mask(0, 1))
    assert not torch.equal(mask(0, 1), mask(0, 2))
    assert not torch.equal(mask(0, 1), mask(1, 1))


def test_block_masking_hides_connected_boxes_more_than_chance():
    n, grid = 512, (8, 8, 8)
    counts = count_units(n, 0.4, 0.0)
    draws = draw_masking(0, 0, range(8), n)

    def neighbours(hidden):
        volume = hidden.unflatten(1, grid)
        return (volume[:, 1:] == volume[:, :-1]).float().mean()

    block, random = (neighbours(MASKINGS[name](None, grid, counts, draws)) for name in ("block", "random"))
    assert block > random + 0.1


def test_attention_maskings_refuse_to_work_without_attention():
    with pytest.raises(ValueError, match="attention"):
        MASKINGS["attention-high"](None, (2, 2, 2), count_units(8, 0.7, 0.1), torch.rand(1, 8, DRAWS))


def test_ranking_is_a_permutation_from_high_to_low():
    attention = _attention(3, 30)
    ranked = rank_units(attention, draw_masking(0, 0, range(3), 30))
    assert torch.equal(ranked.sort(dim=1).values, torch.arange(30).expand(3, 30))
    assert (attention.gather(1, ranked).diff(dim=1) <= 0).all()


def test_units_expand_to_the_voxels_they_cover():
    hidden = torch.zeros(1, 8, dtype=torch.bool)
    hidden[0, 5] = True
    voxels = expand_units(hidden, (2, 2, 2), 16)
    assert voxels.shape == (1, 32, 32, 32)
    assert voxels[0, 16:, :16, 16:].all()
    assert voxels.sum() == 16**3


@pytest.mark.parametrize("granularity", ["unit", "patch"])
@pytest.mark.parametrize("share", [0.7, 0.25, 1.0])
def test_noise_drops_the_exact_share_and_each_view_its_own(granularity, share):
    grid = (2, 3, 4)
    count = count_noise_draws(grid, granularity)
    dropped = patch_dropout(draw_noise(0, 0, range(4), count), grid, share, granularity)
    exact = math.floor(share * count + 1e-9) / count
    assert torch.allclose(share_dropped(dropped), torch.full((4,), exact))
    if share < 1:
        assert not torch.equal(dropped[0], dropped[1])


def test_a_clean_teacher_drops_nothing():
    assert patch_dropout(draw_noise(0, 0, range(2), 8), (2, 2, 2), 0.0, "unit") is None
