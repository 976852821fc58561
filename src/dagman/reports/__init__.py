"""Figures and self-contained HTML pages in a common style. Everything is read through `Run`, `Results` and `Store`."""
