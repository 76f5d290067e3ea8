"""Everything that holds weights: loading and quantising, arms, generation, log-probabilities."""
