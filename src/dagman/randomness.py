"""Addressed randomness: every draw is a pure function of (seed, purpose, index...), never of a global state.

Workers, file order, micro-batches and a resume at any step then change nothing. The address is hashed to a key of
the Philox counter generator (Salmon et al., SC 2011), so that neighbouring addresses give independent streams.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def address(seed: int, purpose: str, *index: int | str) -> int:
    """The 64-bit key of a draw.

    `purpose` names what is drawn ("crop", "noise"); `index` says which one (step, view, scan id).
    """
    parts = [str(int(seed)), purpose, *(str(i) for i in index)]
    # The separator cannot occur in a number, so ("a", 1, 23) and ("a", 12, 3) differ.
    digest = hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def generator(seed: int, purpose: str, *index: int | str) -> np.random.Generator:
    """A numpy generator at an address; two calls with one address give the same stream."""
    import numpy as np

    return np.random.Generator(np.random.Philox(key=address(seed, purpose, *index)))
