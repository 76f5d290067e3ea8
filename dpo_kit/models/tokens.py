"""From chats to token ids: one tokenizer loader, one renderer, one mask of what is scored.

Training, the audit, sampling and the release all render through this file. A tokenizer is prepared once when it is
loaded: its template gets the profile's arguments, a template that writes today's date gets a fixed one, and a missing
pad token is set. The template that was used is saved beside an adapter and read from there afterwards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from dpo_kit.errors import DpoKitError

if TYPE_CHECKING:
    from dpo_kit.profiles import ModelSettings
    from dpo_kit.records import Prompt, Response

TEMPLATE = "chat_template.jinja"  # beside an adapter: the template that it was trained with
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}END\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VERBATIM = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
END = "{% if messages[-1]['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
THINKING = re.compile(r"<think>.*?</think>\s*|\[THINK\].*?\[/THINK\]\s*", re.DOTALL)
NOW = re.compile(r"""strftime_now\(\s*(?:format\s*=\s*)?(["'])(.*?)\1\s*\)""")


@dataclass(frozen=True)
class Scoring:
    """Which tokens of an answer bear loss: those of all assistant turns or of the last; spans of thought or not.

    `thinking` decides over the spans between `<think>` and `</think>` (or `[THINK]`), empty ones too. With None they
    are scored where the data has them, and a span that only the template writes is refused.
    """

    turns: Literal["all", "last"] = "all"
    thinking: Literal["scored", "masked"] | None = None

    @classmethod
    def of(cls, settings: ModelSettings) -> Scoring:
        """What a profile says."""
        return cls(settings.scored_turns, settings.thinking)

    def __str__(self) -> str:
        turns = "every assistant turn" if self.turns == "all" else "the last assistant turn"
        spans = {"scored": "thinking too", "masked": "thinking left out", None: "thinking too, where the data has it"}
        return (
            f"{turns} with its end is scored, {spans[self.thinking]}; tool results and user turns are read, not scored"
        )


# ---- the tokenizer ----------------------------------------------------------------------------------------------


def load_tokenizer(
    name: str, settings: ModelSettings | None = None, adapter: Path | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or Hub id, ready to render: with a template, a pad token and all stop tokens.

    `settings` choose the template and its arguments; a template that an `adapter` was trained with comes before them.
    Raises DpoKitError where there is no tokenizer, no EOS or no template, or where a template cannot be prepared.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise DpoKitError(
            f"{name}: no tokenizer can be loaded from there ({first_line(error)}); give a folder with tokenizer.json "
            "and tokenizer_config.json, or a Hub id that is reachable or in the cache"
        ) from None
    if tokenizer.eos_token_id is None:
        raise DpoKitError(f"{name}: the tokenizer has no EOS token; set eos_token in its tokenizer_config.json")
    recorded = template_of(adapter)
    tokenizer.chat_template = recorded or _template(name, tokenizer, settings)
    tokenizer.more_stops = _configured_stops(name)
    if tokenizer.pad_token_id is None:  # padding is always masked by position, so any token serves
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def template_of(adapter: Path | None) -> str | None:
    """The template that an adapter was trained with, where its folder holds one."""
    file = adapter / TEMPLATE if adapter else None
    return file.read_text(encoding="utf-8") if file and file.is_file() else None


def _template(name: str, tokenizer: PreTrainedTokenizerBase, settings: ModelSettings | None) -> str:
    chosen = settings.chat_template if settings else ""
    template: Any = tokenizer.chat_template
    if chosen in ("chatml", "none"):
        bos = "{{ bos_token }}" if tokenizer.bos_token_id in tokenizer("")["input_ids"] else ""
        end = "<|im_end|>" if "<|im_end|>" in tokenizer.get_vocab() else "{{ eos_token }}"
        verbatim = VERBATIM + (END if settings and settings.eos_after_answer else "")
        template = bos + (CHATML.replace("END", end) if chosen == "chatml" else verbatim)
    elif chosen:
        try:
            template = Path(chosen).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise DpoKitError(f"chat template {chosen}: cannot be read ({first_line(error)})") from None
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise DpoKitError(
            f"{name}: the tokenizer has no chat template, as base models have none; give one with --chat-template "
            "FILE, chatml, or none (prompt and answer are joined as they are)"
        )
    given = settings.template_kwargs if settings else {}
    written = (f"{{% set {key} = {'none' if value is None else json.dumps(value)} %}}" for key, value in given.items())
    return freeze_date("".join(written) + template)


def freeze_date(template: str) -> str:
    """The template with the present time in place of each call of `strftime_now`: a prompt must not change by the day.

    Raises DpoKitError where a call's format is not written out.
    """
    now = datetime.now()
    frozen = NOW.sub(lambda call: json.dumps(now.strftime(call[2])), template)
    if "strftime_now(" in frozen:
        raise DpoKitError(
            "the chat template writes the time in a format that is computed, so it cannot be fixed for a run; give a "
            "template with a fixed date: --chat-template FILE"
        )
    return frozen


def _configured_stops(name: str) -> tuple[int, ...]:
    try:
        found = GenerationConfig.from_pretrained(name).eos_token_id
    except (OSError, ValueError, TypeError):
        return ()
    return tuple(found) if isinstance(found, list) else () if found is None else (found,)


def stop_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None) -> list[int]:
    """The tokens that end an answer: the tokenizer's EOS, and those of the model's generation settings."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    ids = dict.fromkeys([tokenizer.eos_token_id, *getattr(tokenizer, "more_stops", ()), *listed])
    return [token for token in ids if token is not None]


def must_stop(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether answers are to end in a stop token: they are, unless prompt and answer are joined without one."""
    return not str(tokenizer.chat_template).endswith(VERBATIM)


def first_line(error: BaseException) -> str:
    """The first line of what a library says, or its kind where it says nothing."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


# ---- rendering --------------------------------------------------------------------------------------------------


def render(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, turns: Sequence[dict[str, Any]] = (), *, ask: bool = False
) -> str:
    """The prompt and the turns after it as one text; with `ask` up to where the assistant's next turn begins.

    Raises DpoKitError with the prompt's id where the template refuses them.
    """
    try:
        return tokenizer.apply_chat_template(
            [*prompt.chat(), *turns], tools=list(prompt.tools or ()) or None, tokenize=False, add_generation_prompt=ask
        )
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        raise DpoKitError(f"prompt {prompt.id}: the chat template refuses it ({first_line(error)})") from None


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """The ids of the prompt up to where the answer begins. Raises DpoKitError where the template refuses it."""
    return _ids(tokenizer, render(tokenizer, prompt, ask=True))


def encode(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, answer: Response, scoring: Scoring | None = None
) -> tuple[list[int], list[int]]:
    """The ids of prompt and answer together, and a mask as long: 1 where a token is scored.

    A turn is scored from where the template opens it to its end. The first one begins, as in TRL, where the prompt
    alone and the whole stop having the same ids. Raises DpoKitError where the template refuses the turns, writes an
    earlier turn in another way once later ones follow, or thinks where the answer does not (see `Scoring`).
    """
    scoring = scoring or Scoring()
    turns = answer.chat()
    text, opened = render(tokenizer, prompt, turns), render(tokenizer, prompt, ask=True)
    ids = _ids(tokenizer, text)
    mask = [0] * len(ids)
    spoken = [k for k, turn in enumerate(turns) if turn["role"] == "assistant"]
    for k in spoken if scoring.turns == "all" else spoken[-1:]:
        before = _ids(tokenizer, render(tokenizer, prompt, turns[:k], ask=True) if k else opened)
        after = ids if k == spoken[-1] else _ids(tokenizer, render(tokenizer, prompt, turns[: k + 1]))
        start = common_prefix(before, ids)
        if (k and start < len(before)) or ids[: len(after)] != after:
            raise DpoKitError(
                f"prompt {prompt.id}: the chat template writes turn {k + 1} of an answer in another way once "
                "others follow, so it cannot be scored as it was said; set model.scored_turns = 'last', or split it"
            )
        mask[start : len(after)] = [1] * (len(after) - start)
    if thinks_alone(text[common_prefix(text, opened) :], answer) and scoring.thinking is None:
        raise DpoKitError(
            f"prompt {prompt.id}: the chat template writes a span of thought into an answer that has none; say whether "
            "it is to be learnt, with model.thinking = 'scored' or 'masked', or switch it off, with "
            "model.template_kwargs = {enable_thinking = false}"
        )
    if scoring.thinking == "masked":
        _leave_out(tokenizer, text, mask)
    return ids, mask


def thinks_alone(rendered: str, answer: Response) -> bool:
    """Whether the template put a span of thought into an answer that has none."""
    own = any(m.reasoning_content or THINKING.search(m.content) for m in answer.messages)
    return not own and THINKING.search(rendered) is not None


def _leave_out(tokenizer: PreTrainedTokenizerBase, text: str, mask: list[int]) -> None:
    """Set the mask to 0 on each token that touches a span of thought."""
    if not tokenizer.is_fast:
        raise DpoKitError("model.thinking = 'masked' needs a fast tokenizer, which knows where in a text each token is")
    places = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    for span in THINKING.finditer(text):
        for i, (start, end) in enumerate(places):
            if start < span.end() and end > span.start():
                mask[i] = 0


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def common_prefix(a: Sequence, b: Sequence) -> int:
    """How many items two sequences have in common at their start."""
    if a == b[: len(a)]:
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def pair_row(tokenizer: PreTrainedTokenizerBase, pair: Any, scoring: Scoring) -> dict[str, list[int]]:
    """A pair as TRL's `DPOTrainer` holds it once tokenised, with the mask of each side beside its ids.

    The prompt's ids are those that the prompt alone and both sides begin with, as in TRL.
    """
    sides = {side: encode(tokenizer, pair.prompt, getattr(pair, side), scoring) for side in ("chosen", "rejected")}
    opened = prompt_ids(tokenizer, pair.prompt)
    border = min(common_prefix(opened, ids) for ids, _ in sides.values())
    row = {"prompt_ids": opened[:border]}
    for side, (ids, mask) in sides.items():
        row |= {f"{side}_ids": ids[border:], f"{side}_mask": mask[border:]}
    return row


def pad_completions(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[int]], completions: Sequence[list[int]]
) -> tuple[dict[str, Tensor], Tensor]:
    """Rows of prompt and completion, padded on the right: model inputs `(B, T)` and the completion mask `(B, T)`.

    With prompts [[5, 6], [7]] and completions [[8], [9, 1]], pad 0:

        input_ids        [[5, 6, 8], [7, 9, 1]]
        completion_mask  [[0, 0, 1], [0, 1, 1]]
    """
    rows = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    inputs = tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt")
    starts = torch.tensor([len(prompt) for prompt in prompts])  # (B,)
    positions = torch.arange(inputs["input_ids"].shape[1])  # (T,)
    # not "ids that differ from padding": where the pad token is EOS, the mask would leave out the EOS to be learnt
    completion_mask = (positions >= starts[:, None]) & inputs["attention_mask"].bool()  # (B, T)
    return dict(inputs), completion_mask


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> Iterable[str]:
    """The texts that the tokenizer turns into control tokens wherever they stand, such as `<|im_end|>`."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return sorted({*tokenizer.all_special_tokens, *added}, key=lambda text: (-len(text), text))
