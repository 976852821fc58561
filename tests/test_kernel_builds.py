"""Proves that the Triton kernels build for NVIDIA cards within their shared memory and without spilling registers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

_ROOT = Path(__file__).parents[1]
MOST_SPILLED = 64
"""Bytes of a thread."""
SHARED = {80: 163, 90: 227}
"""KiB that one program may take on an A100 and on an H100 or H200."""


@pytest.mark.slow
def test_kernels_of_the_first_stage_build_for_cards(tmp_path: Path):
    # In a process of its own: here Triton interprets its programs.
    out = tmp_path / "build.json"
    command = [sys.executable, "-m", "benchmarks.gpu.build", "--quick", "--capabilities", "80", "90", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT / "src"), os.environ.get("PYTHONPATH")]))}
    subprocess.run(command, cwd=_ROOT, env=environment, check=True, capture_output=True)
    programs = json.loads(out.read_text())
    found = {(one["name"], one["precision"], one["capability"]) for one in programs}
    names = {"attend_forward", "attend_backward", "normalise_forward", "normalise_backward"}
    assert found >= {(name, kind, card) for name in names for kind in ("bfloat16", "float32") for card in SHARED}
    for one in programs:
        assert one["spilled"] <= MOST_SPILLED, one
        assert one["shared"] <= SHARED[one["capability"]] * 1024, one
        assert one["resident"] >= 2, one
