import math
import random

import pytest

from dpo_kit.errors import DpoKitError
from dpo_kit.evaluation.scoring import checked, rate_all, same_judge, unjudged_because
from dpo_kit.records import PreferencePair, Prompt, Response, Verdict
from dpo_kit.triage import rubric
from dpo_kit.triage.incidents import Incident

PROMPT = Prompt(id="capital", messages=[{"role": "user", "content": "Capital of France?"}])


def test_a_number_is_one_metric_named_like_the_function_and_a_dict_holds_several():
    def paris(prompt, text):
        return float("Paris" in text)

    assert checked(paris)(PROMPT, "Paris") == {"paris": 1.0}
    both = checked(lambda p, text: {"paris": paris(p, text), "brief": 1 / (1 + len(text))})
    assert both(PROMPT, "Paris") == {"paris": 1.0, "brief": 1 / 6}


def test_the_rubric_passes_its_own_checks(incidents):
    for prompt in incidents[:20]:
        answer = Incident.from_facts(prompt.facts).answer
        assert checked(rubric.score)(prompt, answer) == rubric.score(prompt, answer)


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1, 1.1, "1", None, [1]])
def test_what_is_not_a_number_in_the_range_is_named_with_its_prompt(value):
    with pytest.raises(DpoKitError, match=r"metric paris gave .* on prompt capital; a number in \[0, 1\]"):
        checked(lambda p, text: {"paris": value})(PROMPT, "x")
    with pytest.raises(DpoKitError, match="metric <lambda> gave"):
        checked(lambda p, text: value)(PROMPT, "x")


def test_a_declared_range_is_the_one_that_counts():
    def stars(prompt, text):
        return 4

    assert checked(stars, low=1, high=5)(PROMPT, "x") == {"stars": 4.0}
    with pytest.raises(DpoKitError, match=r"\[0, 1\]"):
        checked(stars)(PROMPT, "x")


def test_a_function_that_changes_its_mind_is_caught():
    dice = random.Random(0)
    with pytest.raises(DpoKitError, match=r"dice gave .* and then .* on prompt capital"):
        checked(lambda p, text: {"dice": dice.random()})(PROMPT, "x")
    names = iter("ab")
    with pytest.raises(DpoKitError, match="names different metrics when asked again, prompt capital"):
        checked(lambda p, text: {next(names): 1.0})(PROMPT, "x")


def test_an_exception_names_the_metric_the_prompt_and_the_cause():
    def share(prompt, text):
        return 1 / len(text)

    with pytest.raises(DpoKitError, match="metric share failed on prompt capital: ZeroDivisionError") as raised:
        checked(share)(PROMPT, "")
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_what_a_judge_could_not_score_stays_unscored_with_its_reason():
    replies = iter([(4, "fine"), (None, "refused"), (0, "off the scale"), (True, "not a score"), (math.nan, "lost")])
    ratings = rate_all(lambda p, text: next(replies), [PROMPT] * 5, ["x"] * 5)
    assert [rating.score for rating in ratings] == [4.0, None, None, None, None]
    assert ratings[1].reason == "refused"
    assert "score 0 is not on the scale 1 to 5: off the scale" in ratings[2].reason


def test_the_judge_that_labelled_the_training_pairs_is_named():
    def verdict(judge):
        return Verdict(winner="a", judge=judge, reason="")

    answer = Response(prompt_id="capital", text="Paris")
    pairs = [PreferencePair(prompt=PROMPT, chosen=answer, rejected=answer, verdict=verdict("rubric"))]
    assert "(rubric) also labelled the training pairs" in same_judge([verdict("rubric")], pairs)
    assert same_judge([verdict("another")], pairs) is None
    assert same_judge([], pairs) is None


def test_the_reasons_of_unjudged_prompts_are_counted_without_what_they_quote():
    def unjudged(reason, in_orders=None):
        return Verdict(winner="unjudged", judge="j", reason=reason, in_orders=in_orders)

    both = "first shown first: {}; second shown first: {}"
    given = [
        unjudged("malformed reply: not one JSON object: 'A is'"),
        unjudged(both.format("fine", "malformed reply: not one JSON object: 'B: \"is\"'"), ("a", "unjudged")),
        unjudged(both.format("budget: up to 0.0123 dollars more", "fine"), ("unjudged", "b")),
        unjudged(both.format("budget: up to 0.5 dollars more", "refused"), ("unjudged", "unjudged")),
        unjudged(""),
        Verdict(winner="tie", judge="j", reason="equal"),
    ]
    assert unjudged_because(given) == {
        "malformed reply: not one JSON object": 2,
        "budget: up to ... dollars more": 2,
        "no reason given": 1,
    }
