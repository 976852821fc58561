"""Downstream tasks: the protocol, the statistics, and what is measured on an encoder."""
