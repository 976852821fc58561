"""Proves Winograd's convolutions of 3^3 voxels against torch's: exact in float64, close in float32, gradients and bits too."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dagman.tasks.segment import channels_last, winograd
from dagman.tasks.segment.channels_last import arrange_last
from dagman.tasks.segment.winograd import convolve_by_planes, suits_winograd


@pytest.mark.parametrize("sides", [(4, 5, 6), (8, 3, 7), (12, 6, 4), (20, 4, 4)])
@pytest.mark.parametrize("numbers", [1, 6 * 4 * 2 * 16, 2**21])
def test_a_convolution_by_planes_is_torchs_convolution(monkeypatch, sides, numbers):
    # However few tiles are in memory at once: the first and the last of them reach into the padding.
    monkeypatch.setattr(winograd, "_MOST_NUMBERS", numbers)
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, *sides, dtype=torch.float64), torch.randn(5, 3, 3, 3, 3, dtype=torch.float64)
    found = convolve_by_planes(arrange_last(x), weight)
    torch.testing.assert_close(found, F.conv3d(x, weight, padding=1), rtol=1e-12, atol=1e-12)
    assert found.is_contiguous(memory_format=torch.channels_last_3d)


def test_float32_results_stay_within_1e_5_of_the_largest_value():
    torch.manual_seed(0)
    x, weight = torch.randn(1, 96, 16, 16, 16), torch.randn(48, 96, 3, 3, 3)
    exact = F.conv3d(x.double(), weight.double(), padding=1)
    assert float((convolve_by_planes(arrange_last(x), weight) - exact).abs().max()) < 1e-5 * float(exact.abs().max())


def test_a_decoders_layer_has_torchs_values_and_gradients(monkeypatch):
    torch.manual_seed(0)
    layer = torch.nn.Conv3d(24, 24, 3, padding=1, bias=False, dtype=torch.float64)
    norm = torch.nn.InstanceNorm3d(24, affine=True, dtype=torch.float64)
    x = torch.randn(1, 24, 8, 6, 6, dtype=torch.float64, requires_grad=True)
    assert suits_winograd(x, 24)

    def differentiate() -> list[torch.Tensor]:
        y = channels_last.convolve(x, layer, norm, 0.01)
        return [y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters(), *norm.parameters()])]

    found = differentiate()
    monkeypatch.setattr(channels_last, "suits_winograd", lambda x, outputs: False)
    for value, wanted in zip(found, differentiate(), strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-10, atol=1e-10)


def test_the_same_convolution_twice_gives_the_same_bits():
    torch.manual_seed(0)
    x, weight = arrange_last(torch.randn(1, 16, 8, 64, 64)), torch.randn(16, 16, 3, 3, 3)
    assert torch.equal(convolve_by_planes(x, weight), convolve_by_planes(x, weight))


@pytest.mark.parametrize(
    ("inputs", "outputs", "sides", "suits"),
    [
        (16, 16, (96, 96, 96), True),
        (48, 24, (16, 16, 16), True),
        (16, 16, (32, 32, 32), False),
        (2, 16, (96, 96, 96), False),
        (192, 192, (6, 6, 6), False),
    ],
)
def test_few_channels_in_small_planes_stay_with_torch(inputs, outputs, sides, suits):
    assert suits_winograd(torch.empty(1, inputs, *sides, device="meta"), outputs) is suits
