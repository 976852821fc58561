"""Processes that share their checks hash each scan's file once, and a file that changes is checked again."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from dagman.errors import StoreError
from dagman.store import manifest
from dagman.store.format import locate_scan
from dagman.store.manifest import Store
from dagman.store.upkeep.checks import SharedChecks
from dagman.store.writer import prepare_store


@pytest.fixture
def store(cohort, tmp_path: Path) -> Store:
    """Prepared anew for each test, as its files are damaged."""
    return Store(prepare_store(cohort, tmp_path / "store", workers=1).path)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The scans' files that are hashed from here on, by name."""
    found: list[str] = []
    hash_file = manifest.hash_file

    def note(path: Path) -> str:
        if path.suffix == ".b2nd":
            found.append(path.name)
        return hash_file(path)

    monkeypatch.setattr(manifest, "hash_file", note)
    return found


def _open(store: Store, checks: SharedChecks) -> Store:
    """The store as another process has it."""
    other: Store = pickle.loads(pickle.dumps(Store(store.path)))
    other.share_checks(checks)
    return other


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_scan_is_hashed_by_the_first_process_that_reads_it(store, tmp_path, hashed):
    checks = SharedChecks(tmp_path / "checked", [row.id for row in store.rows])
    checks.begin()
    for _ in range(3):
        process = _open(store, checks)
        for row in store.rows:
            process.crop(row.id, (0, 0, 0), (1, 1, 1))
    assert sorted(hashed) == [f"{row.id}.b2nd" for row in store.rows]
    # The next run trusts none of it.
    checks.begin()
    _open(store, checks).crop(store.rows[0].id, (0, 0, 0), (1, 1, 1))
    assert len(hashed) == len(store.rows) + 1


def test_a_file_that_is_damaged_after_it_was_checked_is_noticed_by_the_next_process(store, tmp_path):
    checks = SharedChecks(tmp_path / "checked", [row.id for row in store.rows])
    checks.begin()
    first, second = store.rows[:2]
    _flip_a_bit(locate_scan(store.path, second.id))
    reader = _open(store, checks)
    reader.crop(first.id, (0, 0, 0), (1, 1, 1))
    # Damaged before: every process finds it.
    for process in (reader, _open(store, checks)):
        with pytest.raises(StoreError, match="is damaged"):
            process.crop(second.id, (0, 0, 0), (1, 1, 1))
    _flip_a_bit(locate_scan(store.path, first.id))
    with pytest.raises(StoreError, match="is damaged"):
        _open(store, checks).crop(first.id, (0, 0, 0), (1, 1, 1))


def test_without_the_file_every_process_checks_for_itself(store, tmp_path, hashed):
    checks = SharedChecks(tmp_path / "checked", [row.id for row in store.rows])
    for _ in range(2):
        _open(store, checks).crop(store.rows[0].id, (0, 0, 0), (1, 1, 1))
    assert len(hashed) == 2
    assert not list(tmp_path.glob("checked*"))
    checks.end()
