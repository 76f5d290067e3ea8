"""Intervals and tests. The unit is the prompt, and differences are paired by prompt."""

from dpo_kit.evaluation.results import Interval, LengthControlled, LengthQuartile, Pairwise, PositionBias
from dpo_kit.evaluation.statistics.comparisons import (
    McNemar,
    PreferenceRate,
    bradley_terry,
    holm,
    mcnemar,
    pairwise,
    preference_rate,
    preferences,
    win_rate_at_k,
)  # fmt: skip
from dpo_kit.evaluation.statistics.intervals import mean_interval, paired_difference
from dpo_kit.evaluation.statistics.judging import (
    agreement,
    by_length_quartile,
    kappa,
    length_controlled,
    position_bias,
    same_length_share,
)  # fmt: skip
from dpo_kit.evaluation.statistics.verdicts import (
    decisive_prompts_needed,
    prompts_needed,
    sign_test_power,
    smallest_effect,
    verdict_text,
)  # fmt: skip

__all__ = [
    "Interval", "LengthControlled", "LengthQuartile", "McNemar", "Pairwise", "PositionBias", "PreferenceRate",
    "agreement", "bradley_terry", "by_length_quartile", "decisive_prompts_needed", "holm", "kappa",
    "length_controlled", "mcnemar", "mean_interval", "paired_difference", "pairwise", "position_bias",
    "preference_rate", "preferences", "prompts_needed", "same_length_share", "sign_test_power", "smallest_effect",
    "verdict_text", "win_rate_at_k",
]  # fmt: skip
