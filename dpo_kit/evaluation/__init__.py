"""Three arms on the same held-out prompts, scored, compared, with intervals."""
