"""Nothing in a text is hidden from a person that a judge reads, or the other way round."""

import html
import sys
import unicodedata

import pytest

from dpo_kit.preferences.audit import audit_pairs
from dpo_kit.preferences.audit.findings import snippet
from dpo_kit.preferences.judges.prompt import compare_question, score_question
from dpo_kit.preferences.labels import Item, Labels
from dpo_kit.preferences.person import Annotator
from dpo_kit.records import Message, PreferencePair, Prompt, Response, Verdict
from dpo_kit.views.answer_browser import answer_browser
from dpo_kit.visible import HIDDEN, SHAPING, is_blank, reveal
from dpo_kit.workbook import token_view
from dpo_kit.workbook.annotate import static_page
from dpo_kit.workbook.dashboard import samples_html
from dpo_kit.workbook.figures.audit import audit_html

HIDDEN_CHARACTERS = [chr(code) for first, last in HIDDEN for code in range(first, last + 1)] + list(SHAPING)


def marks(characters):
    return [f"⟨U+{ord(character):04X}⟩" for character in characters]


def prompt(text):
    return Prompt(id="p", messages=(Message(role="user", content=text),))


def judges_question(text, folder):
    question = compare_question(prompt(text), text, text)
    return [question.user.split("BEGIN ")[i] for i in (1, 2, 3)] + [score_question(prompt(text), text).user]


def annotators_scene(text, folder):
    other = Response(prompt_id="p", text=text)
    work = Annotator([Item(prompt=prompt(text), a=other, b=other)], "me", Labels(folder / "labels.db"))
    scene, page = work.scene(), static_page(work)
    return [scene["turns"][0][1], scene["left"], scene["right"], page["text/plain"], html.unescape(page["text/html"])]


def answers_on_a_page(text, folder):
    row = {"prompt_id": "p", "winner": "a", "reason": text, "scores": {"dpo": {}}}
    page = answer_browser([prompt(text)], [Response(prompt_id="p", text=text, arm="dpo")], [row])
    question, reason, answer = page.split("<summary>")[2], page.split('class="why">')[1], page.split("<pre>")[1]
    return [html.unescape(part) for part in (question, reason, answer)]


def samples_while_training(text, folder):
    page = samples_html([{"step": 1, "answers/samples": [{"prompt": text, "answer": text}]}])
    return [html.unescape(part) for part in page.split("<pre>")[1:]]


def coloured_tokens(text, folder):
    bundles = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_view, "display", lambda bundle, raw: bundles.append(bundle))
        token_view.show_mask([text], [1])
        token_view.show_values([text], [1.0])
    return [html.unescape(shown) for bundle in bundles for shown in bundle.values()]


VIEWS = [judges_question, annotators_scene, answers_on_a_page, samples_while_training, coloured_tokens]


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.__name__)
def test_every_hidden_character_is_the_same_code_point_in_every_view(view, tmp_path):
    for start in range(0, len(HIDDEN_CHARACTERS), 900):
        characters = HIDDEN_CHARACTERS[start : start + 900]
        expected = "x" + "x".join(marks(characters)) + "x"
        for shown in view("x" + "x".join(characters) + "x", tmp_path):
            assert expected in shown
            assert not set(characters) & set(shown)


def test_an_example_in_the_audit_shows_them_too():
    for character, mark in zip(HIDDEN_CHARACTERS, marks(HIDDEN_CHARACTERS), strict=True):
        assert snippet(f"x{character}x") == f"x{mark}x"
    answer = Response(prompt_id="p", text="x\u200b\u2028x")
    verdict = Verdict(winner="a", judge="j", reason="")
    pair = PreferencePair(prompt=prompt("q"), chosen=answer, rejected=answer, verdict=verdict)
    assert "x⟨U+200B⟩⟨U+2028⟩x" in html.unescape(audit_html(audit_pairs([pair]).to_json()))


def test_every_format_control_of_unicode_is_in_the_table_but_those_that_are_drawn():
    # Arabic, Syriac and Kaithi number signs have a picture; Egyptian joiners arrange the hieroglyphs around them.
    drawn = [*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD, *range(0x13430, 0x13440)]
    controls = {
        chr(code)
        for code in range(sys.maxunicode + 1)
        if unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs", "Zl", "Zp") and code not in (*drawn, 9, 10)
    }
    assert controls <= set(HIDDEN_CHARACTERS)
    assert all(reveal(f"x{chr(code)}x") == f"x{chr(code)}x" for code in (*drawn, 9, 10))


@pytest.mark.parametrize(
    "text",
    [
        *("می\u200cخواهم", "क्\u200dष", "שלום naïve $x^2$ <b>", "a\tb\n"),
        *("👩\u200d🚒", "❤\ufe0f\u200d🔥", "1\ufe0f\u20e3", "✔\ufe0e"),
    ],
)
def test_what_belongs_to_the_spelling_stays(text):
    assert reveal(text) == text


def test_shaping_characters_that_shape_nothing_are_shown():
    assert reveal("ig\u200dnore") == "ig⟨U+200D⟩nore"
    assert reveal("é\u200d\u200c\u200d") == "é\u200d⟨U+200C⟩⟨U+200D⟩", "bits in joiners"
    assert reveal("\ufe0fx") == "⟨U+FE0F⟩x"


def test_line_ends_of_windows_are_line_feeds_and_other_carriage_returns_are_shown():
    assert reveal("a\r\nb\rc\n") == "a\nb⟨U+000D⟩c\n"


def test_blank_is_what_nobody_can_see():
    assert is_blank("")
    assert is_blank(" \n\t\u3000" + "".join(HIDDEN_CHARACTERS))
    assert not any(is_blank(f"\u200b{text} ") for text in (".", "0", "👍", "ى"))
