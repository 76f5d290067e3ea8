"""The reflection at the end of a comparison: about 300 words that begin with the run's own numbers.

What was measured is filled in; what it means is left blank, since no program knows it.
"""

from dpo_kit.views.tables import (
    arm_name,
    difference_of,
    interval,
    metric_name,
    pairwise_sentence,
    power_sentence,
    short,
)

BLANK = "\\_\\_\\_\\_\\_\\_"


def reflection(data: dict) -> str:
    """A Markdown template from a report's data. Where a control failed it reports no verdict, only the counts."""
    treated, control = map(arm_name, data["primary"])
    return "\n\n".join(
        [
            f"### Reflection: is {treated} better than {control}?",
            _asked(data, treated, control),
            _found(data),
            _not_shown(data, treated),
            _belief(data, treated),
            _next(data, treated),
        ]
    )


def _asked(data: dict, treated: str, control: str) -> str:
    judge = data["judged"].get("judge", "nobody")
    return (
        f"**What I asked.** Whether {treated} is better than {control} at {BLANK}. Fixed before looking: this one "
        f"contrast, {data['n_prompts']} held-out prompts, one answer an arm ({data['sampling']}), judged by {judge}. "
        f"The smallest difference that would matter to me is {BLANK}, because {BLANK}."
    )


def _found(data: dict) -> str:
    sentence = pairwise_sentence(data["pairwise"], data["primary"], data["refusal"])
    rows = [
        f"{metric_name(metric)} {interval(difference_of(values), '+')}, {short(difference_of(values)['verdict'])}"
        for metric, values in data["metrics"].items()
    ]
    by_metric = "" if data["refusal"] else f" By metric: {'; '.join(rows)}."
    return f"**What I found.** {sentence}{by_metric} In my own words: {BLANK}."


def _not_shown(data: dict, treated: str) -> str:
    rest = "; ".join(f"{metric_name(m)}: {verdict}" for m, verdict in _undecided(data).items())
    which = "anything, since a control failed" if data["refusal"] else rest or "every metric has a verdict"
    lost = data["pairwise"]["losses"] if data["pairwise"] else 0
    return (
        f"**What I did not find.** {which[0].upper()}{which[1:]}. {power_sentence(data)} A smaller effect would have "
        f"escaped me. {treated} lost {lost} prompts. I read {BLANK} of these answers, and what most of them have in "
        f"common is {BLANK}. Temperature 0 says {BLANK}."
    )


def _belief(data: dict, treated: str) -> str:
    passed = sum(control["passed"] for control in data["controls"])
    characters = ", ".join(f"{arm_name(arm)} {count:.0f}" for arm, count in data["characters"].items() if count)
    warned = f" A warning stands: {'; '.join(data['warnings'])}. I answer it with {BLANK}." if data["warnings"] else ""
    return (
        f"**Why anyone should believe it.** {passed} of {len(data['controls'])} controls passed.{warned} Mean length "
        f"in characters: {characters}; so length {BLANK}. With 30 prompts I would probably have said {BLANK}."
    )


def _next(data: dict, treated: str) -> str:
    needs = [
        f"{metric_name(metric)} {verdict.partition(': ')[2]}"
        for metric, verdict in _undecided(data).items()
        if "needs" in verdict and not data["refusal"]
    ]
    cost = f"To settle the rest: {'; '.join(needs)}. " if needs else ""
    return (
        f"**What I do next.** {cost}I would change {BLANK} (beta, the pairs, the judge, the demonstrations) because "
        f"{BLANK}, and I expect {BLANK} of it. I would no longer say that {treated} is better if {BLANK}."
    )


def _undecided(data: dict) -> dict[str, str]:
    """The verdicts that are neither better nor worse, by metric."""
    verdicts = {metric: difference_of(values)["verdict"] for metric, values in data["metrics"].items()}
    return {metric: verdict for metric, verdict in verdicts.items() if verdict not in ("better", "worse")}
