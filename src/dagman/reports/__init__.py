"""Figures and self-contained HTML pages, in one style; they read only `Run`, `Results` and `Store`."""
