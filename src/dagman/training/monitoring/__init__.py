"""Monitoring of a run: monitors, validation, curves, verdicts."""
