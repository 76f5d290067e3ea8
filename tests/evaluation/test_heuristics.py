"""What is said of answers without a judge, on answers whose values can be worked out by hand."""

import pytest

from dpo_kit.evaluation.heuristics import compare_heuristics, measure, well_formed
from dpo_kit.records import Prompt, Response

ASKED = "Please tell me in a few sentences how a bicycle stays upright while it is moving."


def answer(text, prompt="1", arm="a", stopped=True, **more):
    return Response(prompt_id=prompt, text=text, arm=arm, stopped=stopped, **more)


def test_words_and_repetition_are_counted_by_hand():
    # 8 words, 5 four-grams: (a b c d) (b c d a) (c d a b) (d a b c) (a b c d), of which one repeats another
    found = measure(ASKED, answer("A b c d, a b c d!"))
    assert found["words"] == 8
    assert found["repetition"] == pytest.approx(1 / 5)
    assert measure(ASKED, answer("too short"))["repetition"] == 0
    assert measure(ASKED, answer("日本語 text"))["words"] == 4, "each character of Japanese counts, it has no spaces"


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I’m sorry, I cannot do that.", True),
        ("As an AI language model I have no opinion.", True),
        ("I won't write this.", True),
        ("You cannot divide by zero.", False),
        ("Sorry seems to be the hardest word.", False),
        ("x" * 300 + " I cannot help.", False),
    ],
)
def test_a_refusal_is_known_by_how_an_answer_begins(text, refuses):
    assert measure(ASKED, answer(text))["refusal"] is refuses


def test_another_language_is_seen_and_a_short_answer_is_left_open():
    german = "Ein Fahrrad bleibt beim Fahren aufrecht, weil das Vorderrad in die Richtung lenkt, in die es fällt."
    english = "A moving bicycle stays upright because its front wheel turns into the direction of the fall."
    assert measure(ASKED, answer(german))["same_language"] is False
    assert measure(ASKED, answer(english))["same_language"] is True
    assert measure(ASKED, answer("Yes."))["same_language"] is None
    assert measure("Why?", answer(english))["same_language"] is None


@pytest.mark.parametrize(
    ("asked", "text", "right"),
    [
        ("?", "Fine.", True),
        ("?", " \n", False),
        ("?", "```python\nx = 1", False),
        ("?", "Well.<|im_end|>", False),
        ("?", "It is.\nUser: and now?", False),
        ("Reply with a JSON object.", '{"a": 1}', True),
        ("Reply with a JSON object.", 'Here:\n```json\n{"a": 1}\n```', True),
        ("Reply with a JSON object.", "a is 1", False),
        ("What is JSON?", "A format.", True),
    ],
)
def test_the_form_of_an_answer_is_checked(asked, text, right):
    assert well_formed(asked, text) is right


def compared(texts, stops=(True, True)):
    """Two arms, treated and control, on as many prompts as each has texts."""
    prompts = [Prompt.from_text(f"Question {i}").model_copy(update={"id": str(i)}) for i in range(len(texts[0]))]
    responses = [
        answer(text, str(i), arm, stopped)
        for arm, given, stopped in zip(("new", "old"), texts, stops, strict=True)
        for i, text in enumerate(given)
    ]
    return compare_heuristics(prompts, responses, ["old", "new"], ("new", "old"))


def test_differences_are_paired_and_neither_better_nor_worse():
    """Each new answer has exactly ten words more than the old one to the same prompt: the difference is 10, surely."""
    old = [" ".join(f"w{i}x{j}" for j in range(20 + i)) for i in range(30)]
    metrics, warnings = compared([[text + " " + " ".join(f"v{j}" for j in range(10)) for text in old], old])
    words = metrics["words"].difference
    assert (words.interval.mean, words.interval.low, words.interval.high) == (10, 10, 10)
    assert words.verdict == "higher"
    assert metrics["words"].means == {"old": 34.5, "new": 44.5}
    assert "answers differ much in length: new has 44 words on average, old 34" in warnings[0]
    assert metrics["refusal"].difference.interval.mean == 0
    assert not any(word in metric.difference.verdict for metric in metrics.values() for word in ("better", "worse"))


def test_what_is_said_to_everyone_is_not_distinct():
    same, own = ["the same to all"] * 4, [f"only{i} for you{i}" for i in range(4)]
    metrics, _ = compared([same, own])
    assert metrics["distinct_bigrams"].means == {"old": 1, "new": 0}


def test_answers_that_do_not_end_are_said_aloud():
    texts = [f"answer number {i}" for i in range(10)]
    metrics, warnings = compared([texts, texts], stops=(False, True))
    assert metrics["stopped"].means == {"old": 1, "new": 0}
    assert metrics["stopped"].difference.verdict == "lower"
    assert "only 0% of new's answers ended by themselves" in warnings[0]
    assert "0% of new's answers ended by themselves and 100% of old's" in warnings[1]
    assert compared([texts, texts])[1] == []
    assert "stopped" not in compared([texts, texts], stops=(None, None))[0], "nobody knows, so nothing is said"


def test_one_prompt_has_means_and_no_difference():
    metrics, _ = compared([["one two three"], ["one two"]])
    assert metrics["words"].means == {"old": 2, "new": 3}
    assert metrics["words"].difference.interval is None
    assert metrics["words"].difference.verdict.startswith("nothing to compare")


def test_samples_of_one_prompt_are_averaged():
    prompts = [Prompt.from_text("?").model_copy(update={"id": "1"})]
    responses = [answer("one two", seed=0), answer("one two three four", seed=1), answer("x", arm="b")]
    metrics, _ = compare_heuristics(prompts, responses, ["a", "b"], ("b", "a"))
    assert metrics["words"].means["a"] == 3
