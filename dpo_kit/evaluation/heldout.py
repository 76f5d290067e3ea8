"""Implicit rewards on held-out pairs: does a policy prefer, against a reference, what was chosen?

r(x, y) = beta (log pi(y | x) - log pi_ref(y | x)) is the reward that DPO trains (arXiv 2305.18290, Eq. 5 without the
part that depends on the prompt alone). That it ranks held-out pairs rightly says that the preferences were learned; it
does not say that the policy's own answers are better (arXiv 2405.19534): for that its answers must be judged.
"""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from dpo_kit.errors import DpoKitError
from dpo_kit.evaluation import statistics
from dpo_kit.evaluation.results import HeldOut
from dpo_kit.models.loading import Arms
from dpo_kit.records import PreferencePair

if TYPE_CHECKING:
    from dpo_kit.evaluation.arms import ModelArm

Logps = Callable[[Arms, str, Sequence[PreferencePair]], Tensor]  # float64 (2B,), the chosen answers first


def held_out_rewards(
    policy: "ModelArm", reference: "ModelArm", pairs: Sequence[PreferencePair], beta: float, logps: Logps
) -> HeldOut:
    """Accuracy and margin of the implicit rewards of `policy` against `reference`, with intervals by prompt.

    `logps` gives the log-probs of whole answers under an arm. Raises DpoKitError where there are no pairs.
    """
    if not pairs:
        raise DpoKitError("there are no held-out pairs to measure implicit rewards on; give a file that holds some")
    sums = []
    for arm in (policy, reference):
        sums.append(logps(*arm.weights(), pairs))
        arm.release()
    rewards = beta * (sums[0] - sums[1])  # (2B,)
    margins = (rewards[: len(pairs)] - rewards[len(pairs) :]).tolist()
    prompts = [pair.prompt.id for pair in pairs]
    distinct = len(set(prompts))
    by = prompts if distinct < len(prompts) else None
    accuracy = statistics.mean_interval([0.5 + 0.5 * ((m > 0) - (m < 0)) for m in margins], by)
    # a bound on the margin is not known, so two prompts are needed for its interval
    margin = statistics.mean_interval(margins, by, bounds=None) if distinct > 1 else None
    return HeldOut(
        policy.name,
        reference.name,
        beta,
        len(pairs),
        accuracy,
        margin,
        _words(statistics.verdict_text(accuracy, distinct, 0.05, null=0.5), "one half"),
        _words(statistics.verdict_text(margin, distinct), "0") if margin else "nothing to compare: one prompt",
    )


def _words(verdict: str, null: str) -> str:
    return re.sub(r"^(?:better|worse)$", lambda m: f"{'above' if m[0] == 'better' else 'below'} {null}", verdict)
