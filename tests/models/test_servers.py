"""Which server is sent which key, and what counts as a reply that quotes one."""

import pytest

from dpo_kit.errors import DpoKitError
from dpo_kit.models.servers import key_variable, quotes_key, read_key

KEY = "sk-proj-0123456789abcdef"


@pytest.mark.parametrize(
    ("url", "variable"),
    [
        ("https://api.openai.com/v1", "OPENAI_API_KEY"),
        ("https://API.OpenAI.com:443/v1", "OPENAI_API_KEY"),
        ("https://api.anthropic.com", "ANTHROPIC_API_KEY"),
        ("http://api.openai.com/v1", "OURS"),  # would be readable on the way
        ("http://localhost:8000/v1", "OURS"),
        ("https://api.openai.com.example.org/v1", "OURS"),
        ("https://example.org/api.openai.com", "OURS"),
        ("https://api.openai.com@example.org/v1", "OURS"),
        ("https://api.openai.com\\@example.org/v1", "OURS"),
        ("https://example.org#@api.openai.com", "OURS"),
        ("", "OURS"),
    ],
)
def test_a_vendors_key_is_for_the_vendors_own_host_over_tls(url, variable):
    assert key_variable(url, "OURS") == variable


def test_a_key_is_read_without_its_line_end_and_its_absence_is_no_key(monkeypatch):
    monkeypatch.delenv("OURS", raising=False)
    assert read_key("OURS") == ""
    with pytest.raises(DpoKitError, match="set the environment variable OURS"):
        read_key("OURS", required=True)
    monkeypatch.setenv("OURS", f" {KEY}\n")
    assert read_key("OURS", required=True) == KEY
    monkeypatch.setenv("OURS", f"{KEY}\nand more")
    with pytest.raises(DpoKitError, match="OURS holds characters that no key has") as error:
        read_key("OURS")
    assert KEY not in str(error.value)


def test_a_good_part_of_a_key_is_quoted_but_its_common_prefix_is_not():
    assert quotes_key(f"Incorrect API key: {KEY}", KEY)
    assert quotes_key(f"…{KEY[-12:]}", KEY)
    assert not quotes_key("keys begin with sk-proj-", KEY)
    assert not quotes_key("the key was empty", "")
