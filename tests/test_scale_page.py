"""Proves that the computed tables of docs/scale.md are those of benchmarks/scale.py, and its speeds those of docs/benchmarks.md."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def scale():
    spec = importlib.util.spec_from_file_location("scale", _ROOT / "benchmarks" / "scale.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["scale"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def sizes(scale):
    return {name: scale.measure_size(name) for name in ("small", "paper")}


def test_the_page_holds_the_computed_tables(scale, sizes):
    page = (_ROOT / "docs" / "scale.md").read_text(encoding="utf-8").splitlines()
    rows = [*scale.tabulate_sizes(sizes), *scale.tabulate_clusters(sizes["small"], sizes["paper"])]
    assert [row for row in rows if row not in page] == []


def test_measured_figures_are_those_of_the_benchmarks(scale):
    benchmarks = (_ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert re.search(rf"{scale.MEASURED['views_a_second']:.0f} views per second, 16.3 GiB", benchmarks)
    assert f"whole run of the same, with reading | {scale.MEASURED['with_reading']:.0f} views per second" in benchmarks


def test_a_run_costs_as_many_gpu_hours_however_many_share_it_until_the_network_does_not_keep_up(scale, sizes):
    def estimate(gpus: int, link: float) -> dict[str, float]:
        return scale.estimate_run(scale.Cluster("", "H100 80 GB", gpus, link), sizes["small"], sizes["paper"], 64)

    assert estimate(32, 1e15)["gpu_hours"] == pytest.approx(estimate(1, 1e15)["gpu_hours"])
    slow = estimate(8, 1e9)
    assert slow["step"] == pytest.approx(slow["compute"] / 2 + slow["reduce"])
    assert slow["reduce"] == pytest.approx(2 * 7 / 8 * 4 * sizes["paper"].weights / 1e9)
