"""Cache of feature vectors by content, so that folds, repeats, tasks and repeated commands compute each vector only once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dagman.encoder.encoder import Encoder
from dagman.encoder.pooling import Pooling
from dagman.records.files import write_whole
from dagman.records.hashes import hash_array, hash_bytes
from dagman.store.crops import Crop
from dagman.store.preparation import PreparedScan


class FeatureCache:
    """A folder of vectors, `ab/<key>.npy`. It may be shared by encoders and tasks, and deleted at any time."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def get(self, key: str) -> NDArray[np.float32] | None:
        """Return the vector of a key; None if it is missing or cannot be read."""
        try:
            vector: NDArray[np.float32] = np.load(self._locate(key), allow_pickle=False)
        except (FileNotFoundError, ValueError, EOFError):
            return None
        return vector

    def put(self, key: str, vector: NDArray[np.float32]) -> None:
        """Store a vector."""
        with write_whole(self._locate(key)) as temporary:
            np.save(temporary, vector, allow_pickle=False)

    def _locate(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.npy"


def name_input(encoder: Encoder, given: Crop | PreparedScan, pooling: Pooling) -> str:
    """Compute a key from everything that determines a vector: input voxels, mask, weights, precision and pooling."""
    voxels = hash_array(given.voxels)
    inside = hash_array(given.inside) if isinstance(given, Crop) else "scan in one pass"
    return hash_bytes(f"1|{encoder.digest}|{encoder.precision}|{given.modality}|{voxels}|{inside}|{pooling}".encode())
