"""Whole studies from one file: methods x seeds x sizes x tasks, with identical splits, paired by seed, on one page."""
