"""Intervals and tests. The unit is the prompt, and differences are paired by prompt."""

from dpo_kit.evaluation.results import Interval, LengthControlled, LengthQuartile, Pairwise, PositionBias
from dpo_kit.evaluation.statistics.comparisons import McNemar, holm, mcnemar, pairwise, preferences, win_rate_at_k
from dpo_kit.evaluation.statistics.intervals import mean_interval, paired_difference
from dpo_kit.evaluation.statistics.judging import (
    by_length_quartile,
    length_controlled,
    position_bias,
    same_length_share,
)  # fmt: skip
from dpo_kit.evaluation.statistics.verdicts import sign_test_power, smallest_effect, verdict_text

__all__ = [
    "Interval", "LengthControlled", "LengthQuartile", "McNemar", "Pairwise", "PositionBias", "by_length_quartile",
    "holm", "length_controlled", "mcnemar", "mean_interval", "paired_difference", "pairwise", "position_bias",
    "preferences", "same_length_share", "sign_test_power", "smallest_effect", "verdict_text", "win_rate_at_k",
]  # fmt: skip
