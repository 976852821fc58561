"""Features on a cluster: the scans of many items by the workers of a Dask scheduler."""
