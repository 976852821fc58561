"""Prediction of patient outcomes: survival (time and event), or a response."""
