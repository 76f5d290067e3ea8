"""Coloured tokens: what is selected is visible without colour, and text from a model stays text."""

import re

import pytest

from dpo_kit.workbook import token_view


@pytest.fixture
def shown(monkeypatch):
    """What would be displayed: a list of bundles by media type."""
    bundles = []
    monkeypatch.setattr(token_view, "display", lambda bundle, raw: bundles.append(bundle))
    return bundles


def bold(html):
    return re.findall(r"<b>(.*?)</b>", html)


def test_selected_tokens_are_bold_in_html_and_bracketed_in_text(shown):
    token_view.show_mask(["why", " be", "cause"], [0, 1, 1])
    (bundle,) = shown
    assert bold(bundle["text/html"]) == [" be", "cause"]
    assert bundle["text/plain"] == "why[ be][cause]"


def test_what_a_model_wrote_cannot_become_html(shown):
    token_view.show_mask(["<script>alert(1)</script>", '"&<|end|>'], [1, 0])
    token_view.show_values(["<img src=x onerror=alert(1)>"], [1.0], unit='"><script>')
    for bundle in shown:
        assert not re.search(r"<(script|img)", bundle["text/html"])
        assert "&lt;" in bundle["text/html"]
    assert "&lt;|end|&gt;" in shown[0]["text/html"]


def test_line_breaks_are_visible_and_break_the_line(shown):
    token_view.show_mask(["a\n", "b"], [1, 0])
    assert "a⏎</b></span><br>" in shown[0]["text/html"]


def test_the_largest_value_is_named_with_its_sign(shown):
    token_view.show_values(["up", "down"], [0.5, -2.0], "nats")
    html = shown[0]["text/html"]
    assert bold(html) == ["down"]
    assert "-2.00 nats" in html
    assert shown[0]["text/plain"] == "up(+0.50) down(-2.00)"


def test_signs_are_told_apart_and_size_by_depth(shown):
    token_view.show_values(["a", "b", "c"], [1.0, -1.0, 0.0])
    tints = re.findall(r"background:(#\w+);", shown[0]["text/html"])
    assert tints == [f"{token_view.BLUE}c8", f"{token_view.VERMILION}c8", f"{token_view.BLUE}00"]


def test_nothing_to_show_is_no_error(shown):
    token_view.show_values([], [])
    token_view.show_values(["a"], [0.0])
    assert bold(shown[1]["text/html"]) == []


def test_tokens_and_mask_of_different_length_are_refused(shown):
    with pytest.raises(ValueError, match="shorter"):
        token_view.show_mask(["a", "b"], [1])
