"""What was unpacked for a test is removed after it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dagman.scans import archives


@pytest.fixture(autouse=True)
def unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that archives are unpacked below."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    yield place
    archives.remove_unpacked()
    assert list(place.iterdir()) == []
