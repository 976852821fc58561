"""What is written safely: files, locks, journals, provenance, hashes."""
