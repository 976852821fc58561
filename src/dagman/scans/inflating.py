"""Decompresses data only as far as a header claims, so that a small file cannot fill the memory.

ISA-L (`isal`) is twice as fast as zlib, and verifies the checksum at the end of the data.
"""

from __future__ import annotations

import os
from typing import BinaryIO

import numpy as np
from isal import isal_zlib
from isal.igzip_lib import IsalError
from numpy.typing import NDArray

from dagman.errors import ScanError

GZIP = 31
"""Window bits of a gzip stream; consecutive members form one stream, as in gzip itself."""
GZIP_OR_ZLIB = 47

_MAX_RATIO = 1040
"""Limit on the compression ratio; deflate reaches at most 1032."""
_PACKED, _UNPACKED = 1 << 16, 1 << 18
"""Bytes per piece, small enough to stay in a core's cache, since the decompressed bytes are copied once more."""
_BLOCK = 512
"""Programs that write in blocks (for tapes, archives) pad the last block with zeros."""
_CONVERT_AGAIN = "Convert the scan again, or exclude it"


def inflate(file: BinaryIO, claimed: int, *, wrapper: int) -> NDArray[np.uint8]:
    """Decompress the rest of a file, at most `claimed` + 512 bytes.

    Memory is limited by the claim, and the claim by the length of the file.

    Args:
        file: open file at the start of the compressed data.
        claimed: number of decompressed bytes that the header claims.
        wrapper: `GZIP` or `GZIP_OR_ZLIB`.

    Raises:
        ScanError: if the data are damaged or incomplete, or too short to hold what is claimed.
    """
    packed = os.fstat(file.fileno()).st_size - file.tell()
    if claimed > packed * _MAX_RATIO:
        what = f"is truncated or damaged: its header claims {claimed} bytes, which {packed} compressed bytes cannot hold"
        raise ScanError(what, do=_CONVERT_AGAIN)
    unpacked = np.empty(claimed + _BLOCK, dtype=np.uint8)
    filled = 0
    stream = isal_zlib.decompressobj(wrapper)
    piece = b""
    try:
        while filled < len(unpacked):
            piece = piece or file.read(_PACKED)
            if stream.eof:
                if wrapper != GZIP or not piece.strip(b"\0"):
                    return unpacked[:filled]
                stream = isal_zlib.decompressobj(wrapper)
            if not piece:
                raise ScanError(f"is truncated or damaged: its compressed data end after {filled} bytes", do=_CONVERT_AGAIN)
            part = stream.decompress(piece, min(_UNPACKED, len(unpacked) - filled))
            unpacked[filled : filled + len(part)] = np.frombuffer(part, dtype=np.uint8)
            filled += len(part)
            piece = stream.unused_data if stream.eof else stream.unconsumed_tail
    except (IsalError, EOFError) as error:  # type: ignore[misc]  # Its stub calls the class an instance.
        raise ScanError(f"is truncated or damaged ({error})", do=_CONVERT_AGAIN) from error
    return unpacked


def check_length(held: int, claimed: int, rest: NDArray[np.uint8], smallest_error: int, *, complete: bool = True) -> None:
    """Raise ScanError if there are fewer or more bytes than the header claims, since the voxels would be scrambled.

    Zeros that pad the data to a block of 512 bytes are accepted if they are fewer than `smallest_error`.

    Args:
        held: number of bytes of voxels in the file.
        claimed: number of bytes that the header claims.
        rest: the bytes after the claimed ones, or the first 512 of them.
        smallest_error: number of bytes by which a wrong size along one axis would at least be off (`find_smallest_error`).
        complete: False if the file may hold more than `held` bytes.
    """
    if held < claimed:
        what = f"is truncated or damaged: its header claims {claimed} bytes of voxels, the file holds {max(held, 0)}"
        raise ScanError(what, do=_CONVERT_AGAIN)
    more = held - claimed
    if more and (more >= min(_BLOCK, smallest_error) or rest.any()):
        size = f"{held}" if complete else f"at least {held}"
        what = f"holds {size} bytes of voxels, but its header claims {claimed}: a size or type in it is wrong"
        raise ScanError(what, do="Correct the header, or convert the scan again")


def find_smallest_error(shape: tuple[int, ...], itemsize: int) -> int:
    """Return the number of bytes of the smallest slice along any axis, which is the least that a wrong size can be off by."""
    voxels = int(np.prod([int(size) for size in shape], dtype=object))
    return voxels // max(shape) * itemsize
