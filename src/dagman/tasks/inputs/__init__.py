"""What a model is given of a table: its items' crops, features and descriptors."""
