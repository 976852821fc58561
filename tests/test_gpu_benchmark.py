"""Proves what the benchmark of a card counts, and that a part which fails costs no other."""

from __future__ import annotations

import copy
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from jaxtyping import config

from dagman.model import SwinEncoder, SwinShape

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.gpu.floor import count_bytes
from benchmarks.gpu.parts import Part, run_parts, supervise
from benchmarks.gpu.profiling import name_kind
from benchmarks.gpu.report import render
from benchmarks.gpu.work import build_work


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
        ("attend_forward", "attention"),
        ("normalise_backward", "norm"),
        ("void at::native::vectorized_layer_norm_kernel", "norm"),
        ("sm90_xmma_gemm_bf16", "linear"),
        ("multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimiser"),
        ("Memcpy DtoD", "copies"),
        ("something else", "rest"),
    ],
)
def test_kernels_are_told_by_their_names(key: str, kind: str):
    assert name_kind(key) == kind


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'> should not be instantiated")
@pytest.mark.parametrize(("size", "assignments"), [("tiny-vit", []), ("tiny", ["train.skip_hidden=true"])])
def test_a_step_with_compiled_encoders_has_the_losses_of_the_plain_one(size: str, assignments: list[str]):
    config.update("jaxtyping_disable", True)
    small = ["view.side=32", "projector.prototypes=64", "model.depths=[1, 1, 1, 1]", *assignments]
    totals = []
    for compiled in (False, True):
        torch.manual_seed(0)
        work = build_work(size, batch=2, micro=2, device="cpu", precision="fp32", assignments=small)
        if compiled:
            work.learner.compile_encoders(backend="aot_eager")
        work.step()
        totals.append(work.last()["total"])
    config.update("jaxtyping_disable", False)
    assert totals[1] == pytest.approx(totals[0], rel=1e-5)


def _begin() -> dict[str, object]:
    lists = ("ceilings", "checks", "encoders", "steps", "floors", "profiles", "paths", "growth", "joined")
    head = {"device": "a card", "torch": "2.13", "date": "2026-11-29", "command": "python -m benchmarks.gpu"}
    return {**head, "parts": {}, **{name: [] for name in lists}}


def test_a_part_that_fails_is_named_with_its_reason_and_costs_no_other():
    def fail(error: Exception) -> dict[str, object]:
        raise error

    found, written = _begin(), []
    parts = [
        Part("bad kernel", "checks", lambda _: fail(RuntimeError("\nno registers left\nand a long trace"))),
        Part("large step", "steps", lambda _: fail(torch.OutOfMemoryError("tried to allocate"))),
        Part("good", "joined", lambda _: {"name": "small", "two": 0.3, "one": 0.2}),
    ]
    copies = lambda now: written.append(copy.deepcopy(now))  # noqa: E731
    assert run_parts(parts, found, copies, device="cpu", ends=time.time() + 60)
    assert [one["running"] and one["running"]["part"] for one in written] == ["bad kernel", None, "large step", None, "good", None]
    page = render(written[-1])
    assert "| bad kernel | RuntimeError: no registers left |" in page
    assert "| large step | does not fit |" in page
    assert "as one (small): 1.50 times as fast" in page
    # A second worker does nothing again, and parts that the time does not reach are told.
    parts.append(Part("late", "steps", lambda _: fail(AssertionError("must not run"))))
    assert run_parts(parts, found, copies, device="cpu", ends=0.0)
    assert "| late | not run: the time was up before it |" in render(found)


def test_a_part_that_ends_its_process_or_hangs_costs_no_other(tmp_path: Path):
    kept = tmp_path / "gpu.json"
    kept.write_text(json.dumps(_begin()))
    worker = tmp_path / "worker.py"
    # Stands in for a worker: its first part crashes, its second hangs, its third is measured.
    worker.write_text(
        "import json, os, sys, time\n"
        "found = json.load(open(sys.argv[1]))\n"
        "for number, name in enumerate(['crashes', 'hangs', 'good']):\n"
        "    if name in found['parts']: continue\n"
        "    until = time.time() + (0 if name == 'hangs' else 60)\n"
        "    found['running'] = {'part': name, 'until': until}\n"
        "    json.dump(found, open(sys.argv[1] + '.tmp', 'w')); os.replace(sys.argv[1] + '.tmp', sys.argv[1])\n"
        "    if number == 0: os._exit(3)\n"
        "    if number == 1: time.sleep(60)\n"
        "    found['parts'][name], found['running'] = {'seconds': 0.1}, None\n"
        "json.dump(found, open(sys.argv[1], 'w'))\n"
    )
    command = [sys.executable, "-S", str(worker), str(kept)]
    read, write = lambda: json.loads(kept.read_text()), lambda found: kept.write_text(json.dumps(found))
    supervise(command, read, write, ends=time.time() + 120)
    assert read()["parts"] == {
        "crashes": {"failed": "it ended its process (code 3)"},
        "hangs": {"failed": "stopped: it ran over its time"},
        "good": {"seconds": 0.1},
    }


def test_the_page_has_a_row_for_each_figure():
    errors = {"half_error": [2e-3], "reference_half_error": [3e-3], "again_the_same_bits": True, "reference_seconds": 1.0}
    good = {"case": "good", "fp32_error": [1e-7], **errors, "kernel_seconds": 0.5, "alone_seconds": 0.5, "fewest_bytes": 2.5e8}
    half = {**good, "case": "half", "fp32_error": None, "failures": {"fp32_error": "OutOfResources: shared memory"}}
    timed = {"name": "small", "views": 16, "seconds": 0.2, "least": 0.1, "most": 0.3, "memory_gib": 1.5}
    path = {**timed, "path": "read a step later", "faster": 1.5, "apart": 1e-4, "waits": 1}
    growth = [{"side": 96, "views": views, "seconds_per_million": 0.002 / views} for views in (1, 2)]
    rows = {
        "ceilings": [{"bytes_per_s": 1e9, "bf16_flop_per_s": 1e12}],
        "checks": [good, half],
        "steps": [{**timed, "kernels": "triton"}],
        "floors": [{"name": "small", "views": 16, "flop": 5e10, "bytes": 1e6}],
        "encoders": [
            {"name": "small", "kernels": name, "pass": "step", "seconds": s} for name, s in (("triton", 0.1), ("monai", 0.4))
        ],
        "paths": [path, {**path, "path": "compiled", "faster": None, "apart": None}],
        "growth": growth,
    }
    page = render(_begin() | rows)
    assert "| good | 1.0e-07 | 2.0e-03 (3.0e-03) | yes | 2.00 | 50% |" in page
    assert "| half | – | 2.0e-03 (3.0e-03) | yes | 2.00 | 50% |" in page
    assert "| half, fp32_error | OutOfResources: shared memory |" in page
    assert "| small, triton | step | 100.0 | 4.00 |" in page
    assert "| read a step later | 16 of small | 0.200 (0.100 to 0.300) | 1.50 | 1.0e-04 | 1 | 1.5 |" in page
    assert "| compiled | 16 of small | 0.200 (0.100 to 0.300) | – | – | 1 | 1.5 |" in page
    assert "| 96^3 | 2.0 | 1.0 |  |" in page
    assert "| small | 16 | triton | 0.200 (0.100 to 0.300) | 80.0 | 1.5 | 25% |" in page
