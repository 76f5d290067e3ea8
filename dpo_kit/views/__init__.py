"""What a person sees: figures, tables and the report. Views read logs and tables, never models."""
