"""Language models behind an API: one client, one way to try again, one budget, and keys that are kept nowhere.

It speaks OpenAI's chat completions, which vLLM, Ollama and `transformers serve` offer too, and Anthropic's messages.
Both are one POST of JSON, so no vendor's SDK is needed. Judges and arms that are served elsewhere share this client.

Keys come from the environment, each for its own server: a vendor's key is never sent elsewhere, whatever address a
profile or a command names. An exception of the HTTP library carries the request and with it the key, so none of them
leaves this module, not even as the context of one of ours. For the same reason redirects are not followed.
"""

import json
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
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
PART = 12  # characters of a key in a row: more than the prefix that all keys share
LONGEST_WAIT = 120.0  # seconds; a server that asks for more is given up
OVERHEAD = 1000  # tokens that a server may add around a question: its chat template, its words on the schema
MALFORMED = "malformed reply of the server"
FAULTS = {  # every later question would meet these too
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

    `status` is that of HTTP, None where there was none, and 0 where not even a connection was made.
    """

    reason: str
    again: bool = False
    wait: float | None = None
    billed: bool = False
    status: int | None = None

    def __str__(self) -> str:
        return self.reason


class Budget:
    """Dollars that may be spent. What a request could cost at most is held before it is sent, so the cap is hard."""

    def __init__(self, limit: float) -> None:
        self.limit, self.spent = limit, 0.0
        self._held, self._in_flight = 0.0, 0
        self._changed = threading.Condition()

    def hold(self, dollars: float) -> bool:
        """Set `dollars` aside, waiting for requests in flight where their change may suffice; False where it cannot."""
        with self._changed:
            self._changed.wait_for(lambda: self._fits(dollars) or not self._in_flight)
            if not self._fits(dollars):
                return False
            self._held += dollars
            self._in_flight += 1
            return True

    def settle(self, held: float, spent: float) -> None:
        """Replace what was set aside by what was spent."""
        with self._changed:
            self._in_flight -= 1
            self._held = self._held - held if self._in_flight else 0.0
            self.spent += spent
            self._changed.notify_all()

    def _fits(self, dollars: float) -> bool:
        return self.spent + self._held + dollars <= self.limit


class Server:
    """One language model behind an API. Thread-safe.

    `owner` is what messages call it, and `others_key` the environment variable with the key of a server that is no
    vendor's. An empty `url` is the vendor's own. `prices` are dollars per million tokens read and written. `tally`
    counts requests and retries; `budget.spent` is in dollars.
    Raises DpoKitError where the address is not a plain one, or a key is needed and not there.
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
        self._key = SecretStr(key)  # which no traceback and no log shows
        headers = {"Content-Type": "application/json"}
        if kind == "anthropic":
            headers |= {"anthropic-version": "2023-06-01"} | ({"x-api-key": key} if key else {})
        elif key:
            headers["Authorization"] = f"Bearer {key}"
        self._client = httpx.Client(headers=headers, timeout=timeout)
        self._structured = True  # until it refuses a schema
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
        server enforces where it can. Anthropic's API knows no seed.

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
        """One request, or two where the server does not know structured output: it is then asked without a schema."""
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
        spent = most  # where nobody knows, the worst is assumed
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
            if self._variable in VENDOR_KEYS.values():  # OpenAI's newer models refuse the name that all others know
                said["max_completion_tokens"] = said.pop("max_tokens")
            named = {"name": "reply", "strict": True, "schema": schema}
            shape = {"response_format": {"type": "json_schema", "json_schema": named}}
        return {"model": self.model, "messages": list(messages), **said, **(shape if schema else {})}

    def _send(self, body: dict[str, Any]) -> Completion:
        path = "/v1/messages" if self.kind == "anthropic" else "/chat/completions"
        failure = None
        try:  # ASCII, because JSON's escapes carry even half a surrogate pair
            reply = self._client.post(self.url.rstrip("/") + path, content=json.dumps(body))
        except httpx.HTTPError as error:
            failure = self._lost(error)
        if failure:
            raise failure  # outside of `except`, so that the library's exception is no context of it
        if not reply.is_success:
            raise self._refusal(reply)
        try:
            return (_read_anthropic if self.kind == "anthropic" else _read_openai)(json.loads(reply.content))
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            raise Failed(MALFORMED, billed=True, status=200) from None

    def _lost(self, error: Exception) -> Failed:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return Failed("the connection failed", again=True, status=0)
        if isinstance(error, httpx.TimeoutException):
            return Failed(f"no reply within {self.timeout:g} s", again=True, billed=True)
        return Failed("the connection failed", again=True, billed=True)

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
    """Bytes of UTF-8 of what is asked: no tokenizer in use makes more tokens than that."""
    texts = [message["content"] for message in messages] + ([json.dumps(schema)] if schema else [])
    return sum(len(text.encode(errors="replace")) for text in texts)


# ---- keys -------------------------------------------------------------------------------------------------------


def key_variable(url: str, others: str) -> str:
    """Where the key for this server is kept: in the vendor's variable for the vendor's own host, else in `others`."""
    address = urlsplit(url)
    return VENDOR_KEYS.get(address.hostname or "", others) if address.scheme == "https" else others


def read_key(variable: str, required: bool = False) -> str:
    """The key, "" where there is none. Raises DpoKitError where it is required and not there, or is no key."""
    key = os.environ.get(variable, "").strip()
    if required and not key:
        raise DpoKitError(f"a key is needed: set the environment variable {variable}")
    if not (key.isascii() and key.isprintable()):
        raise DpoKitError(f"the environment variable {variable} holds characters that no key has")
    return key


def quotes_key(text: str, key: str) -> bool:
    """Whether a server plays back a good part of the key it was sent."""
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
    elif text is None and end == "stop":  # a call of a tool, or thoughts alone
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
    try:
        return max(0.0, float(asked))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except ValueError:
        return None
