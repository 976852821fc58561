"""Proves semantic attention against torch's own multi-head attention in float64, and the short way to Att against the long one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dagman.errors import SettingsError
from dagman.model import SemanticAttention
from dagman.model.semantic_attention import GlobalBlock, encode_positions


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 24, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def block_by_torch(block: GlobalBlock, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    oracle = nn.MultiheadAttention(z.shape[-1], block.heads, batch_first=True, dtype=z.dtype)
    weights = {"in_proj_weight": block.qkv.weight, "in_proj_bias": block.qkv.bias}
    oracle.load_state_dict(weights | {"out_proj.weight": block.proj.weight, "out_proj.bias": block.proj.bias})
    normed = block.norm1(z)
    attended, probabilities = oracle(normed, normed, normed, average_attn_weights=False)
    z = z + attended
    return z + block.mlp(block.norm2(z)), probabilities


@pytest.mark.parametrize("depth", [1, 2])
def test_tokens_cls_and_attention_equal_torchs_own(x: torch.Tensor, depth: int):
    module = SemanticAttention(24, heads=4, depth=depth).double()
    with torch.no_grad():
        got = module(x)
        tokens = module.norm(x.flatten(2).transpose(1, 2))
        z = torch.cat([tokens, module.cls.expand(2, 1, -1)], dim=1)
        for block in module.blocks:
            z, probabilities = block_by_torch(block, z)
    assert torch.allclose(got.tokens, z[:, :-1], atol=1e-12)
    assert torch.allclose(got.cls, z[:, -1], atol=1e-12)
    assert torch.allclose(got.attention, probabilities[:, :, -1, :-1], atol=1e-12)
    assert torch.all(got.attention.sum(-1) < 1)


@pytest.mark.parametrize("position", ["none", "sincos"])
def test_the_short_way_gives_the_same_attention(x: torch.Tensor, position: str):
    module = SemanticAttention(24, position=position).double()
    assert torch.equal(module.attend(x), module(x).attention)


def test_attention_tells_units_apart_in_bfloat16_where_all_keys_share_much():
    torch.manual_seed(0)
    module = SemanticAttention(24, heads=4, depth=1)
    units = torch.randn(1, 24, 8, 8, 8)
    with torch.no_grad():
        module.blocks[0].qkv.bias[:48] = 3.0  # logits near 9 for every key, where bfloat16's step is 1/16
        with torch.autocast("cpu", torch.bfloat16):
            attention = module.attend(units)
        exact = module.attend(units)
    assert attention.dtype == torch.float32
    assert len(attention.mean(dim=1).unique()) > 500
    torch.testing.assert_close(attention, exact, rtol=0.1, atol=0)


def test_a_units_place_counts_only_with_position_codes(x: torch.Tensor):
    flipped = x.flip(2, 3, 4)
    for position, equivariant in (("none", True), ("sincos", False)):
        module = SemanticAttention(24, position=position).double()
        there_and_back = module.attend(flipped).flip(-1)
        assert torch.allclose(there_and_back, module.attend(x), atol=1e-12) is equivariant


def test_position_codes_differ_between_units_and_leave_odd_channels_zero():
    codes = encode_positions((3, 4, 5), 20)
    assert codes.shape == (60, 20)
    assert len(codes.unique(dim=0)) == 60
    assert not codes[:, 18:].any()


def test_attention_is_float32_under_autocast_and_close():
    module = SemanticAttention(24)
    x = torch.randn(1, 24, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        fine = module(x)
        with torch.autocast("cpu", torch.bfloat16):
            coarse = module(x)
    assert coarse.attention.dtype == torch.float32
    assert (coarse.attention - fine.attention).abs().max() < 0.02 * fine.attention.max()
    assert (coarse.cls.float() - fine.cls).norm() < 0.02 * fine.cls.norm()


def test_a_gradient_reaches_every_parameter(x: torch.Tensor):
    module = SemanticAttention(24).double()
    module(x).cls.square().sum().backward()
    assert [name for name, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_wrong_sizes_are_refused_in_words():
    with pytest.raises(SettingsError, match="7 heads of semantic attention do not divide 24 channels"):
        SemanticAttention(24, heads=7)
    with pytest.raises(SettingsError, match="at least one block"):
        SemanticAttention(24, depth=0)


@pytest.mark.parametrize("depth", [1, 2])
def test_the_summary_is_the_cls_token_of_the_whole_module_with_its_gradients(depth):
    module = SemanticAttention(16, heads=4, depth=depth).double()
    x = torch.randn(2, 16, 2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    gradients = []
    for cls in (module(x).cls, module.summarize(x)):
        gradients.append((cls, *torch.autograd.grad(cls.square().sum(), [x, *module.parameters()])))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
