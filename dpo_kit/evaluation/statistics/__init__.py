"""Intervals and tests. The unit is the prompt, and differences are paired by prompt."""

from dpo_kit.evaluation.statistics.agreement import PositionBias, agreement, kappa, position_bias
from dpo_kit.evaluation.statistics.comparisons import (
    McNemar,
    Pairwise,
    PreferenceRate,
    holm,
    mcnemar,
    pairwise,
    preference_rate,
    preferences,
    win_rate_at_k,
)
from dpo_kit.evaluation.statistics.intervals import Interval, mean_interval, paired_difference
from dpo_kit.evaluation.statistics.length import (
    LengthControlled,
    LengthQuartile,
    by_length_quartile,
    length_controlled,
    same_length_share,
)
from dpo_kit.evaluation.statistics.power import (
    decisive_prompts_needed,
    prompts_needed,
    sign_test_power,
    smallest_effect,
)
from dpo_kit.evaluation.statistics.ranking import bradley_terry
from dpo_kit.evaluation.statistics.words import verdict_text

__all__ = [
    "Interval",
    "LengthControlled",
    "LengthQuartile",
    "McNemar",
    "Pairwise",
    "PositionBias",
    "PreferenceRate",
    "agreement",
    "bradley_terry",
    "by_length_quartile",
    "decisive_prompts_needed",
    "holm",
    "kappa",
    "length_controlled",
    "mcnemar",
    "mean_interval",
    "paired_difference",
    "pairwise",
    "position_bias",
    "preference_rate",
    "preferences",
    "prompts_needed",
    "same_length_share",
    "sign_test_power",
    "smallest_effect",
    "verdict_text",
    "win_rate_at_k",
]
