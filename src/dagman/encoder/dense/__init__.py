"""Token grids of whole scans: computed in tiles, stored in a folder from which regions can be read, and pooled by label maps."""

from dagman.encoder.dense.reading import DenseMap, DenseRegion, DenseStore, open_dense

__all__ = ["DenseMap", "DenseRegion", "DenseStore", "open_dense"]
