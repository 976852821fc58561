"""Inspecting a series gives a row whatever is wrong with it: the others go on."""

from __future__ import annotations

import re

import pytest

import dagman.scans.inspection as inspection
from dagman.scans.discovery import find_series
from dagman.scans.faults import OWN_FAULT
from dagman.scans.pseudonyms import name_patient


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ZeroDivisionError("a\nfault"), rf"cannot be checked \({OWN_FAULT}: ZeroDivisionError in inspection\.py, line \d+\)"),
        (MemoryError(), "too large for memory: try again with --workers 1"),
    ],
)
def test_a_fault_in_one_series_is_named_and_the_others_go_on(tmp_path, write_nifti, ct, monkeypatch, error, reason):
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(tmp_path / name, ct)
    read = inspection.read_measured

    def read_or_fail(series):
        if "a.nii" in series.source:
            raise error
        return read(series)

    monkeypatch.setattr(inspection, "read_measured", read_or_fail)
    first, second = map(inspection.inspect_series, find_series(tmp_path).series)
    assert (first.accepted, first.kind, first.patient) == (False, "nifti", name_patient("a"))
    assert re.fullmatch(reason, first.reason)
    assert second.accepted
    assert second.picture is not None
