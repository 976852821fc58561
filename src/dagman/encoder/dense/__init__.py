"""Token grids of whole scans: computed tile by tile, kept in a folder that opens by region, and pooled by the labels of a map."""

from dagman.encoder.dense.reading import DenseMap, DenseRegion, DenseStore, open_dense

__all__ = ["DenseMap", "DenseRegion", "DenseStore", "open_dense"]
