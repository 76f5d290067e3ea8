"""The programs that produce the tables of performance and reliability in LOG.md."""
