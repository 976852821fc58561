"""Proves that the code is in the one style and that its types hold; the layers are checked in test_architecture.py."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("unmeasured")

_CHECKED = ("src", "tests", "benchmarks", "examples")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [["ruff", "check", *_CHECKED], ["ruff", "format", "--check", *_CHECKED], ["mypy"]],
    ids=["style", "format", "types"],
)
def test_the_code_is_clean(arguments: list[str]):
    if importlib.util.find_spec(arguments[0]) is None:
        pytest.skip(f"needs {arguments[0]}: pip install '.[dev]'")
    run = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
