"""Content hashes (the first 128 bits of SHA-256, as hex) and checksums of files (CRC-32).

Processors compute SHA-256 in hardware, twice as fast as blake2b. To detect a damaged file, CRC-32 from ISA-L is enough, at a
tenth of the processor time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_DIGITS = 32
_CRC_PREFIX = "crc32:"
# Large pieces, because a thread that writes a checkpoint takes the GIL from the training loop after each one.
_PIECE_BYTES = 8 << 20


def hash_bytes(data: bytes) -> str:
    """Return the content hash of bytes."""
    return hashlib.sha256(data).hexdigest()[:_DIGITS]


def hash_file(path: str | Path) -> str:
    """Return the content hash of a file, read in pieces."""
    digest = hashlib.sha256()
    for piece in _read_pieces(path):
        digest.update(piece)
    return digest.hexdigest()[:_DIGITS]


def sum_file(path: str | Path) -> str:
    """Return the checksum that detects damage to a file, read in pieces: `crc32:` and 8 hex digits."""
    from isal import isal_zlib

    crc = 0
    for piece in _read_pieces(path):
        crc = isal_zlib.crc32(piece, crc)
    return f"{_CRC_PREFIX}{crc:08x}"


def matches_file(path: str | Path, checksum: str) -> bool:
    """Return whether a file has this checksum, which comes from `sum_file` or `hash_file`."""
    return checksum == (sum_file(path) if checksum.startswith(_CRC_PREFIX) else hash_file(path))


def _read_pieces(path: str | Path) -> Iterator[memoryview]:
    with open(path, "rb", buffering=0) as file:
        # A small file needs little memory; the extra byte lets the loop see the end of the file.
        buffer = memoryview(bytearray(min(_PIECE_BYTES, os.fstat(file.fileno()).st_size + 1)))
        while count := file.readinto(buffer):
            yield buffer[:count]


def hash_array(array: np.ndarray) -> str:
    """Return the hash of an array's dtype, shape and values; it does not depend on the memory layout."""
    import numpy as np

    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    # Plane by plane, so that another memory layout never needs a copy of the whole array.
    if array.flags.c_contiguous or array.ndim < 2:
        digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:_DIGITS]
    plane = np.empty(array.shape[1:], array.dtype)
    for part in array:
        np.copyto(plane, part)
        digest.update(plane.data)
    return digest.hexdigest()[:_DIGITS]
