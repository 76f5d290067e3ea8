"""From chats to token ids, with an exact border between prompt and completion."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dpo_kit.records import Prompt


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """The ids of the prompt up to where the answer begins."""
    return tokenizer.apply_chat_template(prompt.chat(), add_generation_prompt=True, return_dict=True)["input_ids"]


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
