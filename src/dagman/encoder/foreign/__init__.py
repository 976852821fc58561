"""Import of weights that were trained by other programs: their files, layouts and preprocessing."""

from dagman.encoder.foreign.layouts import ForeignWeights, ImportReport, split_statement
from dagman.encoder.foreign.swin import read_foreign

__all__ = ["ForeignWeights", "ImportReport", "read_foreign", "split_statement"]
