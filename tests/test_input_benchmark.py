"""The benchmark of what goes in runs, at a small size: it measures what it says, and its model and scan are real ones."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from dagman.scans.reading import read_scan

_FILE = Path(__file__).parents[1] / "benchmarks" / "input.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("input_benchmark", _FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_times_crops_and_bytes_are_measured_beside_the_others(benchmark, tmp_path, capsys):
    pytest.importorskip("monai")
    (source,) = benchmark.list_sources(tmp_path, tmp_path / "none", [], slices=24, side=64, torso=0)
    benchmark.compare_crops(source, tmp_path, rounds=1, seconds=0.0)
    benchmark.compare_bytes(source, tmp_path)
    crops, size = capsys.readouterr().out.splitlines()
    assert [name in crops for name in ("dagman", "nnssl", "CacheDataset", "copy_cache=False")] == [True] * 4
    assert size.startswith("bytes   synthetic 64 x 64 x 24")


def test_the_synthetic_scan_is_read_as_it_was_meant(benchmark, tmp_path):
    scan = read_scan(benchmark.write_synthetic(tmp_path / "scan.nii.gz", slices=6, side=64))
    assert scan.shape == (64, 64, 6)
    assert scan.modality == "CT"
    np.testing.assert_allclose(scan.spacing, (6, 6, 1))
    assert abs(float(np.median(scan.voxels[31:33, 28:36])) - 40) < 5
