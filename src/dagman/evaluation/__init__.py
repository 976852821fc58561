"""What is measured and how sure: splits by patient, measures, statistics, results. Neither torch nor an encoder is needed."""
