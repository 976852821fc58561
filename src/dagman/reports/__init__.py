"""Figures and self-contained HTML pages, in one look; they read only `Run`, `Results` and `Store`."""
