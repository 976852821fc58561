"""Scans on a cluster: the same tasks by the workers of a Dask scheduler."""
