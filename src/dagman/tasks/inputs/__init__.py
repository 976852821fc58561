"""Inputs of models: crops, features and descriptors of a table's items."""
