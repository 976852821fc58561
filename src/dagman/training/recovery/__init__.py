"""What a run survives: checkpoints written beside it, steps that are not finite and can be replayed alone."""
