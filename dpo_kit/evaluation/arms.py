"""Who takes part in a comparison: adapters on one set of frozen weights, other models, endpoints, ready answers.

An arm has a name and answers prompts. An answer that an arm does not give is recorded as missing, with the reason.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from dpo_kit.errors import DpoKitError
from dpo_kit.evaluation.endpoint import EndpointArm
from dpo_kit.jsonl import read_records
from dpo_kit.models.generation import Answer, Missing, Sampling, StopCounts, count_stops, generate, respond
from dpo_kit.models.loading import Arms, add_adapter, load_base
from dpo_kit.models.store import Store
from dpo_kit.models.tokens import template_of
from dpo_kit.profiles import Profile
from dpo_kit.records import Prompt, Response


class Answerer(Protocol):
    """Anything that answers prompts under a name."""

    name: str

    def answer(
        self, prompts: Sequence[Prompt], sampling: Sampling, store: Store[Answer] | None = None
    ) -> list[Response | Missing]:
        """One answer for each prompt, in order, or why there is none. Answers found in `store` are not made again."""
        ...

    def release(self) -> None:
        """Free the memory that the arm holds; the next `answer` loads it again."""
        ...


@dataclass(frozen=True)
class Answers:
    """The answers of all arms, the missing answers by arm, and the second answers of one arm.

    An arm that answered everything has no entry in `missing`.
    """

    responses: list[Response]
    missing: dict[str, list[Missing]]
    resample: list[Response] = field(default_factory=list)

    def count_stops(self, arm: str) -> StopCounts:
        """How the answers of one arm ended."""
        return count_stops([response for response in self.responses if response.arm == arm])

    def reasons(self) -> dict[str, str]:
        """For each arm the three most common reasons for missing answers, with how often each occurred."""
        counted = {arm: Counter(gap.reason for gap in gaps).most_common(3) for arm, gaps in self.missing.items()}
        return {arm: "; ".join(f"{times} times {reason}" for reason, times in met) for arm, met in counted.items()}


def answer_all(
    arms: Sequence[Answerer],
    prompts: Sequence[Prompt],
    samplings: Sequence[Sampling],
    store: Store[Answer] | None = None,
    *,
    again: str | None = None,
    again_prompts: int | None = None,
) -> Answers:
    """One answer for each prompt, arm and sampling. There may be two samplings: temperature 1, and greedy decoding.

    Each arm samples with its own seed. With the same noise two similar arms would mostly give the same answer. The win
    rate would then compare coupled samples, and not estimate the chance that one model's answer beats the other's.

    `again` names the arm that answers the first `again_prompts` a second time, as the first sampling says but with
    another seed, for the control that compares the arm with itself. Where a later sampling has the same temperature,
    its answers are used. An arm of ready answers has no second answers, and neither has greedy decoding.
    Raises DpoKitError where two arms have the same name.
    """
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise DpoKitError(f"arms {', '.join(names)}: two have the same name; give each its own")
    given, resample = {}, []
    for number, arm in enumerate(arms):  # arm by arm, so that only one separate model is in memory at a time
        for sampling in samplings:
            own = replace(sampling, seed=len(arms) * sampling.seed + number)
            given[sampling, arm.name] = arm.answer(prompts, own, store)
        if arm.name == again:
            answers = _second_answers(arm, number, len(arms), prompts[:again_prompts], samplings, given, store)
            resample = [answer for answer in answers if isinstance(answer, Response)]
        arm.release()
    responses, missing = [], defaultdict(list)
    for sampling in samplings:
        for name in names:
            for answer in given[sampling, name]:
                if isinstance(answer, Missing):
                    why = f"temperature {sampling.temperature:g}: {answer.reason}"
                    missing[name].append(answer._replace(reason=why))
                else:
                    responses.append(answer)
    return Answers(responses, dict(missing), resample)


def _second_answers(arm, number, count, prompts, samplings, given, store) -> Sequence[Response | Missing]:
    """Other answers of arm `number` of `count` arms, independent of its first ones."""
    first, *others = samplings
    for sampling in others:
        if sampling.temperature == first.temperature:
            return given[sampling, arm.name]
    if isinstance(arm, FileArm) or first.temperature == 0:
        return []  # they would equal the first answers
    assert count > 1, "a single arm has nothing to be compared with, so it needs no second answers"
    # arm i has only seeds with remainder i modulo the number of arms, so no two arms ever use the same seed
    return arm.answer(prompts, replace(first, seed=count * first.seed + (number - 1) % count), store)


class ModelArm:
    """An arm of weights in memory: an adapter on a base, or the base alone. It answers everything."""

    def __init__(self, name: str, base: "Base", folder: Path | None = None):
        self.name, self.base, self.folder = name, base, folder

    def answer(
        self, prompts: Sequence[Prompt], sampling: Sampling, store: Store[Answer] | None = None
    ) -> list[Response | Missing]:
        """See `Answerer`."""
        answers = generate(*self.weights(), prompts, sampling, store)
        return [answer.model_copy(update={"arm": self.name}) for answer in answers]

    def weights(self) -> tuple[Arms, str]:
        """The loaded weights, and what this arm is called among them."""
        return self.base.load(self.name, self.folder), self.name if self.folder else "base"

    def release(self) -> None:
        """Free the weights, unless other arms share them."""
        self.base.release()


class Base:
    """Frozen weights, quantised as the profile says, and the adapters on them; loaded when the first arm answers.

    `shared` weights stay in memory for other arms. Weights that belong to one arm only are freed by that arm.
    """

    def __init__(self, profile: Profile, shared: bool = True):
        self.profile, self.shared = profile, shared
        self._arms: Arms | None = None
        self._added: set[str] = set()
        self._recorded: Path | None = None  # the first adapter with a template: the base alone is asked with it too

    def arm(self, name: str, folder: Path | None = None) -> ModelArm:
        """The frozen weights alone, or with the adapter in `folder`. The name "base" is for the weights alone."""
        if folder and name == "base":
            raise DpoKitError(f"{folder}: an adapter cannot be called 'base', which is the weights alone; rename it")
        self._recorded = self._recorded or (folder if template_of(folder) else None)
        return ModelArm(name, self, folder)

    def load(self, name: str, folder: Path | None) -> Arms:
        """The weights with the adapters that were asked for so far. Raises DpoKitError for another chat template."""
        if self._arms is None:
            self._arms = Arms(*load_base(self.profile, self._recorded))
        if folder is not None and name not in self._added:
            self._arms.model = add_adapter(self._arms.model, name, folder)
            self._added.add(name)
        template = template_of(folder)
        if template and template != self._arms.tokenizer.chat_template:
            raise DpoKitError(
                f"{folder}: this adapter was trained with another chat template, or on another day's date, than "
                f"{self._recorded}; answers to different prompts are not compared: train both in the same way"
            )
        return self._arms

    def release(self) -> None:
        """Free weights that are not shared."""
        if not self.shared:
            self._arms, self._added = None, set()


class FileArm:
    """Ready answers: a JSONL of `Response` records, of which only `prompt_id` and `text` are needed.

    Where records name arms and one of them is this arm, the records of other arms are left out. A record that names a
    temperature is an answer at that temperature only; one that names none is an answer at any. The answers carry the
    temperature and the seed that were asked for. Raises DpoKitError where the file cannot be read.
    """

    def __init__(self, name: str, path: Path, read: Callable[[Path], list[Response]] | None = None):
        self.name, self.path = name, path
        rows = read(path) if read else read_records(path, Response)
        named = any(row.arm == name for row in rows)
        self._rows = defaultdict(list)
        for row in rows:
            if not named or row.arm == name:
                self._rows[row.prompt_id].append(row)

    def answer(
        self, prompts: Sequence[Prompt], sampling: Sampling, store: Store[Answer] | None = None
    ) -> list[Response | Missing]:
        """See `Answerer`. Raises DpoKitError where the file holds more than one answer to a prompt."""
        return [self._answer(prompt, sampling) for prompt in prompts]

    def release(self) -> None:
        """Nothing to free: texts are small."""

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


def parse_arm(text: str, base: Base, read: Callable[[Path], list[Response]] | None = None) -> Answerer:
    """The arm that `name=spec` names on a command line.

    spec: `base`, the profile's frozen weights; a folder with an adapter on them; a folder or Hub id with a model of its
    own; `http://host/v1#model`, an OpenAI-compatible endpoint; `answers.jsonl`, ready answers, which `read` reads
    (default: `Response` records).
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
    if path.suffix in (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gz", ".zst"):
        return FileArm(name, path, read)
    if (path / "adapter_config.json").is_file():
        return base.arm(name, path)
    is_model = (path / "config.json").is_file()
    if not is_model and (path.exists() or not re.fullmatch(r"[\w.-]*\w(/[\w.-]*\w)?", spec)):
        raise DpoKitError(f"arm {text!r}: no adapter, model, endpoint or .jsonl is there; check the path")
    settings = base.profile.model.model_copy(update={"path": str(path.resolve()) if is_model else spec})
    return Base(base.profile.model_copy(update={"model": settings}), shared=False).arm(name)
