"""Real replies of GPT-4 to LLMBar (arXiv 2310.07641): our reading of them gives the published figures, exactly.

The judge was asked in both orders (swap); where it contradicted itself it was shown both explanations and asked again
in both orders, so an item has one or two results and the last one counts.
"""

import json
import re
from collections import Counter

import pytest
from sklearn.metrics import cohen_kappa_score

from dpo_kit.preferences.judges import MIRROR, both_orders
from dpo_kit.preferences.judges.prompt import BadReply, parse_reply
from dpo_kit.records import Message, Prompt, Verdict

NAMES = {"1": "a", "2": "b"}


@pytest.fixture(scope="module")
def items(real_data):
    folder = real_data / "llmbar"
    return json.loads((folder / "natural_gpt4_swap_cot_replies.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def published(real_data):
    return json.loads((real_data / "llmbar" / "natural_gpt4_swap_cot_published.json").read_text(encoding="utf-8"))


def closing_sentence(text):
    """The winner that a reply names in the sentence that it must close with, verbatim; nothing before it is read."""
    closing = re.search(r"(?:\A|\s)Therefore, Output \(([ab])\) is better\.\s*\Z", text)
    if not closing:
        raise BadReply(f"the reply closes with {text[-60:]!r}, not with a verdict")
    return closing[1]


def read(result):
    """Both verdicts on one item in the items' own names."""
    shown = closing_sentence(result["swap = False"]["completion"][0])
    swapped = closing_sentence(result["swap = True"]["completion"][0])
    return shown, MIRROR[swapped]


def test_every_reply_is_read_as_its_authors_read_it(items):
    results = [result for item in items for result in item["results"]]
    assert len(results) == 107
    for result in results:
        assert read(result) == tuple(NAMES[result[f"swap = {swap}"]["winner"]] for swap in (False, True))


def test_agreement_with_people_and_between_the_orders_are_the_published_figures(items, published):
    last = [read(item["results"][-1]) for item in items]
    labels = [NAMES[str(item["label"])] for item in items]
    agree = [sum(pair[i] == label for pair, label in zip(last, labels, strict=True)) for i in (0, 1)]
    both = sum(pair == (label, label) for pair, label in zip(last, labels, strict=True))
    equal = sum(first == second for first, second in last)
    said = {"correct_False": agree[0], "correct_True": agree[1], "correct_both": both, "equal": equal}
    assert {key: f"{count} / 100 = {count:.1f}%" for key, count in said.items()} == {
        key: published[key] for key in said
    }
    assert f"{sum(agree) / 2:.1f}%" == published["correct_average"]


def test_the_published_kappas_follow_once_their_coding_is_followed(items, published):
    # The authors' script codes winner 1 as 1 and winner 2 as 0, but labels as 1 and 2, so its kappa cannot exceed
    # what items with label 1 alone give: .264. With one coding for both, the same verdicts agree at kappa .878.
    last = [read(item["results"][-1]) for item in items]
    labels = [item["label"] for item in items]
    for i, swap in enumerate((False, True)):
        theirs = cohen_kappa_score([int(pair[i] == "a") for pair in last], labels)
        assert theirs == pytest.approx(published[f"kappa_{swap}"], abs=1e-12)
    # 40 times both say 1, 54 times both 2: observed .94, expected .42 * .44 + .58 * .56 = .5096.
    ours = cohen_kappa_score([NAMES[str(label)] for label in labels], [pair[0] for pair in last])
    assert ours == pytest.approx((0.94 - 0.5096) / (1 - 0.5096))
    assert cohen_kappa_score(*zip(*last, strict=True)) == published["kappa_agreement"]


def test_both_orders_turns_the_seven_contradictions_of_the_first_round_into_ties(items):
    replies = {}
    for number, item in enumerate(items):
        for swap, key in ((False, ("x", "y")), (True, ("y", "x"))):
            replies[str(number), key] = item["results"][0][f"swap = {swap}"]["completion"][0]

    def judge(prompt, a, b):
        winner = closing_sentence(replies[prompt.id, (a, b)])
        return Verdict(winner=winner, judge="gpt-4", reason="")

    message = (Message(role="user", content="?"),)
    verdicts = [both_orders(judge)(Prompt(id=str(n), messages=message), "x", "y") for n in range(len(items))]
    assert Counter(v.winner for v in verdicts) == {"a": 39, "b": 54, "tie": 7}
    contradicted = [v.in_orders[0] != v.in_orders[1] for v in verdicts]
    assert contradicted == [len(item["results"]) == 2 for item in items], "just those the authors asked again"


def test_the_two_forms_of_reply_are_not_taken_for_each_other(items):
    for item in items:
        with pytest.raises(BadReply):
            parse_reply(item["results"][0]["swap = False"]["completion"][0])


@pytest.mark.parametrize(
    "reply",
    [
        "Therefore, Output (c) is better.",
        "Therefore, Output (a) is better. Or is it?",
        "Output (a) is better.",
        "It is not the case that, Therefore, Output (a) is better",
        "therefore, output (a) is better.",
        "",
    ],
)
def test_a_reply_that_does_not_close_with_the_sentence_is_no_verdict(reply):
    with pytest.raises(BadReply):
        closing_sentence(reply)
    assert closing_sentence(f"{reply} Therefore, Output (b) is better.\n") == "b", "only the close is read"
