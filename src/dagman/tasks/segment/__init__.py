"""Segmentation of structures in scans: a network on the encoder."""
