"""The results of an evaluation as records. The statistics make them, a report stores them, and views read them.

This file imports neither the model stack nor a statistics library, so reading a report is fast. The content of
`report.json` is defined here only.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter

# One row a prompt, as `outcomes.jsonl` holds it: `prompt_id`; the judge's `winner`, `reason` and `in_orders`, which are
# None where nobody judged; and by arm the `characters` of its first answer and its `scores` by metric.
Outcome = dict[str, Any]


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """treated - control in one metric, on the `n` prompts for which both arms have a score.

    `p_value` is the sign test's on the prompts where the scores differ, `p_holm` the same after Holm's correction over
    the differences that were looked at together. `could_see` is the smallest true difference that so many prompts show
    with 80% power. `interval` and `could_see` are None where fewer than two prompts have both scores.
    """

    metric: str
    treated: str
    control: str
    n: int
    interval: Interval | None
    p_value: float
    p_holm: float
    verdict: str
    could_see: float | None


@dataclass(frozen=True)
class Metric:
    """One metric: by arm its mean and interval over the prompts, None without a score; and the primary difference."""

    means: dict[str, float | None]
    difference: Difference
    intervals: dict[str, Interval | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Pairwise:
    """Verdicts, counted from the side of the treated arm.

    `win_rate` counts a tie as half a win and is over all judged prompts. `decisive_win_rate`, its Wilson interval from
    `low` to `high`, `clopper_pearson` and the `p_value` of the sign test are over the decided prompts, without ties.
    """

    wins: int
    ties: int
    losses: int
    unjudged: int
    decisive_win_rate: float | None
    low: float
    high: float
    p_value: float
    clopper_pearson: Interval | None
    win_rate: Interval | None

    def __str__(self) -> str:
        counts = f"{self.wins} wins, {self.ties} ties, {self.losses} losses"
        return counts + (f", {self.unjudged} unjudged" if self.unjudged else "")


@dataclass(frozen=True)
class LengthControlled:
    """The raw win rate and the one predicted for answers of equal length, as shares.

    `length_effect` is what a much longer answer gains, as log-odds. `warnings` say where the prediction cannot be
    trusted; `length_controlled` is None where no prediction can be made.
    """

    win_rate: Interval
    length_controlled: Interval | None
    length_effect: float | None
    extrapolates: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class LengthQuartile:
    """A quarter of the prompts by length difference, `shortest` to `longest`, and the win rate on these prompts."""

    shortest: float
    longest: float
    n: int
    win_rate: Interval


@dataclass(frozen=True)
class PositionBias:
    """How the order of the two answers changes a judge's verdicts, over `n` pairs that it judged in both orders.

    `inconsistent` is the share of pairs whose verdict changed with the order; `first`, of those that flipped from one
    answer to the other, the share that took the answer shown first. Each is None where there is nothing to count.
    """

    n: int
    inconsistent: Interval | None
    first: Interval | None


@dataclass(frozen=True)
class Judged:
    """What the verdicts show besides who wins: effects of length and of order, and the smallest detectable win rate.

    `could_see` is the smallest win rate that so many decided prompts show with 80% power; None where none would.
    """

    judge: str
    length_controlled: LengthControlled | None
    by_length_quartile: tuple[LengthQuartile, ...]
    position_bias: PositionBias
    could_see: float | None


@dataclass(frozen=True)
class Gap:
    """The answers that one arm did not give: the number of prompts, the ids of the `first` of them, and the reasons."""

    count: int
    first: tuple[str, ...]
    reason: str | None = None


@dataclass(frozen=True)
class Control:
    """One control: its expected result, whether it passed, and what was found, in words."""

    name: str
    expected: str
    passed: bool
    found: str


@dataclass(frozen=True)
class HeldOut:
    """The implicit rewards of the arm `policy` against the arm `reference` on `n` held-out pairs.

    r(x, y) = beta (log pi(y | x) - log pi_ref(y | x)). `accuracy` is the share of pairs whose chosen answer has the
    higher reward, `margin` the mean of r(chosen) - r(rejected); both by prompt. The verdicts compare them with 1/2 and
    with 0.
    """

    policy: str
    reference: str
    beta: float
    n: int
    accuracy: Interval
    margin: Interval | None
    accuracy_verdict: str
    margin_verdict: str


@dataclass(frozen=True)
class Regression:
    """What `after` lost against `before`: the log-loss of a neutral text, and pass rates of small tasks.

    `log_loss` is in nats a token, by paragraph, and None where an arm's weights are not at hand; `tasks` holds the
    pass rate of each kind of task, and of `all_tasks`. All of them stand under one Holm correction.
    """

    before: str
    after: str
    n_tasks: int
    log_loss: Metric | None
    tasks: dict[str, Metric]

    @property
    def lost(self) -> tuple[str, ...]:
        """What is worse after than before, by name: empty where nothing was shown to be lost."""
        found = {**({"log_loss": self.log_loss} if self.log_loss else {}), **self.tasks}
        return tuple(name for name, metric in found.items() if metric.difference.verdict == "worse")


@dataclass(frozen=True)
class Comparison:
    """Arms compared on the same prompts at one temperature.

    `primary` names the treated and the control arm of the contrast that was fixed in advance. Its differences stand in
    `metrics`, all others in `contrasts`; `pairwise` and `judged` are what a judge says of it, None without a judge.
    `stopped` is by arm the share of answers that ended by themselves, and `characters` their mean length. `heuristics`
    are metrics of the answers that need no judge and say nothing of better or worse. `unjudged_because` counts a
    judge's reasons for giving no verdict.
    """

    n_prompts: int
    arms: tuple[str, ...]
    primary: tuple[str, str]
    metrics: dict[str, Metric]
    pairwise: Pairwise | None
    contrasts: tuple[Difference, ...] = ()
    judged: Judged | None = None
    win_rate_at_k: dict[int, Interval] = field(default_factory=dict)
    stopped: dict[str, float | None] = field(default_factory=dict)
    characters: dict[str, float | None] = field(default_factory=dict)
    missing: dict[str, Gap] = field(default_factory=dict)
    unscored: dict[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    heuristics: dict[str, Metric] = field(default_factory=dict)
    unjudged_because: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Report(Comparison):
    """A comparison with its controls, the one of `greedy` answers where there is one, and how it was made.

    `sampling` says in words how the answers were drawn.
    """

    sampling: str
    controls: tuple[Control, ...] = ()
    greedy: Comparison | None = None
    held_out: tuple[HeldOut, ...] = ()
    regression: Regression | None = None
    seed: int | None = None
    profile: str | None = None
    pairs: int | None = None
    timings_s: dict[str, float] = field(default_factory=dict)
    peak_memory_mb: float | None = None
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def refusal(self) -> str | None:
        """The text that replaces every verdict where a control failed; None where all passed."""
        return refusal_of(self.controls)

    def to_data(self) -> dict[str, Any]:
        """The content of `report.json`: everything but the rows of single prompts, which `outcomes.jsonl` holds."""
        data = asdict(self) | {"refusal": self.refusal}
        for comparison in (data, data["greedy"]):
            if comparison is not None:
                del comparison["outcomes"]
        return data

    def to_json(self) -> str:
        """`report.json` as text. Raises ValueError for a NaN or an infinity, which JSON does not have."""
        return json.dumps(self.to_data(), indent=1, allow_nan=False) + "\n"


REPORT = TypeAdapter(Report)


def refusal_of(controls: Sequence[Control]) -> str | None:
    """The text that replaces a verdict and says which controls failed; None where all passed."""
    failed = [control.name for control in controls if not control.passed]
    return f"refused: control {', '.join(failed)} failed" if failed else None


def from_data(data: dict[str, Any]) -> Report:
    """The report from which `to_data` made `data`. Its refusal is computed again from the controls, not read.

    Raises ValueError where a field is missing or of another type.
    """
    return REPORT.validate_python(data)
