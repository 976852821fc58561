"""Cluster and map structures by their features."""
