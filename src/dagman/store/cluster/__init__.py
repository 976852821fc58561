"""Runs the tasks of a preparation on a cluster, with the workers of a Dask scheduler."""
