"""The benchmark of the loader runs at a small size: what it reports are the shares and times of what it did."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

_FILE = Path(__file__).parents[2] / "benchmarks" / "loading.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("loading_benchmark", _FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_stand_in_for_a_card_takes_no_more_views_than_it_was_told_and_its_waiting_is_reported(
    benchmark, make_settings, make_dataset, monkeypatch, capsys
):
    dataset = make_dataset(make_settings("train.steps=1000"))
    found: list = []
    read = benchmark.read_views
    monkeypatch.setattr(benchmark, "read_views", lambda *given: found.extend(read(*given)) or found)
    benchmark.report(dataset, "tiny", [1], [50.0], seconds=0.1)
    first, loaders, waited = capsys.readouterr().out.splitlines()
    assert first.startswith(f"tiny: {dataset.batch} views of 32^3 per step, 3 scans")
    assert loaders.startswith("  1 loader process: ")
    assert waited.startswith("    a card of 50 views/s waits ")
    _, free, fed = found
    # It sleeps after each step, however soon the views are there.
    assert fed.views_per_s <= 50.5
    assert 0.0 < fed.waiting < 1.0
    assert free.loaders > 0.0
    assert free.own_mib > 1.0
