"""Proves that every backbone offers what others rely on: strides, widths, layers in order, masks or a refusal."""

from __future__ import annotations

import pytest
import torch

from dagman.errors import EncoderError
from dagman.model import BACKBONES, SwinShape, build_backbone, register_backbone

TINY = SwinShape(embed=8, depths=(1, 1, 2, 1), heads=(1, 2, 2, 4))
NAMES = ["swin", "resnet3d:10", "monai-swin", "monai-swin:merging"]


@pytest.fixture(params=NAMES)
def named(request):
    name = request.param
    if name != "swin":
        pytest.importorskip("monai")
    kind = BACKBONES[name.partition(":")[0]]
    shape = kind.baselines.get(name.partition(":")[2], TINY)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind, build_backbone(name, shape).eval()


def test_the_maps_have_the_widths_and_strides_announced(named):
    _, backbone = named
    maps = backbone(torch.rand(1, 1, 64, 32, 32))
    for x, width, stride in zip(maps, backbone.widths, backbone.strides, strict=True):
        assert x.shape == (1, width, 64 // stride, 32 // stride, 32 // stride)
    assert len(backbone(torch.rand(1, 1, 32, 32, 32), stages=2)) == 2


def test_the_layers_hold_every_parameter_once_and_in_order(named):
    _, backbone = named
    layers = backbone.layers()
    listed = [id(p) for layer in layers for p in layer]
    assert sorted(listed) == sorted(id(p) for p in backbone.parameters())
    # The loss of a map reaches the layers below it and no other: so they stand in the order of the forward pass.
    backbone(torch.rand(1, 1, 32, 32, 32), stages=2)[1].sum().backward()
    reached = [any(p.grad is not None for p in layer) for layer in layers]
    assert reached == sorted(reached, reverse=True)
    assert any(reached)
    assert not all(reached)


def test_a_backbone_takes_masks_or_says_why_not(named):
    kind, backbone = named
    view, hidden = torch.rand(1, 1, 32, 32, 32), torch.zeros(1, 16, 16, 16, dtype=torch.bool)
    if not kind.mask_fills:
        assert kind.no_masks
        with pytest.raises(ValueError, match="no masks"):
            backbone(view, hidden)
        return
    assert torch.equal(backbone(view, hidden)[3], backbone(view)[3])
    hidden[:, :8] = True
    other = view.clone()
    other[:, :, :16] = torch.rand(1, 1, 16, 32, 32)
    # What is masked is not seen.
    assert torch.equal(backbone(view, hidden)[0], backbone(other, hidden)[0])
    assert not torch.equal(backbone(view, hidden)[0], backbone(view)[0])


def test_a_forward_pass_draws_no_random_number(named):
    _, backbone = named
    before = torch.random.get_rng_state()
    backbone.train()(torch.rand(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", ["swim", "resnet3d:11", "monai-swin:v3"])
def test_an_unknown_backbone_names_those_there_are(name):
    with pytest.raises(EncoderError, match=rf"there is no backbone '{name}'\. Use "):
        build_backbone(name, TINY)


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="registered already"):
        register_backbone("swin", BACKBONES["swin"])
