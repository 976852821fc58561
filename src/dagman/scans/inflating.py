"""Compressed data unpacked as far as a header claims and no further: a small file must not fill the memory.

ISA-L (`isal`) inflates twice as fast as zlib and checks the checksum that the data end with.
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
"""Window bits of a gzip stream; several members in a row are one stream, as in gzip itself."""
GZIP_OR_ZLIB = 47

_MOST_RATIO = 1040
"""Deflate gives at most 1032 bytes for one."""
_PACKED, _UNPACKED = 1 << 16, 1 << 18
"""Bytes of a piece: both stay in a core's cache, and what is unpacked is copied once more."""
_BLOCK = 512
"""Writers that work in blocks (tapes, archives) fill up the last one with zeros."""
_CONVERT_AGAIN = "Convert the scan again, or exclude it"


def inflate(file: BinaryIO, claimed: int, *, wrapper: int) -> NDArray[np.uint8]:
    """The unpacked bytes of what `file` holds from here on: all of them, or `claimed` and 512 more where there are more still.

    Raises ScanError when the data are damaged, end early, or are too short to hold what is claimed. Memory is bounded by
    the claim, and the claim by the length of the file.
    """
    packed = os.fstat(file.fileno()).st_size - file.tell()
    if claimed > packed * _MOST_RATIO:
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
    """Refuse data that are shorter or longer than their header claims, which would be read scrambled.

    held: bytes there are; not complete: or more. rest: those behind the claimed ones, or the first 512 of them. Zeros that fill
    up a block of 512 are allowed where they are fewer than `smallest_error`, by which a wrong size along one axis is off.
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
    """Bytes of the smallest slice across any axis: the least by which data of another size differ."""
    voxels = int(np.prod([int(size) for size in shape], dtype=object))
    return voxels // max(shape) * itemsize
