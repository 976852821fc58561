"""Bytes to scans: readers of all formats, discovery, verdicts, pseudonyms, and the built-in phantom cohort."""
