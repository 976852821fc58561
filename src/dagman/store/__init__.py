"""Prepares scans as voxels on disk (a store), and reads them."""
