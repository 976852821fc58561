"""What a training takes of the machine: memory estimated before the first allocation, and stops heeded within a step."""
