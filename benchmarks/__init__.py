"""What the performance tables in LOG.md are made with."""
