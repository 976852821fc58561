"""Addressed randomness: every draw is a pure function of (seed, purpose, index...) and never depends on global state.

Draws are therefore unaffected by the number of workers, the order of files, micro-batches, or resuming at any step. The address is
hashed to a key of the Philox counter-based generator (Salmon et al., SC 2011), so neighbouring addresses give independent streams.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def address(seed: int, purpose: str, *index: int | str) -> int:
    """Compute the 64-bit key of a draw.

    Args:
        seed: Seed of the run.
        purpose: What is drawn, such as "crop" or "noise".
        index: Which draw it is, such as the step, view or scan id.
    """
    parts = [str(int(seed)), purpose, *(str(i) for i in index)]
    # The separator never occurs in a number, so ("a", 1, 23) and ("a", 12, 3) differ.
    digest = hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def generator(seed: int, purpose: str, *index: int | str) -> np.random.Generator:
    """Create a NumPy generator for an address; the same address always gives the same stream."""
    import numpy as np

    return np.random.Generator(np.random.Philox(key=address(seed, purpose, *index)))
