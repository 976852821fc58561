"""Proves the decoder's layers for a CPU against torch's own: values and gradients, float64 to rounding, float32 as far off."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from dagman.tasks.segment import channels_last, unet
from dagman.tasks.segment.unet import Decoder

CHANNELS = (24, 48, 96, 192)


def _run(decoder: Decoder, sides: tuple[int, int, int], dtype: torch.dtype) -> dict[str, Tensor]:
    """Logits of a view and its maps, and the gradients of everything, as float64."""
    torch.manual_seed(1)
    view = torch.rand(2, 1, *sides)
    maps = [torch.randn(2, n, *(side >> (i + 2) for side in sides)) for i, n in enumerate(CHANNELS)]
    decoder = copy.deepcopy(decoder).to(dtype)
    features = [one.to(dtype).requires_grad_() for one in maps]
    inputs = [one.clone() for one in features]
    for one in inputs:
        one.retain_grad()
    logits = decoder(view.to(dtype), inputs)
    (logits * torch.randn(logits.shape).to(dtype)).sum().backward()
    with torch.inference_mode():
        torch.testing.assert_close(decoder(view.to(dtype), features), logits, rtol=0, atol=0 if dtype == torch.float64 else 1e-5)
    found = {"logits": logits.detach(), **{f"map {i}": one.grad for i, one in enumerate(inputs)}}
    found |= {name: value.grad for name, value in decoder.named_parameters()}
    return {name: value.double() for name, value in found.items() if value is not None}


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(CHANNELS, 4)
    with torch.no_grad():
        for value in decoder.parameters():
            if value.dim() == 1:
                value.uniform_(0.5, 1.5)
    return decoder


@pytest.mark.parametrize("pairs", [True, False])
def test_values_and_gradients_are_those_of_torchs_layers(decoder, monkeypatch, pairs):
    monkeypatch.setattr(channels_last, "fills_vectors", lambda: pairs)
    sides = (32, 64, 32)
    with monkeypatch.context() as patch:
        patch.setattr(unet, "takes_channels_last", lambda x: False)
        wanted = _run(decoder, sides, torch.float64)
    monkeypatch.setattr(unet, "takes_channels_last", lambda x: True)
    found = _run(decoder, sides, torch.float64)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-10 * float(value.abs().max()), msg=name)


def test_float32_is_as_exact_as_torchs_layers(decoder, monkeypatch):
    sides = (32, 32, 32)
    found = _run(decoder, sides, torch.float32)["logits"]
    monkeypatch.setattr(unet, "takes_channels_last", lambda x: False)
    wanted, exact = (_run(decoder, sides, dtype)["logits"] for dtype in (torch.float32, torch.float64))
    assert float((found - exact).abs().max()) < 2 * float((wanted - exact).abs().max()) + 1e-6


def test_a_norm_keeps_its_digits_where_the_mean_is_large(monkeypatch):
    layer = torch.nn.Conv3d(1, 8, 3, padding=1, bias=False)
    norm = torch.nn.InstanceNorm3d(8, affine=True)
    x = 1000 + torch.rand(1, 1, 16, 16, 16)
    exact = torch.nn.functional.leaky_relu(copy.deepcopy(norm).double()(copy.deepcopy(layer).double()(x.double())), 0.01)
    found = channels_last.convolve(x, layer, norm, 0.01)
    # Padding gives the border values far from the rest; float32 keeps 1e-4 of such a convolution's own values.
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-3)


def test_other_devices_types_and_traced_graphs_keep_torchs_layers():
    assert channels_last.takes_channels_last(torch.zeros(1))
    assert not channels_last.takes_channels_last(torch.zeros(1, dtype=torch.float64))
    assert not channels_last.takes_channels_last(torch.zeros(1, device="meta"))
