"""The cost of a pretraining, measured over a few steps before it starts."""
