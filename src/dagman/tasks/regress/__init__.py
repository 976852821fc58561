"""Regression of a number per item, by ridge regression on frozen features or by fine-tuning."""
