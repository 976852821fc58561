"""Content hashes: of the values alone, whatever lies behind them, and the same on every machine."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from dagman.records.hashes import hash_array, hash_bytes, hash_file, matches_file, sum_file


def test_the_hash_is_the_start_of_sha256():
    # FIPS 180-2, appendix B.1.
    assert hash_bytes(b"abc") == "ba7816bf8f01cfea414140de5dae2223"


def test_a_file_has_the_hash_of_its_bytes(tmp_path):
    data = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(data)
    assert hash_file(tmp_path / "file") == hash_bytes(data)


def test_a_checksum_is_crc32_and_a_file_is_compared_with_either_kind(tmp_path):
    path = tmp_path / "file"
    # The check value of CRC-32/ISO-HDLC.
    path.write_bytes(b"123456789")
    assert sum_file(path) == "crc32:cbf43926"
    # More than a piece.
    path.write_bytes(bytes(range(256)) * 40_000)
    assert sum_file(path) == f"crc32:{zlib.crc32(path.read_bytes()):08x}"
    for checksum in (sum_file(path), hash_file(path)):
        assert matches_file(path, checksum)
        assert not matches_file(path, checksum[:-1] + ("0" if checksum[-1] != "0" else "1"))


@pytest.mark.parametrize("change", [lambda v: v, np.asfortranarray, lambda v: v[::-1].copy()[::-1], lambda v: v.T.copy().T])
def test_memory_layout_does_not_count(change):
    values = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    # The definition itself, so that ids in stores that exist stay what they are.
    assert hash_array(change(values)) == hash_bytes(b"<i2(2, 3, 4)" + values.tobytes())


@pytest.mark.parametrize("change", [lambda v: v.reshape(3, 2, 4), lambda v: v.astype(np.int32), lambda v: v + 1])
def test_shape_type_and_values_count(change):
    values = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    assert hash_array(change(values)) != hash_array(values)
