"""Classification of a table's items: linear probe, k-NN, fine-tuning."""
