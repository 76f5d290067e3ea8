"""Intervals and tests. The unit is the prompt, and differences are paired by prompt."""

from dpo_kit.evaluation.results import Interval, LengthControlled, LengthQuartile, Pairwise, PositionBias
from dpo_kit.evaluation.statistics.comparisons import (
    holm,
    pairwise,
    preferences,
    sign_test,
    sign_test_power,
    smallest_effect,
    verdict_text,
    win_rate_at_k,
)  # fmt: skip
from dpo_kit.evaluation.statistics.intervals import mean_interval, paired_difference
from dpo_kit.evaluation.statistics.judging import (
    by_length_quartile,
    length_controlled,
    most_common_share,
    position_bias,
)  # fmt: skip

__all__ = [
    "Interval", "LengthControlled", "LengthQuartile", "Pairwise", "PositionBias", "by_length_quartile", "holm",
    "length_controlled", "mean_interval", "most_common_share", "paired_difference", "pairwise",
    "position_bias", "preferences", "sign_test", "sign_test_power", "smallest_effect", "verdict_text",
    "win_rate_at_k",
]  # fmt: skip
