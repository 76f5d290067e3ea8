"""Keys of servers: from the environment, each to its own server, and back into nothing that is kept.

A key meant for a vendor is never sent elsewhere, whatever address a profile or a command names: any other server gets
the key in a variable of ours, or none.
"""

import os
from urllib.parse import urlsplit

from dpo_kit.errors import DpoKitError

VENDOR_KEYS = {"api.openai.com": "OPENAI_API_KEY", "api.anthropic.com": "ANTHROPIC_API_KEY"}
NO_KEY = "no-key-needed"  # local servers want none, the SDKs want one
PART = 12  # characters of a key in a row: more than the prefix that all keys share


def key_variable(url: str, others: str) -> str:
    """Where the key for this server is kept: in the vendor's variable for the vendor's own host, else in `others`."""
    address = urlsplit(url)
    return VENDOR_KEYS.get(address.hostname or "", others) if address.scheme == "https" else others


def read_key(variable: str, required: bool = False) -> str:
    """The key, or NO_KEY. Raises DpoKitError where it is required and not there, or is no key."""
    key = os.environ.get(variable, "").strip()
    if required and not key:
        raise DpoKitError(f"a key is needed: set the environment variable {variable}")
    if not (key.isascii() and key.isprintable()):
        raise DpoKitError(f"the environment variable {variable} holds characters that no key has")
    return key or NO_KEY


def quotes_key(text: str, key: str) -> bool:
    """Whether a server plays back a good part of the key it was sent."""
    return key != NO_KEY and any(key[i : i + PART] in text for i in range(len(key) - PART + 1))
