"""Turns label maps into items of a table, and finds the names of their values."""

from dagman.tables.labels.maps import expand_label_maps
from dagman.tables.labels.names import find_label_names, read_label_names, read_own_names

__all__ = ["expand_label_maps", "find_label_names", "read_label_names", "read_own_names"]
