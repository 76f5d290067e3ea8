"""Answers from an OpenAI-compatible endpoint: vLLM, Ollama, `transformers serve`, or a vendor's.

The key comes from `OPENAI_API_KEY` for OpenAI's own server and from `DPO_KIT_ENDPOINT_KEY` for any other. It is written
nowhere: not in reasons, which name a status and never quote a reply, and not in answers, where one that repeats the key
counts as missing.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import urlsplit

from pydantic import BaseModel, Field
from tqdm import tqdm

from dpo_kit.errors import DpoKitError
from dpo_kit.models.answers import Answer, AnswerStore, Missing, answer_key
from dpo_kit.models.generation import Sampling, respond, row_seed
from dpo_kit.preferences.judges.api_keys import key_variable, quotes_key, read_key
from dpo_kit.records import Prompt, Response

OTHERS_KEY = "DPO_KIT_ENDPOINT_KEY"


class EndpointArm:
    """A model behind a URL. Every answer is stored as it comes, so that none is paid for twice.

    A request is retried at most `retries` times, on time-outs, 408, 409, 429 and 5xx, and waits as Retry-After says
    (openai SDK). After `give_up_after` failures in a row the rest is not asked: a dead endpoint costs minutes.
    The seed of each request is the prompt's own, but only some servers heed it: here the store, not the seed, is what
    makes a run repeatable.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        model: str,
        *,
        timeout: float = 120.0,
        retries: int = 4,
        workers: int = 8,
        give_up_after: int = 8,
    ):
        if not model:
            raise DpoKitError(
                f"arm {name}: which model of the endpoint? write it behind a #, as in http://host/v1#model"
            )
        if urlsplit(base_url).username is not None:
            raise DpoKitError(f"arm {name}: no user or password in the URL, please; put the key into {OTHERS_KEY}")
        self.name, self.base_url, self.model = name, base_url, model
        self.timeout, self.retries, self.workers, self.give_up_after = timeout, retries, workers, give_up_after

    def answer(
        self, prompts: Sequence[Prompt], sampling: Sampling, store: AnswerStore | None = None
    ) -> list[Response | Missing]:
        """One answer a prompt, in order, or why there is none."""
        keys = [self._key(prompt, sampling) for prompt in prompts]
        answers = store.find(keys) if store else [None] * len(prompts)
        open_rows = [i for i, answer in enumerate(answers) if answer is None]
        for i, answer in self._ask_all([(i, prompts[i]) for i in open_rows], sampling):
            stored = store and isinstance(answer, Answer)
            answers[i] = store.add([keys[i]], [answer])[0] if stored else answer
        return [
            answer if isinstance(answer, Missing) else respond(prompt, answer, self.name, sampling)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    def release(self) -> None:
        """Nothing of it is in memory here."""

    def _key(self, prompt: Prompt, sampling: Sampling) -> str:
        drawn = {"temperature": sampling.temperature, "seed": sampling.seed, "max_new_tokens": sampling.max_new_tokens}
        return answer_key(prompt, endpoint=self.base_url, model=self.model, **drawn)

    def _ask_all(
        self, questions: Sequence[tuple[int, Prompt]], sampling: Sampling
    ) -> Iterator[tuple[int, Answer | Missing]]:
        """Ask with several threads; yields what came, in the order it came."""
        pool, patience = ThreadPoolExecutor(self.workers), _Patience(self.give_up_after)
        asked = {pool.submit(self._ask, prompt, sampling, patience): i for i, prompt in questions}
        label = f"{self.name} answers, temperature {sampling.temperature:g}"
        try:
            for future in tqdm(as_completed(asked), total=len(asked), desc=label, unit="prompt"):
                yield asked[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _ask(self, prompt: Prompt, sampling: Sampling, patience: "_Patience") -> Answer | Missing:
        import openai  # takes a second, which a command line without an endpoint need not wait

        if patience.spent:
            return Missing(prompt.id, f"not asked: {patience.limit} requests in a row had failed")
        try:
            reply = self._client.chat.completions.with_raw_response.create(
                model=self.model,
                messages=prompt.chat(),
                temperature=sampling.temperature,
                max_tokens=sampling.max_new_tokens,
                seed=row_seed(prompt.id, sampling.seed) % 2**31,
            )
        except openai.OpenAIError as error:
            patience.failures += 1
            return Missing(prompt.id, _reason(error))
        patience.failures = 0
        return self._read(prompt, reply.text)

    def _read(self, prompt: Prompt, body: str) -> Answer | Missing:
        try:
            choice = _Reply.model_validate(json.loads(body)).choices[0]
        except (ValueError, RecursionError):
            return Missing(prompt.id, "the reply is not that of a chat completion")
        if choice.finish_reason not in ("stop", "length"):
            return Missing(prompt.id, "the reply ended neither by itself nor at the length limit")
        if choice.message.content is None:
            return Missing(prompt.id, "the reply holds no text")
        if quotes_key(choice.message.content, self._client.api_key):
            return Missing(prompt.id, "the reply repeats the API key")
        return Answer(choice.message.content, choice.finish_reason == "stop")

    @cached_property
    def _client(self):
        from openai import OpenAI

        key = read_key(key_variable(self.base_url, OTHERS_KEY))
        return OpenAI(base_url=self.base_url, api_key=key, timeout=self.timeout, max_retries=self.retries)


class _Message(BaseModel):
    content: str | None


class _Choice(BaseModel):
    finish_reason: str | None
    message: _Message


class _Reply(BaseModel):
    """What is needed of a chat completion; what else it holds does not matter."""

    choices: list[_Choice] = Field(min_length=1)


@dataclass
class _Patience:
    """Failed requests in a row, counted by all threads of one call; one more or less does not matter."""

    limit: int
    failures: int = 0

    @property
    def spent(self) -> bool:
        return self.failures >= self.limit


def _reason(error: Exception) -> str:
    """What went wrong, in words of ours: a server's own may repeat the key."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return f"HTTP {error.status_code}"
    if isinstance(error, openai.APITimeoutError):
        return "no reply in time"
    return f"no connection ({type(error).__name__})"
