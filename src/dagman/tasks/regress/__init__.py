"""A number of each item: ridge regression on frozen features, or fine-tuning."""
