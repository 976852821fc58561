"""What users keep: an encoder, its features, embeddings and attention maps."""
