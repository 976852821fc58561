"""Maintains existing stores: verification, statistics, selection, merging, and removal of patients."""
