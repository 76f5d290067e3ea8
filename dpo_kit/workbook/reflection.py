"""The reflection at the end of a comparison: about 300 words that begin with the run's own numbers.

The numbers are filled in. Their interpretation is left blank for the reader to write.
"""

from dpo_kit.evaluation.results import Report
from dpo_kit.views.tables import arm_name, interval, metric_name, pairwise_sentence, power_sentence, short

BLANK = "\\_\\_\\_\\_\\_\\_"


def reflection(report: Report) -> str:
    """A Markdown template from a report. Where a control failed it gives no verdict, only the counts."""
    treated, control = map(arm_name, report.primary)
    return "\n\n".join(
        [
            f"### Reflection: is {treated} better than {control}?",
            _asked(report, treated, control),
            _found(report),
            _not_shown(report, treated),
            _belief(report),
            _next(report, treated),
        ]
    )


def _asked(report: Report, treated: str, control: str) -> str:
    judge = report.judged.judge if report.judged else "nobody"
    return (
        f"**What I asked.** Whether {treated} is better than {control} at {BLANK}. Fixed before looking: this one "
        f"contrast, {report.n_prompts} held-out prompts, one answer an arm ({report.sampling}), judged by {judge}. "
        f"The smallest difference that would matter to me is {BLANK}, because {BLANK}."
    )


def _found(report: Report) -> str:
    sentence = pairwise_sentence(report.pairwise, report.primary, report.refusal)
    rows = [
        f"{metric_name(name)} {interval(metric.difference.interval, '+')}, {short(metric.difference.verdict)}"
        for name, metric in report.metrics.items()
    ]
    by_metric = "" if report.refusal else f" By metric: {'; '.join(rows)}."
    return f"**What I found.** {sentence}{by_metric} In my own words: {BLANK}."


def _not_shown(report: Report, treated: str) -> str:
    rest = "; ".join(f"{metric_name(name)}: {verdict}" for name, verdict in _undecided(report).items())
    which = "anything, since a control failed" if report.refusal else rest or "every metric has a verdict"
    lost = report.pairwise.losses if report.pairwise else 0
    return (
        f"**What I did not find.** {which[0].upper()}{which[1:]}. {power_sentence(report)} I would have missed a "
        f"smaller effect. {treated} lost {lost} prompts. I read {BLANK} of these answers, and what most of them have "
        f"in common is {BLANK}. Temperature 0 says {BLANK}."
    )


def _belief(report: Report) -> str:
    passed = sum(control.passed for control in report.controls)
    characters = ", ".join(f"{arm_name(arm)} {count:.0f}" for arm, count in report.characters.items() if count)
    warned = f" A warning stands: {'; '.join(report.warnings)}. I answer it with {BLANK}." if report.warnings else ""
    return (
        f"**Why anyone should believe it.** {passed} of {len(report.controls)} controls passed.{warned} Mean length "
        f"in characters: {characters}; so length {BLANK}. With 30 prompts I would probably have said {BLANK}."
    )


def _next(report: Report, treated: str) -> str:
    needs = [
        f"{metric_name(name)} {verdict.partition(': ')[2]}"
        for name, verdict in _undecided(report).items()
        if "needs" in verdict and not report.refusal
    ]
    cost = f"To settle the rest: {'; '.join(needs)}. " if needs else ""
    return (
        f"**What I do next.** {cost}I would change {BLANK} (beta, the pairs, the judge, the demonstrations) because "
        f"{BLANK}, and I expect {BLANK} of it. I would no longer say that {treated} is better if {BLANK}."
    )


def _undecided(report: Report) -> dict[str, str]:
    """The verdicts that are neither better nor worse, by metric."""
    verdicts = {name: metric.difference.verdict for name, metric in report.metrics.items()}
    return {name: verdict for name, verdict in verdicts.items() if verdict not in ("better", "worse")}
