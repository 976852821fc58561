"""Proves that the scripts of examples/ run as they are, one after the other, on the built-in cohort, and leave what they print."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.journey, pytest.mark.slow]

_EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that both scripts write into."""
    return tmp_path_factory.mktemp("example")


def _run(script: str, *arguments: object) -> None:
    before, sys.argv = sys.argv, [script, *map(str, arguments)]
    try:
        runpy.run_path(str(_EXAMPLES / script), run_name="__main__")
    finally:
        sys.argv = before


def test_an_encoder_is_pretrained_and_describes_a_scan(out: Path, capsys):
    _run("pretrain_and_embed.py", "--out", out, "--steps", 2)
    printed = capsys.readouterr().out
    assert "6 scans in the store" in printed
    assert "pretrained 2 steps" in printed
    assert "2 attention heads" in printed
    assert (out / "run" / "report.html").is_file()


def test_a_run_is_compared_with_fresh_weights_on_few_patients(out: Path, capsys):
    _run("few_shot_segmentation.py", "--out", out, "--steps", 2)
    printed = capsys.readouterr().out
    assert "k=2: dice" in printed
    assert (out / "few" / "report.html").is_file()


def test_every_example_is_run_here():
    text = Path(__file__).read_text(encoding="utf-8")
    assert [path.name for path in _EXAMPLES.glob("*.py") if f'_run("{path.name}"' not in text] == []
