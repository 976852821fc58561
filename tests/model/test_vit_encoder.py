"""The plain ViT: what it masks, where its tokens stand, what its [CLS] token attends to, and what is computed again."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dagman.errors import SettingsError
from dagman.model import ViTEncoder, ViTShape
from dagman.model.backbone import is_decayed
from dagman.model.vit import interpolate_positions

SHAPE = ViTShape(embed=24, depths=(1, 1, 1, 1), heads=(3, 3, 3, 3), view=64)


@pytest.fixture
def vit():
    torch.manual_seed(0)
    return ViTEncoder(SHAPE, mask_fill="token").eval()


def test_attention_is_the_softmax_of_the_formula(vit):
    view = torch.rand(2, 1, 64, 32, 48)
    encoded = vit.encode(view)
    last = vit.stages[3][0]
    q, k, _ = last.qkv(last.norm1(encoded.entering)).unflatten(-1, (3, 3, 8)).permute(2, 0, 3, 1, 4)
    rows = torch.softmax(q[:, :, -1:] @ k.transpose(-2, -1) / 8**0.5, dim=-1)[:, :, 0]
    assert torch.allclose(rows.sum(dim=-1), torch.ones(2, 3))
    for attention in (vit.attend(view), vit.attend_encoded(encoded)):
        assert attention.shape == (2, 3, 4 * 2 * 3)
        assert torch.allclose(attention, rows[..., :-1], atol=1e-6)


def test_a_unit_that_is_masked_is_not_seen_and_one_that_is_partly_masked_is(vit):
    view = torch.rand(1, 1, 33, 32, 32)  # the last of its three tokens along x is one voxel thick
    hidden = torch.zeros(1, 17, 16, 16, dtype=torch.bool)
    other = view.clone()
    other[:, :, 32:, :16, :16] += 1
    assert torch.equal(vit(view, hidden)[3], vit(view)[3])
    hidden[:, 16, :8, :8] = True
    assert torch.equal(vit(view, hidden)[3], vit(other, hidden)[3])
    hidden[:, 16, 0, 0] = False
    assert torch.equal(vit(view, hidden)[3], vit(view)[3])
    with pytest.raises(ValueError, match="has the grid"):
        vit(view, hidden[:, :8])


def test_a_masked_token_is_the_learned_one_at_its_own_place(vit):
    nn.init.normal_(vit.mask_token)
    hidden = torch.ones(1, 32, 32, 32, dtype=torch.bool)
    tokens, grid = vit._embed(torch.rand(1, 1, 64, 64, 64), hidden)
    wanted = (vit.mask_token[:, None, None, None] + vit.positions).flatten(1).T
    assert grid == (4, 4, 4)
    assert torch.equal(tokens[0, :-1], wanted)
    vit.mask_fill = "zero"
    assert torch.equal(vit._embed(torch.rand(1, 1, 64, 64, 64), hidden)[0][0, :-1], vit.positions.flatten(1).T)


def test_positions_of_another_view_are_those_of_the_same_place():
    # A position that is linear in the place stays so, but for the outer half cells, which are continued.
    places = (torch.arange(4.0) + 0.5) / 4
    table = torch.stack(torch.meshgrid(places, places, places, indexing="ij"))
    assert interpolate_positions(table, (4, 4, 4)) is table
    finer = interpolate_positions(table, (8, 4, 2))
    wanted = ((torch.arange(8.0) + 0.5) / 8).clamp(1 / 8, 7 / 8)
    assert torch.allclose(finer[0, :, 0, 0], wanted)
    assert torch.allclose(finer[1, 0, :, 0], places)


def test_what_is_computed_again_has_the_same_gradients(vit):
    again = copy.deepcopy(vit)
    again.recompute(2)
    view, drop = torch.rand(2, 1, 32, 32, 32), torch.rand(vit.branches, 2)
    for network in (vit.train(), again.train()):
        sum(x.square().mean() for x in network(view, drop=drop)).backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(vit.parameters(), again.parameters(), strict=True) if a.grad is not None)


def test_a_dropped_branch_leaves_the_tokens_as_they_were(vit):
    view = torch.rand(1, 1, 32, 32, 32)
    drop = torch.ones(vit.branches, 1)
    drop[-2:] = 0.0  # below the last block's rate
    encoded = vit.encode(view, drop=drop)
    assert torch.equal(encoded.maps[3], encoded.maps[2])
    with pytest.raises(ValueError, match="residual branches"):
        vit(view, drop=drop[1:])


def test_positions_and_tokens_are_not_decayed(vit):
    plain = {name for name, parameter in vit.named_parameters() if not is_decayed(name, parameter)}
    assert {"cls", "mask_token", "positions"} <= plain
    assert "patch_projection.weight" not in plain


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"heads": (2, 3, 3, 3)}, "same number of heads in every stage"),
        ({"heads": (5, 5, 5, 5)}, "5 heads do not divide"),
        ({"view": 40}, "not a multiple of a token's 16"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes, reason):
    with pytest.raises(SettingsError, match=reason):
        ViTShape(**{"embed": 24, "depths": (1, 1, 1, 1), "heads": (3, 3, 3, 3), "view": 64, **changes})
