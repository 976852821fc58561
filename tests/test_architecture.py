"""Proves that data walks one way: packages import only from those above them in docs/architecture.md, and all are listed there."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]


def _documented_layers() -> list[str]:
    """The order of docs/architecture.md, top (imported by all) first."""
    block = (_ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("```")[1]
    lines = [line for line in block.strip().splitlines() if not line.startswith(" ")]  # an indented line continues the one above
    names = [re.split(r"\s{2,}", line)[0] for line in lines]
    return [name.strip().rstrip("/") for line in names for name in line.split(",")]


def _checked_layers() -> list[str]:
    settings = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    return [name.strip(" ()") for layer in reversed(layers) for name in layer.split("|")]


def test_the_layers_checked_are_the_layers_documented():
    assert _checked_layers() == _documented_layers()


def test_every_package_is_a_layer():
    source = _ROOT / "src" / "dagman"
    found = {path.stem for path in source.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert found - {"__init__", "__main__"} <= set(_checked_layers())


def test_packages_import_only_from_those_above():
    pytest.importorskip("importlinter")
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    run = subprocess.run([sys.executable, "-c", code, "--no-cache"], cwd=_ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
