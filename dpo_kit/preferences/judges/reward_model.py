"""A reward model as a judge: any sequence-classification model with one output, read through its chat template."""

from collections.abc import Callable

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from dpo_kit.errors import DpoKitError
from dpo_kit.preferences.judges import Judge, Unscorable, by_score
from dpo_kit.records import Prompt


def reward_judge(path: str, margin: float = 0.0) -> Judge:
    """The judge that prefers the answer of higher reward; rewards no further apart than `margin` are a tie."""
    return by_score(load_reward(path), f"reward model {path}", resolution=margin)


def load_reward(path: str) -> Callable[[Prompt, str], float]:
    """The reward r(x, y) of an answer, from a local folder or Hub id; weights are read from safetensors only.

    An answer that does not fit into the model with its prompt is `Unscorable`: half an answer is another answer.
    Raises DpoKitError where the model cannot be loaded, has not exactly one output, or has no chat template.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForSequenceClassification.from_pretrained(path, use_safetensors=True, dtype="auto").eval()
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DpoKitError(f"judge.model = {path!r}: the reward model cannot be loaded: {reason}") from error
    if model.config.num_labels != 1:
        raise DpoKitError(f"{path}: a reward model has one output, this one has {model.config.num_labels}")
    if not tokenizer.chat_template:
        raise DpoKitError(f"{path}: the tokenizer has no chat template, so the model cannot be shown a chat")
    longest = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
    model.to("cuda" if torch.cuda.is_available() else "cpu")

    @torch.inference_mode()
    def reward(prompt: Prompt, answer: str) -> float:
        chat = [*prompt.chat(), {"role": "assistant", "content": answer}]
        inputs = tokenizer.apply_chat_template(chat, return_dict=True, return_tensors="pt").to(model.device)
        tokens = inputs["input_ids"].shape[1]
        if tokens > longest:
            raise Unscorable(f"{tokens} tokens of prompt and answer; the reward model reads {longest}")
        return model(**inputs).logits[0, 0].item()

    return reward
