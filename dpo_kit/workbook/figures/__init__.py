"""The figures of single notebooks."""
