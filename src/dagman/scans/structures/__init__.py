"""Reads structures drawn in DICOM, contours (RTSTRUCT) and segments (SEG), as label maps, by name."""

from __future__ import annotations

from dagman.scans.structures.reading import (
    holds_structures,
    list_drawn,
    list_structures,
    read_disjoint,
    read_structure,
    read_structures,
)

__all__ = ["holds_structures", "list_drawn", "list_structures", "read_disjoint", "read_structure", "read_structures"]
