"""Safe writing and record keeping: atomic files, locks, journals, provenance, hashes."""
