"""Inputs of an encoder in Python other than files: arrays with an affine, lists of scans, data frames."""
