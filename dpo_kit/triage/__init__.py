"""The workbook's own world: incidents to triage, noisy demonstrations, and a rubric that knows the truth."""
