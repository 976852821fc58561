"""The monitors equal what is known in closed form: collapse, uniform targets, perfect prediction, ramps, ranks, attention."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from scipy.stats import entropy as entropy_of
from scipy.stats import spearmanr

from dagman.model.swin import StageAttention
from dagman.training.monitoring.monitors import (
    average_units,
    fill_from_visible,
    measure_attention,
    measure_cls_heads,
    measure_features,
    measure_reconstruction,
    measure_targets,
    measure_window_heads,
)

TAU = 0.1


def _predict(targets: torch.Tensor) -> torch.Tensor:
    """Logits of a student that answers exactly the targets."""
    return TAU * targets.clamp_min(1e-12).log()


def test_uniform_targets_have_full_entropy_and_tell_nothing_apart():
    targets = torch.full((6, 16), 1 / 16)
    found = measure_targets(targets, torch.randn(6, 16, generator=torch.Generator().manual_seed(0)), TAU)
    assert found["H"] == pytest.approx(1)
    assert found["Hx"] == pytest.approx(1)
    assert found["MI"] == pytest.approx(0, abs=1e-6)
    assert found["gain"] == 0
    assert found["ln_k"] == pytest.approx(math.log(16))


def test_collapsed_targets_have_no_entropy_of_either_kind():
    targets = torch.eye(16)[[3] * 6]
    found = measure_targets(targets, _predict(targets), TAU)
    assert [found[key] for key in ("H", "Hx", "MI", "gain", "ce")] == pytest.approx([0] * 5, abs=1e-6)


@pytest.mark.parametrize(("rows", "prototypes"), [(4, 16), (16, 16), (32, 16)])
def test_one_hot_targets_spread_over_prototypes_tell_all_apart(rows, prototypes):
    targets = torch.eye(prototypes)[torch.arange(rows) % prototypes]
    found = measure_targets(targets, _predict(targets), TAU)
    assert found["H"] == 0
    assert found["Hx"] == pytest.approx(math.log(min(rows, prototypes)) / math.log(prototypes))
    assert found["MI"] == pytest.approx(1)
    assert found["gain"] == pytest.approx(1, abs=1e-6)


def test_gain_is_one_for_the_targets_themselves_and_zero_for_their_mean():
    targets = torch.softmax(3 * torch.randn(9, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    mean = targets.mean(dim=0, keepdim=True).expand_as(targets)
    assert measure_targets(targets, _predict(targets), TAU)["gain"] == pytest.approx(1, abs=1e-5)
    assert measure_targets(targets, _predict(mean), TAU)["gain"] == pytest.approx(0, abs=1e-5)
    assert measure_targets(targets, _predict(targets.flip(1)), TAU)["gain"] < 0


def test_targets_in_general_equal_the_formulas_in_float64():
    random = np.random.default_rng(0)
    targets, logits = random.dirichlet(np.full(10, 0.3), size=7), random.normal(size=(7, 10))
    found = measure_targets(torch.tensor(targets).float(), torch.tensor(logits).float(), TAU)
    mean_entropy, entropy_of_mean = entropy_of(targets, axis=1).mean(), entropy_of(targets.mean(axis=0))
    cross = -(targets * log_softmax(logits / TAU, axis=1)).sum(axis=1).mean()
    assert found["MI"] == pytest.approx((entropy_of_mean - mean_entropy) / math.log(7), rel=1e-5)
    assert found["gain"] == pytest.approx((entropy_of_mean - cross) / (entropy_of_mean - mean_entropy), rel=1e-4)
    assert found["ce"] == pytest.approx(cross, rel=1e-5)


def _hide(side: int, share: float, seed: int = 0) -> torch.Tensor:
    """Units of 16 voxels hidden at random, on voxels."""
    units = torch.rand(2, *(side // 16,) * 3, generator=torch.Generator().manual_seed(seed)) < share
    for axis in (1, 2, 3):
        units = units.repeat_interleave(16, dim=axis)
    return units


@pytest.mark.parametrize("side", [32, 64, 96])
def test_push_pull_leaves_visible_voxels_and_fills_a_constant_exactly(side):
    view = torch.rand(2, 1, side, side, side, generator=torch.Generator().manual_seed(1))
    hidden = _hide(side, 0.6)
    filled = fill_from_visible(view, hidden)
    assert torch.equal(filled[~hidden[:, None]], view[~hidden[:, None]])
    torch.testing.assert_close(fill_from_visible(torch.full_like(view, 0.3), hidden), torch.full_like(view, 0.3))
    assert filled.min() >= 0
    assert filled.max() <= 1


def test_push_pull_continues_a_ramp_better_than_the_visible_mean():
    ramp = torch.linspace(0, 1, 64)[None, None, :, None, None].expand(2, 1, 64, 64, 64)
    found = measure_reconstruction({"student": ramp}, ramp, _hide(64, 0.6), 0.5)
    assert found["push_pull"] < 0.5 * min(found["visible_mean"], found["training_median"])
    assert found["best"] == found["push_pull"]
    assert (found["student"], found["ratio"]) == (0, 0)


def test_push_pull_sees_every_voxel_of_an_odd_side():
    # 48 voxels: 48, 24, 12, 6, 3: the only visible unit is the last one.
    view = torch.zeros(1, 1, 48, 48, 48)
    view[..., 32:, 32:, 32:] = 0.8
    hidden = torch.ones(1, 48, 48, 48, dtype=torch.bool)
    hidden[..., 32:, 32:, 32:] = False
    torch.testing.assert_close(fill_from_visible(view, hidden), torch.full_like(view, 0.8))


def test_push_pull_does_not_see_what_is_hidden():
    view, hidden = torch.rand(2, 1, 64, 64, 64, generator=torch.Generator().manual_seed(1)), _hide(64, 0.6)
    changed = torch.where(hidden[:, None], torch.rand_like(view), view)
    assert torch.equal(fill_from_visible(changed, hidden), fill_from_visible(view, hidden))


def test_reconstruction_is_measured_on_masked_voxels_against_the_best_trivial_baseline():
    random = torch.Generator().manual_seed(2)
    view, answer = (torch.rand(2, 1, 32, 32, 32, generator=random) for _ in range(2))
    hidden = _hide(32, 0.5)
    found = measure_reconstruction({"student": answer}, view, hidden, 0.4)
    v, a, h = view[:, 0].double().numpy(), answer[:, 0].double().numpy(), hidden.numpy()
    means = np.array([v[i][~h[i]].mean() for i in range(2)])[:, None, None, None]
    assert found["student"] == pytest.approx(np.abs(a - v)[h].mean(), rel=1e-5)
    assert found["visible_mean"] == pytest.approx(np.abs(v - means)[h].mean(), rel=1e-5)
    assert found["training_median"] == pytest.approx(np.abs(v - 0.4)[h].mean(), rel=1e-5)
    assert found["best"] == min(found["visible_mean"], found["training_median"], found["push_pull"])
    assert found["ratio"] == pytest.approx(found["student"] / found["best"])


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_effective_rank_of_equal_directions_is_their_number(rank):
    basis = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))[0][:rank]
    features = torch.cat([basis, -basis])
    assert measure_features(features)["effective_rank"] == pytest.approx(rank, rel=1e-4)


def test_effective_rank_and_deviation_of_unequal_directions_follow_the_formula():
    features = torch.tensor([[3.0, 0], [-3, 0], [0, 1], [0, -1]])
    found = measure_features(features)
    assert found["effective_rank"] == pytest.approx(math.exp(entropy_of([3, 1])))
    assert found["std"] == pytest.approx(np.std(features.numpy(), axis=0, ddof=1).mean())
    assert measure_features(torch.ones(5, 3))["std"] == 0


def test_attention_is_compared_with_brightness_by_ranks_with_ties():
    random = np.random.default_rng(0)
    attention, brightness = random.dirichlet(np.ones(27), size=3), random.random((3, 27))
    brightness[:, :12] = 0  # air
    found = measure_attention(torch.tensor(0.9 * attention).float(), torch.tensor(brightness).float())
    assert found["brightness"] == pytest.approx(
        np.mean([spearmanr(a, b).statistic for a, b in zip(attention, brightness, strict=True)]), abs=1e-5
    )
    assert found["entropy"] == pytest.approx(np.mean(entropy_of(attention, axis=1)) / math.log(27), rel=1e-5)
    body = brightness > 1 / 30
    assert found["body_share"] == pytest.approx((attention * body).sum(axis=1).mean(), rel=1e-5)
    assert found["body_units"] == pytest.approx(body.mean())


def test_uniform_attention_has_full_entropy_and_no_order():
    brightness = torch.linspace(0, 1, 8)[None]
    found = measure_attention(torch.full((1, 8), 1 / 9), brightness)
    assert found["entropy"] == pytest.approx(1)
    assert found["brightness"] == 0
    assert found["body_share"] == pytest.approx(found["body_units"])
    assert measure_attention(brightness + 0.01, brightness)["brightness"] == pytest.approx(1)
    assert measure_attention(1.01 - brightness, brightness)["brightness"] == pytest.approx(-1)


def test_units_are_averaged_in_the_order_of_their_grid():
    view = torch.arange(8.0).reshape(1, 1, 2, 2, 2).repeat_interleave(16, 2).repeat_interleave(16, 3).repeat_interleave(16, 4)
    assert average_units(view, 16).tolist() == [list(range(8))]


_PLACES = torch.tensor([[0.0, 0, 0], [2, 0, 0], [0, 2, 0], [2, 2, 0]])


def _watch(probabilities: torch.Tensor, valid: torch.Tensor | None = None) -> dict[str, float]:
    """Heads of one window of four places two voxels apart, at 3 mm a voxel."""
    valid = torch.ones(len(probabilities), 4, dtype=torch.bool) if valid is None else valid
    return measure_window_heads(StageAttention(probabilities=probabilities, positions=_PLACES, valid=valid), 3.0)


def test_heads_that_look_at_themselves_have_no_entropy_and_no_reach():
    found = _watch(torch.eye(4).expand(2, 3, 4, 4))
    assert list(found.values()) == [0, 0, 0, 0, 0]


def test_heads_that_look_everywhere_have_the_entropy_of_the_window_and_its_mean_distance():
    found = _watch(torch.full((2, 3, 4, 4), 0.25))
    assert found["entropy"] == pytest.approx(math.log(4))
    assert found["distance_mm"] == pytest.approx(3 * (0 + 2 + 2 + math.sqrt(8)) / 4)
    assert (found["entropy_spread"], found["distance_spread"]) == (0, 0)
    assert found["js"] == pytest.approx(0, abs=1e-6)


def test_heads_that_look_at_different_places_diverge_by_the_logarithm_of_their_number():
    one_hot = torch.stack([torch.eye(4)[[place] * 4] for place in range(4)])[None]
    found = _watch(one_hot)
    assert found["entropy"] == 0
    assert found["js"] == pytest.approx(math.log(4))


def test_heads_that_differ_show_their_spread():
    near, wide = torch.eye(4), torch.full((4, 4), 0.25)
    found = _watch(torch.stack([near, wide])[None])
    assert found["entropy"] == pytest.approx(math.log(4) / 2)
    assert found["entropy_spread"] == pytest.approx(math.log(4) / 2)
    assert found["js"] == pytest.approx(entropy_of([0.625, 0.125, 0.125, 0.125]) - math.log(4) / 2, rel=1e-5)


def test_padded_queries_are_left_out():
    valid = torch.tensor([[True, True, False, False]])
    probabilities = torch.eye(4)[None, None].clone()
    probabilities[0, 0, 2:] = 0.25
    assert _watch(probabilities, valid)["entropy"] == 0
    assert _watch(probabilities)["entropy"] == pytest.approx(math.log(4) / 2)


def test_cls_heads_are_measured_about_their_own_centroid():
    everywhere, somewhere = torch.full((1, 1, 4), 0.2), torch.tensor([[[0.0, 0.9, 0, 0]]])
    places = 3 * _PLACES
    found = measure_cls_heads(everywhere, places)
    assert found["entropy"] == pytest.approx(math.log(4))
    assert found["distance_mm"] == pytest.approx(3 * math.sqrt(2))
    found = measure_cls_heads(somewhere, places)
    assert (found["entropy"], found["distance_mm"]) == (0, pytest.approx(0, abs=1e-3))
    both = measure_cls_heads(torch.eye(4)[None, :2], places)
    assert both["js"] == pytest.approx(math.log(2))


def test_autocast_rounds_no_monitor():
    random = torch.Generator().manual_seed(0)
    attention, places = torch.rand(3, 2, 64, generator=random), 120 * torch.rand(64, 3, generator=random)
    view, hidden = torch.rand(2, 1, 8, 8, 8, generator=random), torch.rand(2, 8, 8, 8, generator=random) < 0.5
    window = StageAttention(
        probabilities=torch.rand(4, 2, 8, 8, generator=random).softmax(dim=-1),
        positions=torch.cartesian_prod(*[torch.tensor([1.0, 33.0])] * 3),
        valid=torch.ones(2, 8, dtype=torch.bool),
    )

    def watch() -> list[dict[str, float]]:
        return [
            measure_cls_heads(attention, places),
            measure_window_heads(window, 1.7),
            measure_attention(attention[:, 0], attention[:, 1]),
            measure_features(attention[0]),
            measure_reconstruction({"student": 1 - view}, view, hidden, 0.4),
            measure_targets(attention[0].softmax(dim=-1), attention[1], TAU),
        ]

    plain = watch()
    with torch.autocast("cpu", torch.bfloat16):
        assert watch() == plain
