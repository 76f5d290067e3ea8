"""A person who judges in a terminal, with scripted keys."""

import pytest

from dpo_kit.errors import DpoKitError
from dpo_kit.preferences.person import ask_person
from dpo_kit.records import Prompt, Response

ROWS = [
    (
        Prompt.from_text(f"Question {i}"),
        Response(prompt_id=str(i), text=f"treated {i}", arm="dpo"),
        Response(prompt_id=str(i), text=f"control {i}", arm="sft"),
    )
    for i in range(4)
]


class Person:
    """Presses the given keys, or picks the answer that holds a word; remembers what was on the screen."""

    def __init__(self, *keys, word=None):
        self.keys, self.word, self.screen = list(keys), word, []

    def read(self, shown):
        self.screen.append(shown)
        if self.word:
            last = "\n".join(self.screen)
            left = last.rindex("--- ANSWER A")
            return "a" if self.word in last[left : last.rindex("--- ANSWER B")] else "b"
        if not self.keys:
            raise EOFError
        return self.keys.pop(0)

    def ask(self, folder, **more):
        return ask_person(ROWS, "me", folder / "labels.db", read=self.read, write=self.screen.append, **more)


def verdicts(judge):
    return [judge(prompt, a.text, b.text).winner for prompt, a, b in ROWS]


def test_a_label_is_for_the_answer_and_not_for_the_side_that_it_stood_on(tmp_path):
    person = Person(word="treated")
    assert verdicts(person.ask(tmp_path)) == ["a"] * 4
    lefts = [text for text in person.screen if text.startswith("--- ANSWER A")]
    assert {"treated" in text for text in lefts} == {True, False}, "the sides are drawn"


def test_nothing_on_the_screen_tells_which_arm_wrote_what(tmp_path):
    person = Person(word="treated")
    person.ask(tmp_path)
    assert "dpo" not in "".join(person.screen)
    assert "sft" not in "".join(person.screen)


def test_who_stops_goes_on_where_the_last_label_was(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Person("t", "t", "q").ask(tmp_path)
    person = Person("s", "t")
    assert verdicts(person.ask(tmp_path)) == ["tie", "tie", "unjudged", "tie"]
    assert "3 of 4" in "".join(person.screen)
    assert verdicts(Person().ask(tmp_path)) == ["tie", "tie", "unjudged", "tie"], "nothing is left to ask"


def test_a_label_can_be_undone_and_another_key_is_named(tmp_path):
    person = Person("x", "t", "u", "s", "t", "t", "t")
    assert verdicts(person.ask(tmp_path)) == ["unjudged", "tie", "tie", "tie"]
    assert "'x' is none of a, b, t, s, u and q." in person.screen


def test_without_a_keyboard_it_says_how_far_it_came(tmp_path):
    with pytest.raises(DpoKitError, match=r"nobody is at the keyboard: 1 of 4 pairs are labelled in .*labels\.db"):
        Person("t").ask(tmp_path)


def test_the_criteria_are_shown_and_hidden_characters_too(tmp_path):
    prompt, a, b = ROWS[0]
    person = Person("t")
    rows = [(prompt, a.model_copy(update={"text": "red \x1b[31m"}), b)]
    ask_person(rows, "me", tmp_path / "l.db", criteria="Be kind.", read=person.read, write=person.screen.append)
    assert "What to prefer: Be kind." in person.screen[0]
    assert "\x1b" not in "".join(person.screen)


def test_equal_answers_are_a_tie_that_nobody_is_asked_about(tmp_path):
    prompt, a, _ = ROWS[0]
    judge = ask_person([(prompt, a, a)], "me", tmp_path / "l.db", read=Person().read)
    assert judge(prompt, a.text, a.text).winner == "tie"
