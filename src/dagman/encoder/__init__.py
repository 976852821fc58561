"""Encoders in use: loading, features, embeddings and attention maps."""
