"""Proves what the benchmark of a card counts, and that a part which fails costs no other."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dagman.model import SwinEncoder, SwinShape

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.gpu.checks import guard
from benchmarks.gpu.floor import count_bytes
from benchmarks.gpu.profiling import name_kind
from benchmarks.gpu.report import render

CEILINGS = {"bytes_per_s": 1e9, "bf16_flop_per_s": 1e12}


def test_fewest_bytes_of_a_network_small_enough_to_count_by_hand():
    encoder = SwinEncoder(SwinShape(embed=12, depths=(1, 1), heads=(1, 1)))
    student = SimpleNamespace(encoder=encoder, parameters=encoder.parameters)
    settings = SimpleNamespace(train=SimpleNamespace(batch=2, micro_batch=2), view=SimpleNamespace(side=8))
    weights = sum(p.numel() for p in encoder.parameters())
    # Stage 1: 4^3 tokens of 12, read and written by two half-blocks, merged into 2^3 of 24; stage 2: 2^3 of 24, then 48.
    values = 64 * 12 * 4 + 64 * 12 + 8 * 24 + 8 * 24 * 4 + 8 * 24 + 48
    forward = 2 * values * 2 + 2 * 8**3 * 2
    expected = 3 * forward + 2 * values * 2 * 3 // 2 + 2 * weights * 4 + 4 * weights * 11
    assert count_bytes(SimpleNamespace(student=student, settings=settings)) == expected


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("_attend_forward_0d1d2d", "attention"),
        ("_normalise_backward", "norm"),
        ("void at::native::vectorized_layer_norm_kernel", "norm"),
        ("sm90_xmma_gemm_bf16", "linear"),
        ("multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimiser"),
        ("Memcpy DtoD", "copies"),
        ("something else", "rest"),
    ],
)
def test_kernels_are_told_by_their_names(key: str, kind: str):
    assert name_kind(key) == kind


def test_a_check_that_fails_is_a_row_of_the_page_and_costs_no_other():
    def fail() -> dict[str, object]:
        raise RuntimeError("no registers left\nand a long trace")

    check = {"fp32_error": [1e-7], "half_error": [2e-3], "reference_half_error": [3e-3], "again_the_same_bits": True}
    good = {"case": "good", **check, "kernel_seconds": 0.5, "reference_seconds": 1.0, "fewest_bytes": 2.5e8}
    step = {
        "name": "small",
        "views": 16,
        "kernels": "triton",
        "seconds": 0.2,
        "least": 0.1,
        "most": 0.3,
        "memory_gib": 1.5,
        "floor": 0.05,
    }
    timed = {"seconds": 0.1, "least": 0.1, "most": 0.1, "memory_gib": None}
    path = {"path": "read a step later", "name": "small", "views": 16, "faster": 1.5, "apart": 1e-4, "waits": 1, **timed}
    found = {
        "device": "a card",
        "torch": "2.13",
        "date": "2026-11-29",
        "command": "python -m benchmarks.gpu",
        "ceilings": CEILINGS,
        "checks": [guard(fail, "bad"), good],
        "encoders": [],
        "steps": [step],
        "profiles": [],
        "paths": [path, {"path": "compiled", "views": 16, "failed": "does not fit"}],
        "growth": [{"side": 96, "views": views, "seconds_per_million": 0.002 / views} for views in (1, 2)],
        "joined": [{"name": "small", "two": 0.3, "one": 0.2}],
    }
    page = render(found)
    assert "| bad | RuntimeError: no registers left |" in page
    assert "| good | 1.0e-07 | 2.0e-03 (3.0e-03) | yes | 2.00 | 50% |" in page
    assert "| read a step later | 16 of small | 0.100 (0.100 to 0.100) | 1.50 | 1.0e-04 | 1 | – |" in page
    assert "| compiled | 16 | does not fit |" in page
    assert "| 96^3 | 2.0 | 1.0 |  |" in page
    assert "as one (small): 1.50 times as fast" in page
    assert "| small | 16 | triton | 0.200 (0.100 to 0.300) | 80.0 | 1.5 | 25% |" in page
