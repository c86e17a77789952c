"""What the producer checks and counts of what it sends. Imports `domain` and `runtime`."""
