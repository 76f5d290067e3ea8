"""An arm whose model runs on a server with OpenAI's API: vLLM, Ollama, `transformers serve`, or a vendor."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from tqdm import tqdm

from dpo_kit.errors import DpoKitError
from dpo_kit.models.generation import Answer, Missing, Sampling, answer_key, respond, row_seed
from dpo_kit.models.servers import Server, Unanswered
from dpo_kit.models.store import Store
from dpo_kit.records import Prompt, Response

OTHERS_KEY = "DPO_KIT_ENDPOINT_KEY"  # environment variable with the key of a server that is not a vendor's


class EndpointArm:
    """A model behind a URL. Every answer is stored when it arrives, so that no answer is paid for twice.

    After `give_up_after` failures in a row the other prompts are not sent, because each failure of a dead endpoint
    takes time. `options` are those of `Server`. Each request has the seed of its prompt, but not all servers use it, so
    a run is repeatable because of the store and not because of the seed.
    """

    def __init__(
        self, name: str, base_url: str, model: str, *, workers: int = 8, give_up_after: int = 8, **options: Any
    ):
        if not model:
            raise DpoKitError(
                f"arm {name}: which model of the endpoint? write it behind a #, as in http://host/v1#model"
            )
        self.name, self.base_url, self.model = name, base_url, model
        self.server = Server(f"arm {name}", "openai", base_url, model, OTHERS_KEY, **options)
        self.workers, self.give_up_after = workers, give_up_after
        self._failures = 0  # failures in a row; threads share the count without a lock, since it need not be exact

    def answer(
        self, prompts: Sequence[Prompt], sampling: Sampling, store: Store[Answer] | None = None
    ) -> list[Response | Missing]:
        """One answer a prompt, in order, or why there is none."""
        keys = [self._key(prompt, sampling) for prompt in prompts]
        answers: list[Answer | Missing | None] = [*store.find(keys)] if store else [None] * len(prompts)
        open_rows = [i for i, answer in enumerate(answers) if answer is None]
        for i, answer in self._ask_all([(i, prompts[i]) for i in open_rows], sampling):
            answers[i] = store.add([keys[i]], [answer])[0] if store and isinstance(answer, Answer) else answer
        return [
            answer if isinstance(answer, Missing) else respond(prompt, answer, self.name, sampling)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    def release(self) -> None:
        """Nothing to free: the model is in the server's memory."""

    def _key(self, prompt: Prompt, sampling: Sampling) -> str:
        drawn = {"temperature": sampling.temperature, "seed": sampling.seed, "max_new_tokens": sampling.max_new_tokens}
        return answer_key(prompt, endpoint=self.base_url, model=self.model, **drawn)

    def _ask_all(
        self, questions: Sequence[tuple[int, Prompt]], sampling: Sampling
    ) -> Iterator[tuple[int, Answer | Missing]]:
        """Ask with several threads; yields each result as soon as it arrives."""
        pool, self._failures = ThreadPoolExecutor(self.workers), 0
        asked = {pool.submit(self._ask, prompt, sampling): i for i, prompt in questions}
        label = f"{self.name} answers, temperature {sampling.temperature:g}"
        try:
            for future in tqdm(as_completed(asked), total=len(asked), desc=label, unit="prompt"):
                yield asked[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _ask(self, prompt: Prompt, sampling: Sampling) -> Answer | Missing:
        if self._failures >= self.give_up_after:
            return Missing(prompt.id, f"not asked: {self.give_up_after} requests in a row had failed")
        seed = row_seed(prompt.id, sampling.seed) % 2**31
        try:
            reply = self.server.ask(prompt.chat(), sampling.max_new_tokens, temperature=sampling.temperature, seed=seed)
        except (Unanswered, DpoKitError) as failure:  # other arms may still answer, so the comparison goes on
            self._failures += 1
            return Missing(prompt.id, str(failure))
        self._failures = 0
        if reply.end not in ("stop", "length"):
            return Missing(prompt.id, f"the reply holds no whole answer; it ended as {reply.end!r}")
        return Answer(reply.text, reply.end == "stop")
