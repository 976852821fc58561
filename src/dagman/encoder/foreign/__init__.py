"""Weights that others trained: their files, their layouts, and what they were trained with."""

from dagman.encoder.foreign.layouts import ForeignWeights, ImportReport, split_statement
from dagman.encoder.foreign.swin import read_foreign

__all__ = ["ForeignWeights", "ImportReport", "read_foreign", "split_statement"]
