"""Figures, tables and the report. Views read logs and records, and never load a model."""
