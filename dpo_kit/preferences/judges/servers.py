"""The two SDKs behind one call: a question in, a completion or a reason why there is none out.

`openai` speaks to every server with that API (vLLM, Ollama, `transformers serve`); `anthropic` to its own. Their
retries are off: ours count against the budget and are seen. What they raise carries the request and with it the key,
so no exception of theirs leaves this module, not even as the context of one of ours.

A vendor's key goes to the vendor alone (`api_keys`); any other server is sent `DPO_KIT_JUDGE_KEY`.
"""

import time
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from dpo_kit.errors import DpoKitError
from dpo_kit.preferences.judges.api_keys import key_variable, quotes_key, read_key
from dpo_kit.preferences.judges.prompt import Question
from dpo_kit.profiles import JudgeSettings

VENDORS = {"openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com"}
OTHERS_KEY = "DPO_KIT_JUDGE_KEY"
REFUSED, CUT = "the judge refused", "the reply was cut off at the token limit"
MALFORMED = "malformed reply of the server"
FAULTS = {  # every later question would meet these too
    401: "the key is missing or wrong: set {variable}",
    402: "the account has no credit",
    403: "the key may not use this model or server",
    404: "no such model or path: check judge.model = {model!r} and judge.base_url",
}


@dataclass(frozen=True)
class Completion:
    """A reply: its text, why it is not a whole one ("" where it is), and billed tokens (in, out), None if not said."""

    text: str
    problem: str = ""
    tokens: tuple[int, int] | None = None


@dataclass(eq=False)
class Failed(Exception):
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


class Server:
    """One language model behind an API. Thread-safe."""

    def __init__(self, settings: JudgeSettings) -> None:
        self.settings = settings
        self.url = settings.base_url or VENDORS[settings.kind]
        self._variable = key_variable(self.url, OTHERS_KEY)
        _check(settings, self.url)
        self._sdk, client = _sdk(settings.kind)
        options = {"base_url": self.url, "max_retries": 0, "timeout": settings.timeout_seconds}
        self._client = client(api_key=read_key(self._variable, required=not settings.base_url), **options)

    def complete(self, question: Question, structured: bool) -> Completion:
        """Ask once, with the reply's schema enforced by the server where `structured`.

        Raises Failed, or DpoKitError where the settings are at fault and asking again would be in vain.
        """
        request, read = _CALLS[self.settings.kind]
        failure, reply = None, None
        try:
            reply = request(self._client, self.settings, question, structured)
        except (self._sdk.APIError, ValueError, RecursionError) as error:
            failure = self._failure(error)
        if failure:
            raise failure  # outside of `except`: the SDK's exception, which knows the key, is not even its context
        try:
            completion = read(reply)
        except (AttributeError, IndexError, TypeError):
            raise Failed(MALFORMED, billed=True, status=200) from None
        return replace(completion, text=self._without_key(completion.text))

    def _failure(self, error: Exception) -> Exception:
        if isinstance(error, self._sdk.APIStatusError):
            return self._refusal(error.status_code, error.response)
        if isinstance(error, self._sdk.APITimeoutError):
            return Failed(f"no reply within {self.settings.timeout_seconds:g} s", again=True, billed=True)
        if isinstance(error, self._sdk.APIConnectionError):
            made = not type(error.__cause__).__name__.startswith("Connect")  # ConnectError, ConnectTimeout
            return Failed("the connection failed", again=True, billed=made, status=None if made else 0)
        return Failed(MALFORMED, billed=True, status=200)

    def _refusal(self, status: int, response: Any) -> Exception:
        if status in FAULTS:
            advice = FAULTS[status].format(variable=self._variable, model=self.settings.model)
            return DpoKitError(f"judge at {urlsplit(self.url).netloc}: HTTP {status}: {advice}")
        again = status in (408, 409, 429) or status >= 500
        said = "" if again else f": {self._without_key(response.text)[:200]}"
        return Failed(f"HTTP {status}{said}", again=again, wait=_retry_after(response.headers), status=status)

    def _without_key(self, text: str) -> str:
        """The text, unless it quotes the key: then nothing of it is kept."""
        return "[withheld: it quotes the key]" if quotes_key(text, self._client.api_key) else text


def _check(settings: JudgeSettings, url: str) -> None:
    address = urlsplit(url)
    if address.scheme not in ("http", "https") or not address.hostname or "@" in address.netloc or address.query:
        raise DpoKitError("judge.base_url is not a plain http(s) address; a key belongs into the environment")
    if not settings.model:
        raise DpoKitError("judge.model is empty: name a model that the server knows")
    if not settings.base_url and not (settings.input_price and settings.output_price):
        raise DpoKitError("judge.input_price and output_price are 0: without prices judge.max_dollars cannot hold")


def _sdk(kind: str) -> tuple[ModuleType, Any]:
    if kind == "openai":
        import openai

        return openai, openai.OpenAI
    import anthropic

    return anthropic, anthropic.Anthropic


def _request_openai(client: Any, settings: JudgeSettings, question: Question, structured: bool) -> Any:
    # OpenAI's newer models refuse `max_tokens`; other servers have known no other name for longest.
    options: dict[str, Any] = {
        "max_tokens" if settings.base_url else "max_completion_tokens": settings.max_reply_tokens
    }
    if settings.temperature is not None:
        options["temperature"] = settings.temperature
    if structured:
        shape = {"name": "reply", "strict": True, "schema": question.schema}
        options["response_format"] = {"type": "json_schema", "json_schema": shape}
    messages = [{"role": "system", "content": question.system}, {"role": "user", "content": question.user}]
    return client.chat.completions.create(model=settings.model, messages=messages, **options)


def _read_openai(reply: Any) -> Completion:
    choice = reply.choices[0]
    refused = choice.message.refusal or choice.finish_reason == "content_filter"
    problem = REFUSED if refused else CUT if choice.finish_reason == "length" else ""
    usage = reply.usage and _tokens(reply.usage.prompt_tokens, reply.usage.completion_tokens)
    return Completion(choice.message.content or "", problem, usage)


def _request_anthropic(client: Any, settings: JudgeSettings, question: Question, structured: bool) -> Any:
    options: dict[str, Any] = {"max_tokens": settings.max_reply_tokens}
    if settings.temperature is not None:  # gone from the SDK's signature, since newer models refuse it
        options["extra_body"] = {"temperature": settings.temperature}
    if structured:
        options["output_config"] = {"format": {"type": "json_schema", "schema": question.schema}}
    messages = [{"role": "user", "content": question.user}]
    return client.messages.create(model=settings.model, system=question.system, messages=messages, **options)


def _read_anthropic(reply: Any) -> Completion:
    text = "".join(block.text for block in reply.content if block.type == "text")
    cut = reply.stop_reason in ("max_tokens", "model_context_window_exceeded")
    problem = REFUSED if reply.stop_reason == "refusal" else CUT if cut else ""
    usage = reply.usage and _tokens(reply.usage.input_tokens, reply.usage.output_tokens)
    return Completion(text, problem, usage)


_CALLS = {"openai": (_request_openai, _read_openai), "anthropic": (_request_anthropic, _read_anthropic)}


def _tokens(read: Any, written: Any) -> tuple[int, int] | None:
    said = isinstance(read, int) and isinstance(written, int) and read >= 0 and written >= 0
    return (read, written) if said else None


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
