"""Content hashes: the first 128 bits of SHA-256, as hex; processors compute it in hardware, twice as fast as blake2b."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_DIGITS = 32
# Few and large: between pieces a thread that writes a checkpoint takes Python's lock from the training.
_PIECE = 8 << 20


def hash_bytes(data: bytes) -> str:
    """Hash of bytes."""
    return hashlib.sha256(data).hexdigest()[:_DIGITS]


def hash_file(path: str | Path) -> str:
    """Hash of a file's bytes, read in pieces."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_PIECE))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()[:_DIGITS]


def hash_array(array: np.ndarray) -> str:
    """Hash of an array's dtype, shape and values, whatever its memory layout."""
    import numpy as np

    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    # Plane by plane, so that another memory layout never needs a copy of the whole.
    whole = array.flags.c_contiguous or array.ndim < 2
    for part in (array,) if whole else array:
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()[:_DIGITS]
