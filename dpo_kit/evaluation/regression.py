"""What training made a model forget: the log-loss of a neutral text, and small tasks that a program can check.

The text and the tasks are shipped (`data/regression/`, with a card). Both arms are asked the same, the differences are
paired by paragraph and by task, and all of them stand under one Holm correction.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from dpo_kit.evaluation.comparison import compare_columns
from dpo_kit.evaluation.results import Metric, Regression
from dpo_kit.jsonl import read_jsonl
from dpo_kit.models.generation import Answer, Sampling
from dpo_kit.models.loading import Arms
from dpo_kit.models.store import Store
from dpo_kit.profiles import DATA
from dpo_kit.records import Prompt, Response

if TYPE_CHECKING:
    from dpo_kit.evaluation.arms import Answerer

TEXT, TASKS = DATA / "regression" / "text.jsonl", DATA / "regression" / "tasks.jsonl"
LOSS_MATTERS = 0.02  # bits a byte, the smallest difference that would matter; about 0.06 nats a token of English


def regression_suite(
    before: "Answerer",
    after: "Answerer",
    store: Store[Answer] | None = None,
    *,
    max_new_tokens: int = 64,
    batch_size: int = 8,
) -> Regression:
    """`after` against `before` on the shipped text and tasks, with paired intervals and verdicts.

    Answers are decoded greedily; with a `store` those that it holds are not made again. An arm without weights at hand
    (a server, a file) has no log-loss, and where answers are missing the differences rest on the other tasks.
    `Regression.lost` names what got worse.
    """
    tasks = read_jsonl(TASKS)
    prompts = [Prompt.from_text(task["prompt"]).model_copy(update={"id": f"regression/{task['id']}"}) for task in tasks]
    sampling, columns = Sampling(0.0, 0, max_new_tokens, batch_size), {}
    for arm in (before, after):
        measured: dict[str, dict[str, float]] = defaultdict(dict)
        if weights := getattr(arm, "weights", None):
            rows = read_jsonl(TEXT)
            loaded, name = weights()
            losses = bits_per_byte(loaded, name, [row["text"] for row in rows])
            measured["log_loss"] = {row["id"]: loss for row, loss in zip(rows, losses, strict=True)}
        for task, answer in zip(tasks, arm.answer(prompts, sampling, store), strict=True):
            if isinstance(answer, Response):
                passes = float(passed(task["check"], task["expected"], answer.text))
                measured["all_tasks"][task["id"]] = measured[task["kind"]][task["id"]] = passes
        columns[arm.name] = dict(measured)
        arm.release()
    names = (before.name, after.name)
    metrics = compare_columns(columns, names, (after.name, before.name), smallest={"log_loss": LOSS_MATTERS})
    loss = metrics.pop("log_loss", None)
    return Regression(*names, n_tasks=len(tasks), log_loss=loss and _lower_is_better(loss), tasks=metrics)


def bits_per_byte(arms: Arms, arm: str, texts: Sequence[str]) -> list[float]:
    """-log2 p(text) under an arm, divided by the text's bytes: it can be compared between tokenizers.

    No chat template is put around the text. Its first token is predicted from BOS, or from EOS where there is no BOS.
    """
    start = arms.tokenizer.bos_token_id
    start = arms.tokenizer.eos_token_id if start is None else start
    found = []
    with arms.use(arm) as model, torch.inference_mode():
        for text in texts:
            ids = [start, *arms.tokenizer(text, add_special_tokens=False)["input_ids"]]
            inputs = torch.tensor([ids], device=model.device)  # (1, T)
            logps = model(input_ids=inputs).logits[0, :-1].float().log_softmax(dim=-1)  # (T - 1, V)
            nats = -logps.gather(1, inputs[0, 1:, None]).double().sum().item()
            found.append(nats / math.log(2) / len(text.encode()))
    return found


def passed(check: str, expected: Any, answer: str) -> bool:
    """Whether an answer passes a task's `check`. What a reasoning model writes before `</think>` is left out.

    `equals`: the text, but for white space, quotes or backticks around it and a full stop at its end. `number`: its
    last number. `json`: the answer, or its one code block, as JSON. `pattern`: a regular expression for all of it.
    Raises KeyError for an unknown check.
    """
    text = answer.rpartition("</think>")[2].strip()
    checks: dict[str, Callable[[Any, str], bool]] = {
        "equals": _equals, "number": _number, "json": _json, "pattern": _pattern,
    }  # fmt: skip
    return checks[check](expected, text)


def _equals(expected: str, text: str) -> bool:
    return text.strip(" \n`\"'.") == expected.strip(".")


def _number(expected: int, text: str) -> bool:
    numbers = re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", ""))
    return bool(numbers) and float(numbers[-1]) == expected


def _json(expected: Any, text: str) -> bool:
    fenced = re.fullmatch(r"```(?:json)?\n(.*)\n```", text, re.DOTALL)
    try:
        return json.loads(fenced[1] if fenced else text) == expected
    except (ValueError, RecursionError):
        return False


def _pattern(expected: str, text: str) -> bool:
    return re.fullmatch(expected, text) is not None


def _lower_is_better(metric: Metric) -> Metric:
    """The same metric, with the words better and worse exchanged in its verdict."""
    swapped = {"better": "worse", "worse": "better"}
    words = re.sub(r"\b(?:better|worse)\b", lambda found: swapped[found[0]], metric.difference.verdict)
    return replace(metric, difference=replace(metric.difference, verdict=words))
