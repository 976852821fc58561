"""How fast the pretraining step is on a card, beside what the card can do; `python -m benchmarks.gpu`."""
