"""dagman: attention-guided masked image modelling with a noisy teacher, for 3D medical scans.

Public names are loaded on first use, so that `import dagman` imports neither torch nor an image library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dagman.encoder.dense.reading import open_dense
    from dagman.encoder.loading import load_encoder as load
    from dagman.scans.reading import read_scan as read
    from dagman.store.writer import prepare_store as prepare
    from dagman.training.pretraining import pretrain

__all__ = ["__version__", "load", "open_dense", "prepare", "pretrain", "read"]

_LAZY = {
    "open_dense": ("dagman.encoder.dense.reading", "open_dense"),
    "load": ("dagman.encoder.loading", "load_encoder"),
    "read": ("dagman.scans.reading", "read_scan"),
    "prepare": ("dagman.store.writer", "prepare_store"),
    "pretrain": ("dagman.training.pretraining", "pretrain"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'dagman' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return __all__
