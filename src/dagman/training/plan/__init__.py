"""What a pretraining will cost, measured in a few steps before it starts."""
