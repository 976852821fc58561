"""What a run survives: checkpoints in the background, steps that are not finite and can be replayed, unreadable scans."""
