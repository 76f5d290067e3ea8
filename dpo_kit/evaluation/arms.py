"""Who takes part in a comparison: adapters on one set of frozen weights, other models, endpoints, ready answers.

An arm has a name and answers prompts. An answer that does not come is missing, with a reason; none is ever made up.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from dpo_kit.errors import DpoKitError
from dpo_kit.evaluation.endpoint import EndpointArm
from dpo_kit.jsonl import read_records
from dpo_kit.models.answers import Answer, AnswerStore, Missing
from dpo_kit.models.generation import Sampling, StopCounts, count_stops, generate, respond
from dpo_kit.models.loading import Arms, add_adapter, load_arms
from dpo_kit.profiles import Profile
from dpo_kit.records import Prompt, Response

ARMS = ("base", "sft", "dpo")


class Answerer(Protocol):
    """Anything that answers prompts under a name."""

    name: str

    def answer(
        self, prompts: Sequence[Prompt], sampling: Sampling, store: AnswerStore | None = None
    ) -> list[Response | Missing]:
        """One answer a prompt, in order, or why there is none; with a store, nothing stored is made again."""
        ...

    def release(self) -> None:
        """Let go of what fills the memory; the next `answer` loads it again."""
        ...


@dataclass(frozen=True)
class Answers:
    """All that came from all arms, and per arm what did not; an arm that answered everything has no entry there."""

    responses: list[Response]
    missing: dict[str, list[Missing]]

    def count_stops(self) -> dict[str, StopCounts]:
        """How each arm's answers ended."""
        by_arm = defaultdict(list)
        for response in self.responses:
            by_arm[response.arm].append(response)
        return {arm: count_stops(responses) for arm, responses in by_arm.items()}


def answer_all(
    arms: Sequence[Answerer], prompts: Sequence[Prompt], samplings: Sequence[Sampling], store: AnswerStore | None = None
) -> Answers:
    """One answer a prompt from each arm for each sampling, such as one at temperature 1 and a greedy one.

    Each arm draws with a seed of its own. With common noise two similar arms would mostly give the same answer, and
    the win rate would be one between coupled samples, not the chance that one model's answer beats the other's.

    Raises DpoKitError where two arms have the same name.
    """
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise DpoKitError(f"arms {', '.join(names)}: two have the same name; give each its own")
    given = {}
    for number, arm in enumerate(arms):  # arm by arm, so that one model of its own is in memory at a time
        for sampling in samplings:
            own = replace(sampling, seed=len(arms) * sampling.seed + number)
            given[sampling, arm.name] = arm.answer(prompts, own, store)
        arm.release()
    responses, missing = [], defaultdict(list)
    for sampling in samplings:
        for name in names:
            for answer in given[sampling, name]:
                if isinstance(answer, Missing):
                    missing[name].append(
                        answer._replace(reason=f"temperature {sampling.temperature:g}: {answer.reason}")
                    )
                else:
                    responses.append(answer)
    return Answers(responses, dict(missing))


class ModelArm:
    """An arm of weights in memory: one adapter on them, or "base", the frozen weights alone. Answers everything."""

    def __init__(self, name: str, load: Callable[[], Arms], adapter: str = "base"):
        self.name, self.load, self.adapter = name, load, adapter

    def answer(
        self, prompts: Sequence[Prompt], sampling: Sampling, store: AnswerStore | None = None
    ) -> list[Response | Missing]:
        """See `Answerer`."""
        answers = generate(self.load(), self.adapter, prompts, sampling, store)
        return [answer.model_copy(update={"arm": self.name}) for answer in answers]

    def release(self) -> None:
        """The weights belong to whoever loads them, and other arms share them."""


class OwnModelArm(ModelArm):
    """A model of its own, a folder or a Hub id, quantised as the profile says; in memory only while it answers."""

    def __init__(self, name: str, profile: Profile, path: str):
        super().__init__(name, self._load_once)
        self.profile = profile.model_copy(update={"model": profile.model.model_copy(update={"path": path})})
        self._arms: Arms | None = None

    def release(self) -> None:
        """Drop the weights."""
        self._arms = None

    def _load_once(self) -> Arms:
        if self._arms is None:
            self._arms = load_arms(self.profile, {})
            tokenizer = self._arms.tokenizer
            if tokenizer.chat_template is None:
                raise DpoKitError(f"{self.profile.model.path}: no chat template; give a model that was trained to chat")
            if tokenizer.pad_token is None:  # generation masks padding, so any token will do
                tokenizer.pad_token = tokenizer.eos_token
        return self._arms


class SharedBase:
    """The profile's frozen weights, loaded when the first arm on them answers, and the adapters of the others."""

    def __init__(self, profile: Profile):
        self.profile = profile
        self._arms: Arms | None = None
        self._added: set[str] = set()

    def arm(self, name: str, folder: Path | None = None) -> ModelArm:
        """The frozen weights alone, or with the adapter in `folder`. The name "base" is for the weights alone."""
        if folder is None:
            return ModelArm(name, self._load)
        if name == "base":
            raise DpoKitError(f"{folder}: an adapter cannot be called 'base', which is the weights alone; rename it")
        return ModelArm(name, lambda: self._load(name, folder), name)

    def _load(self, name: str = "base", folder: Path | None = None) -> Arms:
        if self._arms is None:
            self._arms = load_arms(self.profile, {})
        if folder is not None and name not in self._added:
            self._arms.model = add_adapter(self._arms.model, name, folder)
            self._added.add(name)
        return self._arms


class FileArm:
    """Ready answers: a JSONL of `Response` records, of which only `prompt_id` and `text` are needed.

    Where records name arms and one of them is this arm, the others' records are passed over. A record that names a
    temperature answers for that one only; one that names none answers for all. The answers carry the temperature and
    seed they were asked for. Raises DpoKitError where the file cannot be read.
    """

    def __init__(self, name: str, path: Path):
        self.name, self.path = name, path
        rows = read_records(path, Response)
        named = any(row.arm == name for row in rows)
        self._rows = defaultdict(list)
        for row in rows:
            if not named or row.arm == name:
                self._rows[row.prompt_id].append(row)

    def answer(
        self, prompts: Sequence[Prompt], sampling: Sampling, store: AnswerStore | None = None
    ) -> list[Response | Missing]:
        """See `Answerer`. Raises DpoKitError where the file holds more than one answer to a prompt."""
        return [self._answer(prompt, sampling) for prompt in prompts]

    def release(self) -> None:
        """Texts are small."""

    def _answer(self, prompt: Prompt, sampling: Sampling) -> Response | Missing:
        rows = [row for row in self._rows[prompt.id] if row.temperature in (None, sampling.temperature)]
        rows = [row for row in rows if row.seed == sampling.seed] or rows
        if len(rows) > 1:
            raise DpoKitError(
                f"{self.path}: {len(rows)} answers to prompt {prompt.id!r} at temperature {sampling.temperature:g}; "
                "keep one, or name their arms and choose one of these names"
            )
        if not rows:
            return Missing(prompt.id, f"no answer in {self.path.name}")
        return respond(prompt, Answer(rows[0].text, rows[0].stopped), self.name, sampling)


def parse_arm(text: str, base: SharedBase) -> Answerer:
    """The arm that `name=spec` names on a command line.

    spec: `base`, the profile's frozen weights; a folder with an adapter on them; a folder or Hub id with a model of its
    own; `http://host/v1#model`, an OpenAI-compatible endpoint; `answers.jsonl`, ready answers.
    Nothing is loaded yet. Raises DpoKitError where the text names none of these.
    """
    name, _, spec = text.partition("=")
    if not (re.fullmatch(r"[\w-]+", name) and spec):
        raise DpoKitError(f"arm {text!r}: write name=spec, the name in letters, digits, - and _")
    if spec == "base":
        return base.arm(name)
    if re.match(r"https?://", spec):
        url, _, model = spec.partition("#")
        return EndpointArm(name, url, model)
    path = Path(spec).expanduser()
    if path.suffix == ".jsonl":
        return FileArm(name, path)
    if (path / "adapter_config.json").is_file():
        return base.arm(name, path)
    if (path / "config.json").is_file():
        return OwnModelArm(name, base.profile, str(path.resolve()))
    if path.exists() or not re.fullmatch(r"[\w.-]*\w(/[\w.-]*\w)?", spec):
        raise DpoKitError(f"arm {text!r}: no adapter, model, endpoint or .jsonl is there; check the path")
    return OwnModelArm(name, base.profile, spec)
