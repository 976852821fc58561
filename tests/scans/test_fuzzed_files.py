"""A small round of `benchmarks/fuzz_scans.py`: no mutated file ends the process, escapes, or shows a fault of dagman."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from dagman.scans.discovery import find_series
from dagman.scans.reading import read_series

_SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fuzz_scans.py"


@pytest.fixture(scope="module")
def fuzz_scans():
    spec = importlib.util.spec_from_file_location("fuzz_scans", _SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_scans"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["fuzz_scans"]


@pytest.mark.parametrize("name", ["nrrd", "mha", "nifti", "dicom"])
def test_no_mutated_file_does_more_than_be_refused(tmp_path, fuzz_scans, name):
    outcomes = fuzz_scans.fuzz_format(name, 60, seed=1, folder=tmp_path, seconds=60)
    assert set(outcomes.counts) <= {"accepted", "refused"}, outcomes.examples
    assert outcomes.counts["refused"] > 0
    assert outcomes.counts["accepted"] > 0


@pytest.mark.parametrize("name", ["nrrd", "mha", "nifti", "dicom"])
def test_what_is_mutated_was_a_good_scan_before(tmp_path, fuzz_scans, name):
    fuzz_scans._write_sources(name, tmp_path)
    series = find_series(tmp_path).series
    assert series
    assert all(np.array_equal(read_series(one).voxels, fuzz_scans.make_body()) for one in series)
