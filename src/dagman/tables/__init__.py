"""Reads the items of a downstream task (scans, structures or points, with labels) from tables and public data sets."""
