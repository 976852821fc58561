"""Evaluation: splits by patient, measures, statistics and results. Needs neither torch nor an encoder."""
