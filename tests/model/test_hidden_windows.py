"""Proves that a first block which passes hidden windows as one gives the maps and every gradient of one that computes them all."""

from __future__ import annotations

import pytest
import torch

from dagman.errors import SettingsError
from dagman.model import SwinEncoder, SwinShape

SHAPE = SwinShape(embed=8, depths=(2, 1), heads=(2, 2))


def _measure(encoder: SwinEncoder, drop: torch.Tensor | None) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(3)
    units = torch.rand(3, 2, 2, 1, generator=random) > 0.4
    # The first view shows all, the second nothing.
    units[0], units[1] = False, True
    hidden = units
    for axis in (1, 2, 3):
        hidden = hidden.repeat_interleave(8, dim=axis)
    views = torch.rand(3, 1, 32, 32, 16, generator=random)
    encoder.zero_grad()
    maps = encoder(views, hidden, drop, visible=int((~hidden).sum()))
    sum(x.square().mean() for x in maps).backward()
    return [*maps, *(p.grad.clone() for p in encoder.parameters())]


@pytest.mark.parametrize("fill", ["zero", "token"])
@pytest.mark.parametrize("drops", [True, False])
def test_maps_and_gradients_are_those_of_all_windows_computed(fill, drops):
    torch.manual_seed(0)
    encoder = SwinEncoder(SHAPE, mask_fill=fill)
    if encoder.mask_token is not None:
        torch.nn.init.normal_(encoder.mask_token)
    # Some branches are left out for some views.
    drop = torch.rand(SHAPE.branches, 3) * 0.2 if drops else None
    passed = []
    encoder.stages[0].blocks[0].register_forward_pre_hook(lambda module, inputs: passed.append(inputs[0][..., 0].numel()))
    whole = _measure(encoder, drop)
    encoder.skip_hidden()
    skipping = _measure(encoder, drop)
    for ours, theirs in zip(skipping, whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert passed[1] < passed[0]


def test_windows_that_do_not_lie_in_units_are_refused():
    with pytest.raises(SettingsError, match="windows of 6 patch tokens do not lie in units of 8"):
        SwinEncoder(SwinShape(window=6)).skip_hidden()
