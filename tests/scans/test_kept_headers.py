"""Headers kept from one discovery to the next: nothing is read twice, what changed is seen, and nobody is named."""

from __future__ import annotations

import os

import pytest

from dagman.records.key import Key, use_key
from dagman.scans import discovery
from dagman.scans.dicom import HEADERS, KeptHeaders, naming
from dagman.scans.discovery import find_series

UID = "1.2.826.0.1.3680043.8.498.77"


@pytest.fixture
def scans(tmp_path, write_dicom, ct, placement):
    """Two phases of one series, told apart by their times of day alone, and another series."""
    thin = ct[:, :, :4]
    for time in ("093015.25", "101112"):
        write_dicom(tmp_path / "scans" / "phases", thin, placement, SeriesInstanceUID=UID, AcquisitionTime=time)
    write_dicom(tmp_path / "scans" / "plain", thin, placement, PatientID="MRN-4712")
    return tmp_path / "scans"


@pytest.fixture
def file(tmp_path):
    return tmp_path / "out" / HEADERS


@pytest.fixture
def reads(monkeypatch):
    """The files whose headers are read for grouping from now on; one of each group is read again for its name."""
    read, found = discovery.dicom_headers.read_header, []
    monkeypatch.setattr(discovery.dicom_headers, "read_header", lambda path: found.append(path) or read(path))
    return found


def find(scans, file):
    kept = KeptHeaders(file)
    found = find_series(scans, kept=kept)
    kept.write()
    return found


def test_a_repeated_discovery_reads_no_header_again_and_finds_the_same(scans, file, reads, monkeypatch):
    plain = find_series(scans)
    assert len(plain.series) == 3
    assert find(scans, file) == plain
    reads.clear()
    named, read = [], naming.read_header
    monkeypatch.setattr(naming, "read_header", lambda path: named.append(path) or read(path))
    assert find(scans, file) == plain
    assert reads == []
    assert len(named) == len(plain.series)
    one = next(path for path in sorted((scans / "plain").iterdir()))
    assert find(one, file) == find_series(one)
    assert find(f"{scans}#{UID}", file) == find_series(f"{scans}#{UID}")


def test_a_file_that_changed_is_read_again_though_its_time_was_set_back(scans, file, reads, edit_dicom):
    find(scans, file)
    changed = sorted((scans / "plain").iterdir())
    for path in changed:
        before = path.stat()
        edit_dicom(path, PatientID="MRN-9999")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_size == before.st_size
    reads.clear()
    found = find(scans, file)
    assert sorted(reads) == changed
    assert found == find_series(scans)


def test_a_damaged_file_one_of_another_key_or_of_another_reader_is_ignored_and_made_again(scans, file, reads):
    plain = find(scans, file)
    whole = file.read_bytes()
    bad = [whole[:-40], whole.replace(b"0.8", b"0.7"), b"\xff" + whole, b"", whole.replace(b'"readers": "', b'"readers": "0')]
    assert whole not in bad
    for content in bad:
        file.write_bytes(content)
        reads.clear()
        assert find(scans, file) == plain
        assert len(reads) == 12
        assert file.read_bytes() == whole
    reads.clear()
    with use_key(Key(b"0" * 32)):
        assert find(scans, file) == find_series(scans)
    assert len(reads) == 24
    assert file.read_bytes() != whole


def test_the_file_names_nobody(scans, file):
    with use_key(Key(b"0" * 32)):
        find(scans, file)
    content = file.read_text()
    assert content.count("\n") == 13
    for word in ("MRN-471", "Doe", UID, "1.2.3", "phases", "093015", "101112", str(scans)):
        assert word not in content
