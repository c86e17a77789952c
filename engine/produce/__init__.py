"""What the producer mixes, checks, sends and counts. Imports `domain` and `runtime`."""
