"""Proves the heads' formulas: cosines to prototypes, the plain linear form, voxels where their token stands; and HU to [0, 1]."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dagman.errors import SettingsError
from dagman.model import Projector, ReconstructionHead, to_unit_range
from dagman.model.intensity import to_unit_ranges


@pytest.mark.parametrize("layers", [2, 3])
def test_logits_are_cosines_to_the_prototypes(layers: int):
    head = Projector(10, hidden=16, bottleneck=8, prototypes=20, layers=layers).double()
    x = torch.randn(4, 5, 10, dtype=torch.float64)
    logits = head(x)
    bottleneck = head.mlp(head.norm(x))
    assert torch.allclose(logits, F.cosine_similarity(bottleneck[..., None, :], head.last.weight, dim=-1))
    assert sum(isinstance(step, torch.nn.Linear) for step in head.mlp) == layers


def test_the_length_of_a_prototype_has_no_say():
    head = Projector(10, hidden=16, bottleneck=8, prototypes=20)
    x = torch.randn(3, 10)
    before = head(x)
    with torch.no_grad():
        head.last.weight *= torch.rand(20, 1) * 9 + 1
    assert torch.allclose(head(x), before, atol=1e-6)


def test_one_layer_is_a_norm_and_a_plain_linear_layer():
    head = Projector(10, prototypes=20, layers=1)
    x = torch.randn(3, 10)
    assert torch.allclose(head(x), F.linear(F.layer_norm(x, [10]), head.last.weight, head.last.bias))


@pytest.mark.parametrize("layers", [1, 3])
def test_logits_are_float32_under_autocast_and_every_parameter_learns(layers: int):
    head = Projector(10, hidden=16, bottleneck=8, prototypes=20, layers=layers)
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(torch.randn(6, 10))
    assert logits.dtype == torch.float32
    logits.softmax(-1).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in head.parameters())
    assert {id(p) for p in head.last_layer_parameters()} == {id(p) for p in head.last.parameters()}


def test_a_projector_without_layers_is_refused():
    with pytest.raises(SettingsError, match="a projector of 0 layers"):
        Projector(10, layers=0)


def test_each_token_restores_the_voxels_it_stands_for():
    head = ReconstructionHead(6, patch=4, std=0.1)
    x = torch.randn(2, 6, 2, 3, 1)
    with torch.no_grad():
        restored = head(x)
        for i, j in ((0, 0), (1, 2)):
            token = F.layer_norm(x[:, :, i, j, 0], [6])
            block = head.linear(token).reshape(2, 4, 4, 4)
            assert torch.allclose(restored[:, 0, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4], block, atol=1e-6)
    assert restored.shape == (2, 1, 8, 12, 4)


def test_the_first_answer_is_the_mean_intensity():
    restored = ReconstructionHead(192, mean=0.3)(torch.randn(1, 192, 2, 2, 2))
    assert (restored - 0.3).abs().max() < 0.2
    assert (restored - 0.3).abs().mean() < 0.03


def test_an_intensity_range_maps_its_ends_to_zero_and_one_and_clamps():
    hu = torch.tensor([-3024, -1000, -250, 500, 3000], dtype=torch.int16)
    assert to_unit_range(hu, -1000, 500).tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
    with pytest.raises(SettingsError, match=r"from 5.0 to 5.0 is empty"):
        to_unit_range(hu, 5.0, 5.0)


def test_each_view_may_have_a_range_of_its_own():
    stored = torch.randint(-1000, 1000, (2, 1, 3, 3, 3), dtype=torch.int16)
    got = to_unit_ranges(stored, torch.tensor([[-1000.0, 500.0], [0.0, 900.0]]))
    assert torch.equal(got, torch.stack([to_unit_range(stored[0], -1000.0, 500.0), to_unit_range(stored[1], 0.0, 900.0)]))
