"""Language models behind an API: one client, one retry policy, one budget, and keys that are never stored.

It uses OpenAI's chat completions, which vLLM, Ollama and `transformers serve` offer too, and Anthropic's messages.
Both are one POST of JSON, so no vendor's SDK is needed. Judges and arms on servers share this client.

Keys come from the environment, each for its own server: a vendor's key is never sent elsewhere, whatever address a
profile or a command names. An exception of the HTTP library holds the request and so the key, so none of them leaves
this module, not even as the context of one of ours. A redirect could send the key elsewhere, so none is followed.
"""

import json
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx
from pydantic import SecretStr

from dpo_kit.errors import DpoKitError
from dpo_kit.visible import reveal

VENDORS = {"openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com"}
VENDOR_KEYS = {"api.openai.com": "OPENAI_API_KEY", "api.anthropic.com": "ANTHROPIC_API_KEY"}
PART = 12  # so many characters in a row count as part of a key: more than the prefix that all keys share
LONGEST_WAIT = 120.0  # seconds; a question is given up where the server asks for a longer wait
OVERHEAD = 1000  # tokens that a server may add to a question: its chat template, its instructions on the schema
MALFORMED = "malformed reply of the server"
FAULTS = {  # with these every later question would fail too
    401: "the key is missing or wrong: set {variable}",
    402: "the account has no credit",
    403: "the key may not use this model or server",
    404: "no such model or path: check the model {model!r} and the address",
}
ENDS = {  # how each API says that a reply ended
    "stop": "stop", "end_turn": "stop", "stop_sequence": "stop",
    "length": "length", "max_tokens": "length", "model_context_window_exceeded": "length",
    "content_filter": "refused", "refusal": "refused",
}  # fmt: skip
Messages = Sequence[dict[str, str]]


@dataclass(frozen=True)
class Completion:
    """A reply: its text, how it ended, and the billed tokens (read, written), None where the server does not say.

    `end` is "stop" (by itself), "length" (cut off at the limit), "refused", or "other".
    """

    text: str
    end: str
    tokens: tuple[int, int] | None = None


class Unanswered(Exception):
    """A question without a usable reply; the message is the reason."""


@dataclass(eq=False)
class Failed(Unanswered):
    """A request without a reply: whether to try again and after how long, and whether it may have been billed.

    `status` is the HTTP status, None where the server sent none, and 0 where there was no connection.
    """

    reason: str
    again: bool = False
    wait: float | None = None
    billed: bool = False
    status: int | None = None

    def __str__(self) -> str:
        return self.reason


class Budget:
    """Dollars that may be spent. The most that a request can cost is reserved before it is sent, so the cap is hard."""

    def __init__(self, limit: float) -> None:
        self.limit, self.spent = limit, 0.0
        self._held, self._in_flight = 0.0, 0
        self._changed = threading.Condition()

    def hold(self, dollars: float) -> bool:
        """Reserve `dollars`. Waits while open requests may free enough; False where there cannot be enough."""
        with self._changed:
            self._changed.wait_for(lambda: self._fits(dollars) or not self._in_flight)
            if not self._fits(dollars):
                return False
            self._held += dollars
            self._in_flight += 1
            return True

    def settle(self, held: float, spent: float) -> None:
        """Replace the reserved amount by the amount that was spent."""
        with self._changed:
            self._in_flight -= 1
            self._held = self._held - held if self._in_flight else 0.0
            self.spent += spent
            self._changed.notify_all()

    def _fits(self, dollars: float) -> bool:
        return self.spent + self._held + dollars <= self.limit


class Server:
    """One language model behind an API. Thread-safe.

    `owner` is its name in messages. `others_key` is the environment variable with the key of a server that is not a
    vendor's. An empty `url` is the vendor's own. `prices` are dollars per million tokens read and written. `tally`
    counts requests and retries; `budget.spent` is in dollars.
    Raises DpoKitError where the address is not a plain one, or a key is needed and missing.
    """

    def __init__(
        self,
        owner: str,
        kind: str,
        url: str,
        model: str,
        others_key: str,
        *,
        timeout: float = 120.0,
        attempts: int = 4,
        prices: tuple[float, float] = (0.0, 0.0),
        max_dollars: float = math.inf,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.owner, self.kind, self.url, self.model = owner, kind, url or VENDORS[kind], model
        self.timeout, self.attempts, self.prices, self.sleep = timeout, attempts, prices, sleep
        self.budget, self.tally = Budget(max_dollars), Counter[str]()
        _check_address(owner, self.url)
        self._variable = key_variable(self.url, others_key)
        key = read_key(self._variable, required=self._variable != others_key)
        self._key = SecretStr(key)  # shown in no traceback and no log
        headers = {"Content-Type": "application/json"}
        if kind == "anthropic":
            headers["anthropic-version"] = "2023-06-01"
        if key:
            headers |= {"x-api-key": key} if kind == "anthropic" else {"Authorization": f"Bearer {key}"}
        self._client = httpx.Client(headers=headers, timeout=timeout)
        self._structured = True  # until the server refuses a schema
        self._reached = False
        self._counting = threading.Lock()

    def ask(
        self,
        messages: Messages,
        max_tokens: int,
        *,
        temperature: float | None = None,
        seed: int | None = None,
        schema: dict[str, Any] | None = None,
    ) -> Completion:
        """The reply to a chat, after at most `attempts` requests. `schema` is the JSON schema of the reply, which the
        server enforces where it can. Anthropic's API has no seed.

        Raises Unanswered with the reason, or DpoKitError where every other question would fail in the same way.
        """
        options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        most = dollars(self.prices, request_size(messages, schema) + OVERHEAD, max_tokens)
        attempt = 1
        while True:
            try:
                return self._request(messages, options, schema, most)
            except Failed as failure:
                wait = 2.0 ** (attempt - 1) if failure.wait is None else failure.wait
                if not failure.again or wait > LONGEST_WAIT or attempt == self.attempts:
                    raise self._given_up(failure, attempt) from None
            self.count("retries")
            attempt += 1
            self.sleep(wait)

    def count(self, name: str) -> None:
        """Add one to `tally[name]`."""
        with self._counting:
            self.tally[name] += 1

    def _given_up(self, failure: Failed, attempts: int) -> Exception:
        if not self._reached:
            return DpoKitError(f"{self.owner}: no server can be reached at {self.url}: {failure}; is it running?")
        tried = f", after {attempts} of {self.attempts} attempts" if failure.again else ""
        return Unanswered(f"{failure}{tried}")

    def _request(self, messages: Messages, options: dict, schema: dict | None, most: float) -> Completion:
        """One request, and a second one without a schema where the server does not support structured output."""
        structured = schema is not None and self._structured
        try:
            return self._paid_request(self._body(messages, options, schema if structured else None), most)
        except Failed as failure:
            if not (structured and failure.status in (400, 422)):
                raise
        completion = self._paid_request(self._body(messages, options, None), most)
        self._structured = False
        return completion

    def _paid_request(self, body: dict[str, Any], most: float) -> Completion:
        if not self.budget.hold(most):
            raise Unanswered(f"budget: up to {most:.4f} dollars more could pass the cap of {self.budget.limit:g}")
        spent = most  # where the cost is unknown, the highest is assumed
        try:
            self.count("requests")
            completion = self._send(body)
            self._reached = True
            if completion.tokens:
                spent = dollars(self.prices, *completion.tokens)
        except Failed as failure:
            self._reached = self._reached or failure.status != 0
            spent = most if failure.billed else 0.0
            raise
        finally:
            self.budget.settle(most, spent)
        if quotes_key(completion.text, self._key.get_secret_value()):
            raise Unanswered("the reply repeats the API key")
        return completion

    def _body(self, messages: Messages, options: dict[str, Any], schema: dict | None) -> dict[str, Any]:
        said = {name: value for name, value in options.items() if value is not None}
        if self.kind == "anthropic":
            said.pop("seed", None)
            if system := "\n\n".join(m["content"] for m in messages if m["role"] == "system"):
                said["system"] = system
            messages = [message for message in messages if message["role"] != "system"]
            shape: dict[str, Any] = {"output_config": {"format": {"type": "json_schema", "schema": schema}}}
        else:
            if self._variable in VENDOR_KEYS.values():  # OpenAI's newer models refuse the name that all others use
                said["max_completion_tokens"] = said.pop("max_tokens")
            named = {"name": "reply", "strict": True, "schema": schema}
            shape = {"response_format": {"type": "json_schema", "json_schema": named}}
        return {"model": self.model, "messages": list(messages), **said, **(shape if schema else {})}

    def _send(self, body: dict[str, Any]) -> Completion:
        path = "/v1/messages" if self.kind == "anthropic" else "/chat/completions"
        failure = None
        try:  # ASCII, because UTF-8 cannot encode half a surrogate pair, and JSON's escapes can
            reply = self._client.post(self.url.rstrip("/") + path, content=json.dumps(body))
        except httpx.HTTPError as error:
            failure = self._lost(error)
        if failure:
            raise failure  # outside of `except`, so that the library's exception is not its context
        assert reply is not None, "a request has failed or was replied to"
        if not reply.is_success:
            raise self._refusal(reply)
        try:
            return (_read_anthropic if self.kind == "anthropic" else _read_openai)(json.loads(reply.content))
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            raise Failed(MALFORMED, billed=True, status=200) from None

    def _lost(self, error: Exception) -> Failed:
        made = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
        late = made and isinstance(error, httpx.TimeoutException)
        reason = f"no reply within {self.timeout:g} s" if late else "the connection failed"
        return Failed(reason, again=True, billed=made, status=None if made else 0)

    def _refusal(self, reply: httpx.Response) -> Exception:
        status = reply.status_code
        if status in FAULTS:
            self._reached = True
            advice = FAULTS[status].format(variable=self._variable, model=self.model)
            return DpoKitError(f"{self.owner} at {urlsplit(self.url).netloc}: HTTP {status}: {advice}")
        again = status in (408, 409, 429) or status >= 500
        quoted = quotes_key(reply.text, self._key.get_secret_value())
        said = "" if again or quoted else f": {reveal(' '.join(reply.text.split()))[:200]}"
        return Failed(f"HTTP {status}{said}", again=again, wait=_retry_after(reply.headers), status=status)


def dollars(prices: tuple[float, float], read: float, written: float) -> float:
    """The price of tokens read and written; `prices` are dollars per million of each."""
    return (read * prices[0] + written * prices[1]) / 1e6


def request_size(messages: Messages, schema: dict[str, Any] | None = None) -> int:
    """The bytes of the question in UTF-8. No known tokenizer makes more tokens than there are bytes."""
    texts = [message["content"] for message in messages] + ([json.dumps(schema)] if schema else [])
    return sum(len(text.encode(errors="replace")) for text in texts)


# ---- keys -------------------------------------------------------------------------------------------------------


def key_variable(url: str, others: str) -> str:
    """The environment variable with this server's key: the vendor's for the vendor's own host, else `others`."""
    address = urlsplit(url)
    return VENDOR_KEYS.get(address.hostname or "", others) if address.scheme == "https" else others


def read_key(variable: str, required: bool = False) -> str:
    """The key, or "" where there is none. Raises DpoKitError where it is required and missing, or cannot be a key."""
    key = os.environ.get(variable, "").strip()
    if required and not key:
        raise DpoKitError(f"a key is needed: set the environment variable {variable}")
    if not (key.isascii() and key.isprintable()):
        raise DpoKitError(f"the environment variable {variable} holds characters that no key has")
    return key


def quotes_key(text: str, key: str) -> bool:
    """Whether a server's reply repeats a good part of the key that it was sent."""
    return any(key[i : i + PART] in text for i in range(len(key) - PART + 1))


def _check_address(owner: str, url: str) -> None:
    try:
        httpx.URL(url)
        address = urlsplit(url)
        plain = address.scheme in ("http", "https") and address.hostname and address.port != 0
    except (httpx.InvalidURL, ValueError):  # such as a port above 65535
        plain = False
    if not plain or "@" in address.netloc or address.query:
        raise DpoKitError(f"{owner}: the server's URL is not a plain http(s) address; a key belongs in the environment")


# ---- replies ----------------------------------------------------------------------------------------------------


def _read_openai(reply: Any) -> Completion:
    choice = reply["choices"][0]
    text, end = choice["message"].get("content"), ENDS.get(choice.get("finish_reason"), "other")
    if choice["message"].get("refusal"):
        end = "refused"
    elif text is None and end == "stop":  # the reply is a tool call or reasoning only
        end = "other"
    usage = reply.get("usage") or {}
    return _completion(text, end, usage.get("prompt_tokens"), usage.get("completion_tokens"))


def _read_anthropic(reply: Any) -> Completion:
    text = "".join(block["text"] for block in reply["content"] if block["type"] == "text")
    usage = reply.get("usage") or {}
    end = ENDS.get(reply.get("stop_reason"), "other")
    return _completion(text, end, usage.get("input_tokens"), usage.get("output_tokens"))


def _completion(text: Any, end: str, read: Any, written: Any) -> Completion:
    if not isinstance(text, str | None):
        raise TypeError("the text is none")
    said = isinstance(read, int) and isinstance(written, int) and read >= 0 and written >= 0
    return Completion(text or "", end, (read, written) if said else None)


def _retry_after(headers: Any) -> float | None:
    """Seconds to wait as the server asks: a number, or the time left until a date (RFC 9110, 10.2.3)."""
    asked = headers.get("retry-after", "")
    for read in (float, lambda date: parsedate_to_datetime(date).timestamp() - time.time()):
        with suppress(ValueError):
            return max(0.0, read(asked))
    return None
