"""Outcomes of patients: a response, or time and event."""
