"""Training one run with several processes: their group, the reduction of gradients, and the detection of ranks that hang."""
