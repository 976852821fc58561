"""Proves that a number goes with its noun and its verb."""

from __future__ import annotations

from dagman.records.counts import count_noun


def test_one_is_singular_and_all_else_plural():
    assert [count_noun(number, "scan") for number in (0, 1, 2)] == ["0 scans", "1 scan", "2 scans"]
    assert [count_noun(number, "scan was", "scans were") for number in (0, 1, 2)] == ["0 scans were", "1 scan was", "2 scans were"]
