"""What is measured while a run trains: monitors, validation, curves, verdicts."""
