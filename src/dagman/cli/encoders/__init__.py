"""Commands about an encoder: what it gives for scans, what it is, and how it goes to other programs."""
