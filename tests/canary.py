"""A fake API key: tests put it into the environment, then check that no written file contains it."""

from pathlib import Path

CANARY = "sk-canary-7f3e9a1c5b2d8e6f4a0c9b7d"
VARIABLES = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "DPO_KIT_JUDGE_KEY", "DPO_KIT_ENDPOINT_KEY")


def plant(monkeypatch) -> str:
    """Set every key variable to the canary, for the length of a test."""
    for variable in VARIABLES:
        monkeypatch.setenv(variable, CANARY)
    return CANARY


def assert_no_canary(folder: Path) -> None:
    """No file under `folder`, and no name of one, holds the canary, whole or half."""
    halves = CANARY[:17].encode(), CANARY[-17:].encode()
    for path in Path(folder).rglob("*"):
        held = path.read_bytes() if path.is_file() and path.suffix != ".safetensors" else b""
        assert not any(half in held or half.decode() in path.name for half in halves), f"{path} holds the key"
