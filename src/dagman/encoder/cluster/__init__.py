"""Feature extraction on a cluster, with the workers of a Dask scheduler."""
