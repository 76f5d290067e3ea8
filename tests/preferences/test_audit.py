"""Each check of the audit reports its fault, and does not report similar rows without the fault."""

import io
import json
import math
import random

import numpy as np
import pytest
from rich.console import Console
from transformers import AutoTokenizer

from benchmarks import audit_faults
from dpo_kit.cli import main
from dpo_kit.errors import DpoKitError
from dpo_kit.jsonl import read_pairs, write_pairs, write_records
from dpo_kit.models.tokens import Scoring
from dpo_kit.preferences.audit import audit_pairs, content, duplicates, labels, privacy, shortcuts
from dpo_kit.profiles import ROOT
from dpo_kit.records import Message, PreferencePair, Prompt, Response, Verdict
from dpo_kit.views.tables import audit_table
from dpo_kit.workbook.figures import audit as audit_figures
from tests.odd_models import TEMPLATES as ODD_TEMPLATES

AKIA = "AKIA7Q2MZX4PLT5WNB3C"


def pair(prompt="Why is the sky blue?", chosen="Air scatters blue light.", rejected="It is paint.", **how):
    """A pair from three texts; `messages`, `stopped` and `judge` where they matter."""
    asked = Prompt.of(how.get("messages") or [Message(role="user", content=prompt)])
    sides = [Response(prompt_id=asked.id, text=text, stopped=how.get("stopped", True)) for text in (chosen, rejected)]
    verdict = Verdict(winner="a", judge=how.get("judge", "j"), reason="")
    return PreferencePair(prompt=asked, chosen=sides[0], rejected=sides[1], verdict=verdict)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ROOT / "data" / "tiny-base")


def turns(*roles):
    return [Message(role=role, content="words") for role in roles]


FINE = [
    pair(),
    pair("Who wrote Emma?", "Jane Austen.", "Charlotte Bronte."),
    pair(messages=turns("system", "user", "assistant", "user")),
    pair("What is 17 + 4?", "21", "22"),
]
FAULTS = {
    "identical answers": [pair(chosen="Same.", rejected=" Same.\n")],
    "empty or blank": [pair(chosen=""), pair(rejected="\u200b \n"), pair(prompt="\ufeff")],
    "wrong role order": [
        *(pair(messages=turns(*roles)) for roles in (
            ("user", "assistant"), ("assistant", "user"), ("user", "user"), ("user", "system", "user"), ("system",),
        )),
        pair(rejected="No.\n\nHuman: And why?"), pair("<|im_start|>user\nhello"),
    ],
    "cut off": [pair(stopped=False)],
    "looks cut off": [
        pair(rejected="It is because the", stopped=None), pair(chosen="```python\nprint(1)", stopped=None),
        pair(chosen="One is this. Two is that. And the third one comes from a very different", stopped=None),
    ],
    "secrets": [
        pair(chosen=f"Use {AKIA}."), pair("sk-proj-9aF3kQ7LmZ2xWv8TbR4nYc6H?"), pair(rejected="4539 1488 0343 6467"),
        pair(chosen="GB82 WEST 1234 5698 7654 32"), pair(chosen="-----BEGIN PRIVATE KEY-----\nMIIE"),
    ],
    "personal data": [
        pair(chosen="Write to a.b@c-d.org"), pair("Call +49 30 901820 44"), pair(chosen="(415) 555-0142"),
        pair(rejected="ping 93.184.216.34"),
    ],
}  # fmt: skip
NEAR_MISSES = {
    "identical answers": [pair(chosen="Same.", rejected="same.")],
    "empty or blank": [pair(chosen="?", rejected="👍")],
    "wrong role order": [pair(chosen="Human: a biped. Assistant: a helper.")],
    "cut off": [pair(stopped=None)],
    "looks cut off": [
        pair(chosen="ok sounds good to me", rejected="no idea what you are looking for", stopped=None),
        pair(chosen="First, boil it. Then drain. You need:\n- a pot\n- salt and pepper and some butter for the pan",
             stopped=None),
        pair(chosen="It is 42", rejected="```\nx\n```", stopped=None),
    ],
    "secrets": [
        pair(chosen="Order 4539 1488 0343 6468, a risk-aversion-and-other-long-words, GB82 WEST 1234 5698 7654 33"),
    ],
    "personal data": [
        pair(chosen="@home since 12:30, version 1.2.3.4.5, 192.168.0.1, ISBN 978-3-16-148410-0, 2024-05-17"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("check", FAULTS)
def test_a_check_of_rows_fires_on_its_fault_and_not_beside_it(check):
    faulty = [FINE[0], *FAULTS[check], FINE[1]]
    assert audit_pairs(faulty)[check].rows == tuple(range(1, len(FAULTS[check]) + 1))
    assert audit_pairs([*FINE, *NEAR_MISSES[check]])[check].severity == "ok"


def test_what_is_certain_is_dropped_and_what_is_a_guess_is_kept():
    guesses = [pair("b", "I ask whether the", stopped=None), pair("c", "x@y.org")]
    report = audit_pairs([*FINE, pair("a", chosen=""), *guesses])
    assert report.kept == [*FINE, *guesses]
    assert report.dropped == {4: ("empty or blank",)}
    assert [finding.name for finding in report.blocking] == ["empty or blank"]


def test_no_report_shows_what_it_found(capsys):
    secrets = [AKIA, "jane@mail.org", "4539 1488 0343 6467"]
    rows = [
        pair(f"p{i} {s}", f"{s} is it, because the", f"{s} is it, because the", stopped=None)
        for i, s in enumerate(secrets)
    ]
    data = audit_pairs(rows).to_json()
    shown = json.dumps(data) + audit_figures.audit_html(data)
    assert "[API key]" in shown
    assert not [secret for secret in secrets if secret in shown]


def test_check_digits_are_those_of_the_standards():
    # 7992739871_: doubling every second digit from the right of 79927398713 gives 70 = 0 (mod 10)
    assert [privacy.luhn(f"4539148803436{d}") for d in range(460, 470)].count(True) == 1
    assert privacy.iban("GB82 WEST 1234 5698 7654 32")
    assert not privacy.iban("GB28 WEST 1234 5698 7654 32")


# Tokens: the trained ids are those that TRL 1.16 makes, row by row.


def trl_facts(tokenizer, row, limit):
    """Lengths and cuts as TRL's own code makes them."""
    from trl.data_utils import common_prefix_length

    def ids(chat, prompt=False):
        return tokenizer.apply_chat_template(chat, add_generation_prompt=prompt, return_dict=True)["input_ids"]

    trl = row.to_trl()
    prompt, *sides = ids(trl["prompt"], True), ids(trl["prompt"] + trl["chosen"]), ids(trl["prompt"] + trl["rejected"])
    border = min(common_prefix_length(prompt, side) for side in sides)
    return (border, *(len(side) - border for side in sides)), any(len(side) > limit for side in sides)


@pytest.mark.parametrize("faulty", [False, True])
def test_token_facts_are_those_of_trl(tokenizer, faulty, real_data):
    from dpo_kit.preferences.audit.tokens import token_facts

    tokenizer = audit_faults.faulty_tokenizer() if faulty else tokenizer
    rows = [*FINE, pair(chosen="\nNo", rejected="\n\nYes"), *audit_faults.clean_pairs(40, random.Random(0))]
    facts = token_facts(tokenizer, rows, range(len(rows)), 150)
    assert token_facts(tokenizer, rows, range(len(rows)), 150, workers=2) == facts
    expected = [trl_facts(tokenizer, row, 150) for row in rows]
    assert [facts.lengths[i] for i in range(len(rows))] == [lengths for lengths, _ in expected]
    assert sorted(facts.cut) == [i for i, (_, cut) in enumerate(expected) if cut] != []
    assert sorted(facts.prefix) == ([4] if faulty else [])


def test_a_template_without_eos_is_blamed_and_its_rows_are_kept(tokenizer):
    assert audit_pairs(FINE, tokenizer)["no EOS after templating"].severity == "ok"
    bare = AutoTokenizer.from_pretrained(ROOT / "data" / "tiny-base")
    bare.chat_template = bare.chat_template.replace("<|end|>", "")
    report = audit_pairs(FINE, bare)
    assert report["no EOS after templating"].severity == "blocking"
    assert report["no EOS after templating"].share == 1
    assert report.kept == FINE


def test_white_space_after_eos_is_harmless_and_a_refusing_template_is_a_finding(tokenizer):
    newline = AutoTokenizer.from_pretrained(ROOT / "data" / "tiny-base")
    newline.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
        "<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    report = audit_pairs(FINE, newline)
    assert report["no EOS after templating"].severity == "ok"
    assert report["wrong role order"].rows == (2,)
    assert "no system turn" in report["wrong role order"].examples[0].why


def test_text_after_eos_is_an_answer_that_does_not_end_there():
    talkative = AutoTokenizer.from_pretrained(ROOT / "data" / "tiny-base")
    talkative.chat_template = talkative.chat_template.replace("<|end|>", "<|end|>ok")
    finding = audit_pairs(FINE, talkative)["no EOS after templating"]
    assert (finding.severity, finding.share) == ("blocking", 1)
    assert "<|end|>ok" in finding.examples[0].why


def test_an_answer_is_cut_off_by_one_token_and_not_by_none(tokenizer):
    row = FINE[0]
    longest = max(
        len(tokenizer.apply_chat_template(row.to_trl()["prompt"] + row.to_trl()[side], return_dict=True)["input_ids"])
        for side in ("chosen", "rejected")
    )
    assert audit_pairs([row], tokenizer, max_length=longest)["EOS cut off"].severity == "ok"
    cut = audit_pairs([row], tokenizer, max_length=longest - 1)["EOS cut off"]
    assert cut.examples[0].why == "chosen by 1 tokens"


def test_what_max_length_cuts_and_what_it_makes_equal(tokenizer):
    long = "word " * 60
    rows = [*FINE, pair("a", long + "yes", "no"), pair("b", long + "yes", long + "no"), pair(long, "yes", "no")]
    report = audit_pairs(rows, tokenizer, max_length=60)
    assert report["EOS cut off"].rows == (4, 5, 6)
    assert report["identical after truncation"].rows == (5, 6)
    assert report["lengths"].share == pytest.approx(3 / 7)
    assert audit_pairs(rows, tokenizer, max_length=2000)["EOS cut off"].severity == "ok"
    assert (
        audit_pairs(rows, tokenizer)["EOS cut off"].severity == audit_pairs(rows)["EOS cut off"].severity == "skipped"
    )


def test_a_tokenizer_without_template_and_no_pairs_are_errors(tokenizer):
    bare = AutoTokenizer.from_pretrained(ROOT / "data" / "tiny-base")
    bare.chat_template = None
    with pytest.raises(DpoKitError, match="no chat template"):
        audit_pairs(FINE, bare)
    with pytest.raises(DpoKitError, match="no pairs"):
        audit_pairs([])


# Repeats.

STORY = (
    "the old harbour master counted every boat that came home before the storm and wrote their names in a green book"
)


def test_duplicates_do_not_see_case_and_white_space_but_numbers_and_words():
    rows = [
        pair("one", STORY, "no"),
        pair(" ONE ", STORY.upper(), "no "),
        pair("one", STORY, "never"),
        pair("two", STORY, "no"),
    ]
    assert audit_pairs(rows)["duplicates"].rows == (1,)
    assert audit_pairs(rows)["near-duplicates"].severity == "ok"


def test_two_forms_of_one_text_in_unicode_are_duplicates():
    composed, decomposed, wide = "caf\u00e9 of\ufb01ce", "cafe\u0301 office", "ｃａｆé office"
    rows = [pair("one", text, "no") for text in (composed, decomposed, wide, "cafe office")]
    assert audit_pairs(rows)["duplicates"].rows == (1, 2)


@pytest.mark.parametrize("part", ["prompt", "chosen", "rejected"])
def test_rows_that_differ_in_one_part_are_no_duplicates(part):
    same = {"prompt": "one", "chosen": "yes", "rejected": "no"}
    assert audit_pairs([pair(**same), pair(**same | {part: "other"})])["duplicates"].severity == "ok"


def test_near_duplicates_share_most_words_and_all_numbers():
    rows = [pair("Continue:", STORY, "no"), pair("Continue.", STORY.replace("green", "blue"), "No!")]
    # 24 words with the role's name, so 22 triples; one changed word is in 3 of them: J = 19 / (22 + 3) = .76
    assert audit_pairs(rows)["near-duplicates"].count == 1
    other = [pair("Continue:", f"{STORY} in 1911", "no"), pair("Continue:", f"{STORY} in 1912", "no")]
    assert audit_pairs(other)["near-duplicates"].severity == "ok"
    answers = [pair(f"{STORY} twice", "yes indeed", "no"), pair(f"{STORY} twice", "never ever", "no")]
    assert audit_pairs(answers)["near-duplicates"].severity == "ok"


def system_rows(systems, questions):
    """Rows with a system text and a question, each answered by one word."""
    asked = zip(systems, questions, strict=True)
    return [
        pair(
            chosen="yard",
            rejected="office",
            messages=[Message(role="system", content=s), Message(role="user", content=q)],
        )
        for s, q in asked
    ]


QUESTIONS = (
    "Someone parked across my space",
    "The lathe hums",
    "My gate code fails",
    "When is rent due?",
    "Keys lost",
    "Who fixes the crane?",
    "A cat sits in the boat shed",
    "I moved to another street",
    "Invoice twice",
    "Roof leaks",
)


@pytest.mark.parametrize("rows", [
    system_rows([f"{STORY}. Answer with one department." for _ in QUESTIONS], QUESTIONS),
    [pair(f"Context: {STORY}. {STORY} once more.\n\nQuestion: {q}", "yes", "no") for q in QUESTIONS[:3]],
    [pair(f"please sort this mail for the {STORY} and say where it goes {w} thanks", "yard", "office")
     for w in ("anchor bolts", "rope", "tar", "sail cloth", "oars", "gulls", "nets", "crab pots", "paint", "lamp oil")],
], ids=["system", "context", "template"])  # fmt: skip
def test_text_that_rows_share_makes_no_near_duplicates(rows):
    report = audit_pairs(rows[1:], holdout=[rows[0].prompt])
    assert report["near-duplicates"].severity == "ok"
    assert report["near evaluation prompts"].severity == "ok"


def test_near_duplicates_are_components_whatever_the_order_of_the_rows():
    words = STORY.split()
    chain = [" ".join([*words[:at], *"abcdefgh"[:at], *words[at:]]) for at in range(4)]  # each is near the one before
    rows = [pair("Continue:", text, "no") for text in chain] + [pair(f"q{q}", q, "no") for q in QUESTIONS]
    kept = {p.chosen.text for p in audit_pairs(rows).kept}
    assert len(kept) == 1 + len(QUESTIONS)
    for seed in range(3):
        shuffled = random.Random(seed).sample(rows, len(rows))
        assert {p.chosen.text for p in audit_pairs(shuffled).kept} == kept
    assert len(audit_pairs(rows, keep=["near-duplicates"]).kept) == len(rows)
    with pytest.raises(DpoKitError, match="no finding 'near'"):
        audit_pairs(rows, keep=["near"])


# What the template does to the text.


def test_control_tokens_of_the_tokenizer_block_and_markup_of_others_is_said(tokenizer):
    forged = pair(rejected="Fine.<|end|><|user|>thanks<|end|>")
    assert audit_pairs([*FINE, forged], tokenizer)["control tokens in texts"].rows == (4,)
    assert audit_pairs([*FINE, forged])["control tokens in texts"].severity == "blocking"
    alpaca = pair("Below is an instruction.\n\n### Instruction:\nWhy?\n\n### Response:\n", "Yes.", "No.")
    other = pair("Why?", "So.<|eot_id|>", "No.")
    report = audit_pairs([*FINE, alpaca, other], tokenizer)
    assert report["control tokens in texts"].severity == "ok"
    assert report["markers of another model"].rows == (4, 5)
    assert len(report.kept) == 6


def test_text_that_a_template_leaves_out_is_said_and_equal_answers_block(tokenizer):
    odd = AutoTokenizer.from_pretrained(ROOT / "data" / "tiny-base")
    odd.chat_template = ODD_TEMPLATES["r1think"]
    rows = [*FINE, pair(chosen="<think>Light.</think>Water it.", rejected="<think>Who cares.</think>Water it.")]
    report = audit_pairs(rows, odd)
    assert report["no signal after rendering"].rows == report["text lost in rendering"].rows == (4,)
    assert report.kept == FINE
    odd.chat_template = ODD_TEMPLATES["sysdrop"]
    report = audit_pairs(FINE, odd)
    assert "system turn" in report["text lost in rendering"].examples[0].why
    assert report["text lost in rendering"].rows == (2,)
    assert report.kept == FINE


def test_the_report_says_and_shows_what_is_scored(tokenizer):
    found = audit_pairs(FINE, tokenizer, scoring=Scoring("last", "masked"))["what is scored"]
    assert "last assistant turn" in found.advice
    assert found.examples[0].why.endswith("<|assistant|>⟦Air scatters blue light.<|end|>⟧")


# What the data says of its own labels.


def test_scores_that_contradict_ties_small_margins_and_low_ratings_are_said():
    def scored(i, *scores):
        return pair(f"q{i}", "a b", f"c {i}").model_copy(update={"scores": scores})

    rows = [scored(0, 9, 2), scored(1, 2, 9), scored(2, 5, 5), scored(3, 6, 5.5), scored(4, 2, 1), pair("z", "a", "b")]
    report = audit_pairs(rows)
    flagged = {
        name: report[name].rows for name in ("scores against the label", "ties", "small margins", "both rated low")
    }
    assert list(flagged.values()) == [(1,), (2,), (3,), (4,)]
    assert report["scores against the label"].severity == "warning"
    assert sorted(report.dropped) == [1, 2]
    assert audit_pairs(rows[1:2])["scores against the label"].severity == "blocking"
    assert audit_pairs([pair()])["ties"].severity == "skipped"
    assert audit_pairs([pair().model_copy(update={"strength": -1.0})])["scores against the label"].count == 1


def test_an_annotator_who_prefers_both_answers_is_named_and_two_who_differ_are_not():
    def by(who, *answers):
        return pair("q", *answers).model_copy(update={"annotator": who})

    name = "an annotator's contradictions"
    assert audit_pairs([by("ann", "a", "b"), by("ann", "b", "a")])[name].rows == (0, 1)
    assert audit_pairs([by("ann", "a", "b"), by("bob", "b", "a")])[name].severity == "ok"


def test_coverage_and_off_policy_answers_are_measured():
    rows = [pair("about ferns", f"a{i}", "b") for i in range(18)] + [pair(f"q {q}", "a", "b") for q in QUESTIONS[:9]]
    found = audit_pairs(rows)["coverage of prompts"]
    assert (found.count, found.severity) == (10, "warning")
    assert found.share == pytest.approx(18 / 27)
    assert audit_pairs(FINE, logps=[-1.0, -4.0, -5.0, -6.0])["off-policy answers"].share == 0.75
    assert audit_pairs(FINE)["off-policy answers"].severity == "skipped"


def test_incidents_that_are_alike_by_construction_are_no_duplicates(incidents):
    rng = random.Random(0)
    rows = [audit_faults.incident_pair(prompt, rng) for prompt in incidents]
    report = audit_pairs(rows, holdout=[pair("another question").prompt])
    assert not report["duplicates"].rows
    assert len(report["near-duplicates"].rows) <= len(rows) / 100


def test_evaluation_prompts_are_found_exactly_and_nearly():
    holdout = [pair(STORY).prompt, pair(f"{STORY} in 1911").prompt]
    rows = [pair(STORY.upper()), pair(STORY.replace("green", "blue")), pair(f"{STORY} in 1912"), pair("Something else")]
    report = audit_pairs(rows, holdout=holdout)
    assert report["exact evaluation prompts"].rows == (0,)
    assert report["near evaluation prompts"].rows == (1,)
    assert audit_pairs(rows)["exact evaluation prompts"].severity == "skipped"


# Labels.


def test_opposite_labels_keep_the_majority_and_no_tie():
    won, lost = pair("q", "a", "b"), pair("q", "b", "a")
    assert audit_pairs([won, lost]).kept == []
    report = audit_pairs([won, lost, won.model_copy(update={"verdict": Verdict(winner="a", judge="k", reason="")})])
    assert report["opposite labels"].rows == (0, 1, 2)
    assert report.kept == [won]
    assert audit_pairs([won, pair("r", "b", "a")])["opposite labels"].severity == "ok"


def test_a_circle_is_found_and_a_chain_is_not():
    chain = [pair("q", "a", "b"), pair("q", "b", "c"), pair("q", "a", "c"), pair("r", "c", "a")]
    assert audit_pairs(chain)["preference cycles"].severity == "ok"
    circle = [*chain[:2], pair("q", "c", "a"), pair("q", "c", "d"), pair("r", "c", "a")]
    assert audit_pairs(circle)["preference cycles"].rows == (0, 1, 2)


def test_the_noise_of_labels_is_recovered_from_repeats():
    # Two judges, each wrong with probability e = .2, agree with probability .8^2 + .2^2 = .68. Over 2,000 pairs the
    # standard error of the agreement is .0104, and de/dA = 1 / (2 sqrt(2 A - 1)) = .83 makes .0087 of it.
    assert labels.error_rate(0.68) == pytest.approx(0.2)
    rng = random.Random(0)
    rows = [
        pair(f"q{i}", *(("a", "b") if rng.random() > 0.2 else ("b", "a")), judge=judge)
        for i in range(2000)
        for judge in "jk"
    ]
    noise = labels.label_noise(rows, duplicates.keys(rows))
    assert noise.pairs == 2000
    assert noise.error == pytest.approx(0.2, abs=4 * 0.0087)
    assert noise.low < 0.2 < noise.high


def test_copies_are_no_second_judgement_and_turned_labels_are_no_noise():
    assert audit_pairs([pair(), pair()])["label noise"].severity == "skipped"
    assert audit_pairs([pair(judge="j"), pair(judge="k")])["label noise"].share == 0
    turned = audit_pairs([pair("q", "a", "b"), pair("q", "b", "a")])["label noise"]
    assert turned.severity == "warning"
    assert "swapped" in turned.advice


# Shortcuts.


def worlds(n, chosen, rejected):
    """Pairs of random words; `chosen` and `rejected` finish the texts."""
    rng = random.Random(0)
    text = lambda: " ".join(rng.choices(STORY.split(), k=rng.randint(20, 60)))  # noqa: E731
    return [pair(f"q{i}", chosen(text(), rng), rejected(text(), rng)) for i in range(n)]


def test_labels_by_chance_cannot_be_told_from_the_surface():
    report = audit_pairs(worlds(600, lambda t, r: t, lambda t, r: t))
    for check in ("length gap", "surface shortcuts"):
        assert report[check].severity == "info"
    classifier = report.measures["classifier"]
    assert classifier["low"] < 0.5 < classifier["high"]


def test_a_planted_shortcut_is_named():
    # 40% of the chosen answers say sorry first, no rejected one does: guessing by it is right in .4 + .6 / 2 = 70%
    sorry = lambda t, r: f"I'm sorry, {t}" if r.random() < 0.4 else t  # noqa: E731
    report = audit_pairs(worlds(600, sorry, lambda t, r: t))
    refusal = next(row for row in report.measures["shortcuts"] if row["feature"] == "refusal")
    assert refusal["share"] == 1
    assert refusal["accuracy"] == pytest.approx(0.7, abs=4 * math.sqrt(0.4 * 0.6 / 600) / 2)
    assert report["surface shortcuts"].severity == "warning"
    assert "more refusal" in report["surface shortcuts"].advice


def test_a_classifier_is_examined_on_prompts_that_it_did_not_see():
    # Each prompt has differences of its own and says nothing of any other: a classifier that was trained on other
    # rows of the same sixty-one prompts knows most of them, on prompts that it did not see it can only guess.
    drawn = np.random.default_rng(0).normal(size=(61, len(shortcuts.FEATURES)))
    prompts = np.tile(np.arange(61), 10)  # (610,): the rows of a prompt lie far apart
    found = shortcuts.classify(drawn[prompts], prompts)
    assert found.prompts == 61
    assert found.low < 0.5 < found.high
    seen = shortcuts.classify(drawn[prompts], np.arange(610))  # as if every row had a prompt of its own
    assert seen.low > 0.6


def test_a_length_gap_is_measured_with_the_wilson_interval():
    report = audit_pairs(worlds(300, lambda t, r: f"{t} {t} {t}", lambda t, r: t))
    gap = report["length gap"]
    assert gap.severity == "warning"
    # Wilson, n = 300, all won: low = n / (n + z^2) = 300 / 303.8415 = .98736
    if gap.share == 1:
        assert gap.numbers["low"] == pytest.approx(0.98736, abs=1e-5)
    assert gap.share > 0.97


def test_rows_of_one_prompt_count_once():
    rows = [pair("q", f"long {'x ' * i}", "short") for i in range(1, 101)]
    assert audit_pairs(rows)["surface shortcuts"].severity == "skipped"
    (words,) = [x for x in shortcuts.by_feature(shortcuts.differences(rows), [0] * 100) if x.feature == "words"]
    assert (words.share, words.decided) == (1.0, 100)
    assert words.low == pytest.approx(1 / (1 + 1.959964**2), abs=1e-4)  # Wilson with n = 1


def test_a_language_that_is_not_the_others_is_said():
    german = "Der Zug nach Hamburg fährt heute leider mit großer Verspätung ab, bitte achten Sie auf Durchsagen."
    rows = [pair("a", STORY, STORY[::1] + " again"), pair("b", STORY + " once", german), pair("c", "Ja.", "Nein.")]
    finding = audit_pairs(rows)["languages"]
    assert (finding.rows, finding.drops, finding.severity) == ((1,), (), "info")
    assert finding.numbers["languages"] == {"en": 3, "de": 1}
    assert audit_pairs(rows[:1])["languages"].severity == "ok"


# All of it together.


def test_seeded_faults_are_found_and_clean_rows_are_left_alone(real_data):
    report, truth, twins = audit_faults.seeded(1000, seed=1)
    found, false = audit_faults.scores(report, truth, twins)
    near = {check for check in found if check.startswith("near")}
    for check, (hits, planted) in found.items():
        if check not in audit_faults.HEURISTIC:
            assert hits >= (0.9 if check in near else 1) * planted, check
    assert len(false) <= 0.01 * (1000 - len(set().union(*truth.values())))
    # What is kept carries none of the faults that drop a row, and audits clean.
    again = audit_pairs(report.kept, audit_faults.faulty_tokenizer(), max_length=audit_faults.MAX_LENGTH)
    assert not again.blocking
    assert not again.dropped


def test_real_conversations_have_the_faults_that_reading_them_shows(real_data, tmp_path, capsys):
    file = real_data / "hh_rlhf" / "harmless_base_test_filtered.jsonl"
    out = tmp_path / "clean.jsonl"
    assert main(["audit", str(file), "--out", str(out), "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    findings = {finding["name"]: finding for finding in data["findings"]}
    # Rows 39 and 203 have an empty chosen answer; row 21 ends "Boogers aren't very good glue, I".
    assert findings["empty or blank"]["rows"] == [39, 203]
    assert 21 in findings["looks cut off"]["rows"]
    assert len(read_pairs(out)) == 298
    assert data["kept"] == 298


def test_the_command_says_what_it_put_aside_and_exits_with_0_on_clean_pairs(tmp_path, capsys, tokenizer):
    file, out, asked = tmp_path / "pairs.jsonl", tmp_path / "clean.jsonl", tmp_path / "prompts.jsonl"
    write_pairs(file, FINE)
    write_records(asked, [FINE[0].prompt])
    assert main(["audit", str(file)]) == 0
    assert main(["audit", str(file), "--holdout", str(asked), "--out", str(out)]) == 1
    assert read_pairs(out) == FINE[1:]
    with file.open("a") as stream:
        stream.write('{"prompt": [{"role"\n')
    capsys.readouterr()
    assert main(["audit", str(file), "--json"]) == 1  # the other lines are audited
    data = json.loads(capsys.readouterr().out)
    assert (data["rows"], data["findings"][0]["numbers"]) == (4, {"lines": [5]})
    arguments = ["--out", str(out), "--tokenizer", str(ROOT / "data" / "tiny-base"), "--max-length", "99"]
    assert main(["audit", str(file), *arguments]) == 1
    assert "1 rows put aside" in capsys.readouterr().out
    before = file.read_bytes()
    assert main(["audit", str(file), "--out", str(file)]) == 2
    assert file.read_bytes() == before
    assert out.with_suffix(".quarantine.jsonl").exists()
    assert main(["audit", str(file), "--out", str(out), "--tokenizer", str(tmp_path)]) == 2


@pytest.mark.parametrize("row", [{"prompt": "Who wrote Emma?"}, {"messages": FINE[1].prompt.chat()}, FINE[1].to_trl()])
def test_the_command_takes_prompts_as_texts_as_messages_and_as_pairs(tmp_path, capsys, row):
    file, asked = tmp_path / "pairs.jsonl", tmp_path / "asked.jsonl"
    write_pairs(file, FINE)
    asked.write_text(json.dumps(row))
    assert main(["audit", str(file), "--holdout", str(asked), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["dropped"] == {"1": ["exact evaluation prompts"]}


HOSTILE = "<script>alert(1)</script> [bold]\x1b[31m \ud800 because the"


def test_hostile_text_is_shown_and_not_obeyed():
    data = audit_pairs([pair(f"q {HOSTILE}", HOSTILE, HOSTILE, stopped=None)]).to_json()
    html = audit_figures.audit_html(data)
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "⟨U+001B⟩" in html
    out = io.StringIO()
    Console(file=out, width=100).print(audit_table(data))
    assert "identical answers" in out.getvalue()
    html.encode()
    json.dumps(data, allow_nan=False)


def test_figures_show_the_numbers_of_the_report():
    data = audit_pairs([*worlds(80, lambda t, r: t, lambda t, r: t), pair(chosen="")]).to_json()
    bars = audit_figures.findings_bar(data).data
    assert {(y, x) for bar in bars for y, x in zip(bar.y, bar.x, strict=True)} == {
        (f["name"], f["count"]) for f in data["findings"] if f["rows"]
    }
    histogram = {trace.name: trace.y for trace in audit_figures.lengths(data).data if trace.xaxis == "x"}
    assert all(sum(counts) == 81 for counts in histogram.values())
    (trace,) = audit_figures.shortcuts(data).data
    assert list(trace.x) == [row["share"] for row in data["measures"]["shortcuts"] if row["decided"]]
    assert audit_figures.shortcuts(audit_pairs(FINE).to_json()).data


def test_prose_that_ends_is_not_cut_off(real_data):
    for text in ("He left. She stayed. (See the notes.)", "Sure! Here you go: https://example.org/a", "I like it, too"):
        assert not content.ends_midway(text)
