"""Proves that linear layers and attention by faster libraries give the reference's numbers and gradients to rounding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import dagman.model.linear
from dagman.devices import read_processor_vendor
from dagman.model.linear import Linear, apply_linear_gelu
from dagman.model.window_attention import attend_windows, attend_windows_fused


@pytest.fixture
def onednn(monkeypatch):
    """Products in oneDNN whatever the processor: it is right on all of them, and faster on some."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    monkeypatch.setattr(dagman.model.linear, "prefers_onednn", lambda: True)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(1,), (2, 37), (3, 5, 8)])
def test_a_linear_layer_and_its_gradients_are_torchs(onednn, rows, bias):
    torch.manual_seed(0)
    layer = Linear(24, 72, bias=bias)
    ours = torch.randn(*rows, 24, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    weights = [value.detach().clone().requires_grad_() for value in layer.parameters()]
    loss = torch.randn(*rows, 72)
    (layer(ours) * loss).sum().backward()
    (F.linear(theirs, *weights) * loss).sum().backward()
    torch.testing.assert_close(layer(ours), F.linear(theirs, *weights))
    torch.testing.assert_close(ours.grad, theirs.grad)
    for value, wanted in zip(layer.parameters(), weights, strict=True):
        torch.testing.assert_close(value.grad, wanted.grad)


def test_turned_rows_frozen_weights_and_other_precisions_are_taken_too(onednn):
    torch.manual_seed(0)
    layer = Linear(8, 16).requires_grad_(False)
    x = torch.randn(8, 5, requires_grad=True)
    layer(x.t()).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0)[:, None].expand(8, 5))
    wide = layer.double()
    assert wide(x.t().double()).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.float()(x.t()).dtype == torch.bfloat16
    assert layer(torch.zeros(0, 8)).shape == (0, 16)


def test_gelu_behind_a_linear_layer_is_the_exact_one(onednn):
    torch.manual_seed(0)
    layer, x = Linear(24, 96), torch.randn(2, 33, 24)
    wanted = F.gelu(F.linear(x, layer.weight, layer.bias))
    torch.testing.assert_close(apply_linear_gelu(layer, x), wanted)
    with torch.no_grad():
        torch.testing.assert_close(apply_linear_gelu(layer, x), wanted)


@pytest.mark.parametrize(("heads", "width", "places"), [(2, 12, 64), (4, 6, 27), (1, 24, 8)])
@pytest.mark.parametrize("cut", [0, 2, 3])
def test_fused_attention_is_the_reference_with_and_without_windows_cut_by_the_shift(heads, width, places, cut):
    torch.manual_seed(0)
    views, windows = 2, 3
    q, k, v = torch.randn(3, views * windows, heads, places, width)
    bias = torch.randn(heads, places, places)
    mask = torch.zeros(windows, places, places, dtype=torch.bool)
    mask[windows - cut :, : places // 2, places // 2 :] = True
    for given in (mask, None):
        found = attend_windows_fused(q, k, v, bias, given, width**-0.5)
        torch.testing.assert_close(found, attend_windows(q, k, v, bias, given, width**-0.5))


def test_the_maker_of_the_processor_is_read_and_its_absence_is_no_error(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\nprocessor\t: 1\nvendor_id\t: Other\n")
    assert read_processor_vendor(tmp_path / "cpuinfo") == "AuthenticAMD"
    (tmp_path / "arm").write_text("processor\t: 0\nFeatures\t: fp asimd\n")
    assert read_processor_vendor(tmp_path / "arm") == ""
    assert read_processor_vendor(tmp_path / "absent") == ""
