"""Arms are compared on the same held-out prompts: answers are scored and judged, and differences have intervals."""
