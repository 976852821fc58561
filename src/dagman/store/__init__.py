"""Scans to prepared voxels on disk, and the reader of what was prepared."""
