"""One evaluation: it takes answers and returns a report. The commands `run` and `evaluate` both use it.

Before it, `arms.answer_all` gets the answers; after it, `views.report` writes the report. Nothing here reads or writes
a file. A judge that is a language model calls its server.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dpo_kit.evaluation.comparison import PRIMARY, compare, first_answers
from dpo_kit.evaluation.controls import run_controls, varied
from dpo_kit.evaluation.results import Control, Report
from dpo_kit.evaluation.scoring import Rate, Score
from dpo_kit.preferences.judges import Judge
from dpo_kit.records import PreferencePair, Prompt, Response


def evaluate_answers(
    prompts: Sequence[Prompt],
    responses: Sequence[Response],
    score: Score | None,
    judge: Judge | None,
    *,
    temperature: float,
    resample: Sequence[Response] = (),
    arms: Sequence[str] | None = None,
    primary: tuple[str, str] = PRIMARY,
    rate: Rate | None = None,
    trained_on: Sequence[PreferencePair] = (),
    reasons: Mapping[str, str] | None = None,
    controlled: int | None = None,
    seed: int = 0,
    workers: int = 1,
    **made: Any,
) -> Report:
    """Compare the answers that were drawn at `temperature`, put the judge through its controls, and report both.

    Where `responses` also hold greedy answers, these are compared separately. `resample` are second answers of the
    control arm, for the control that compares an arm with itself. Controls ask the judge about the first `controlled`
    prompts, or all; with 0 they ask it nothing. `made` holds further fields of the report, such as its `profile` and
    its `versions`; the other arguments are those of `compare`. Raises DpoKitError as `compare` does.
    """
    settings = {"arms": arms, "primary": primary, "rate": rate, "trained_on": trained_on, "workers": workers}
    # the sampled answers; the controls use these
    drawn = [response for response in responses if response.temperature == temperature]
    # empty where all answers are greedy, because then they are the answers at `temperature`
    greedy = [response for response in responses if response.temperature == 0 != temperature]
    compared = compare(prompts, drawn, score, judge, reasons=reasons, **settings)
    asked = judge if controlled != 0 else None
    controls = _controls(prompts[: controlled or None], drawn, resample, asked, primary, seed, workers)
    if controls is None:
        told = "the judge's controls were not run: they need two prompts that all arms answered"
        compared = replace(compared, warnings=(*compared.warnings, told))
    return Report(
        **vars(compared),
        seed=seed,
        sampling=f"sampled at temperature {temperature:g}" if temperature else "decoded greedily",
        controls=controls or (),
        greedy=compare(prompts, greedy, score, judge, **settings) if greedy else None,
        **made,
    )


def _controls(
    prompts: Sequence[Prompt], responses: Sequence[Response], resample: Sequence[Response],
    judge: Judge | None, primary: tuple[str, str], seed: int, workers: int,
) -> tuple[Control, ...] | None:  # fmt: skip
    """The controls on the prompts that all arms answered; None where there is a judge and too few such prompts."""
    again = {response.prompt_id: response.text for response in resample}
    prompts = [prompt for prompt in prompts if prompt.id in again or not again]
    wanted = {prompt.id for prompt in prompts}
    asked, answers = first_answers(prompts, [r for r in responses if r.prompt_id in wanted])
    if judge is None:
        return tuple(varied(arm, texts) for arm, texts in answers.items())
    if len(asked) < 2 or not set(primary) <= answers.keys():
        return None
    second = [again[prompt.id] for prompt in asked] if again else None
    return run_controls(asked, answers, judge, resample=second, primary=primary, seed=seed, workers=workers)
