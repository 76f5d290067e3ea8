"""From two answers to a pair worth training on: sampling, judging."""
