"""`python -m dpo_kit evaluate`: your own models on your own prompts.

It is the same comparison as at the end of `run`, for any arms, any prompts and any judge. Answers are stored as they
come, so the same command goes on where it stopped. What an endpoint did not answer is in the report as missing.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_kit.cli.reading import add_reading_arguments, reading
from dpo_kit.errors import DpoKitError
from dpo_kit.jsonl import read_pairs
from dpo_kit.profiles import JudgeSettings, Profile, load_profile
from dpo_kit.records import Prompt

if TYPE_CHECKING:
    from dpo_kit.models.generation import Sampling

JUDGES = ("rubric", "simulated", "reward", "openai", "anthropic", "none")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    add("--arms", nargs="+", required=True, metavar="NAME=SPEC", help="`base`, an adapter, a model, answers, or "
        "http://host/v1#model (its key: DPO_KIT_ENDPOINT_KEY)")  # fmt: skip
    add("--prompts", type=Path, required=True, help="rows with `messages`, `prompt` or MT-Bench's `turns`, or pairs")
    add("--judge", choices=JUDGES, help="who compares (default: the profile's)")
    add("--judge-model", help="which model judges")
    add("--judge-url", help="an OpenAI-compatible server; its key: DPO_KIT_JUDGE_KEY")
    add("--max-dollars", type=float, help="the judge is asked nothing that could make it cost more than this in all")
    add("--rate", action="store_true", help="let the language model that judges score each answer from 1 to 5 too")
    add("--primary", nargs=2, metavar=("TREATED", "CONTROL"), help="default: dpo sft, or the last two")
    add("--samples", type=int, default=1, help="answers a prompt; with 2 or more, the best of K are compared too")
    add("--controls", type=int, default=100, help="on how many prompts the controls run")
    add("--pairs", type=Path, help="the training pairs: warns where their judge judges here too")
    add("--model", help="the base of the adapters: a local folder or a Hub id (default: the profile's)")
    add("--chat-template", metavar="FILE|chatml|none", help="in place of the tokenizer's own; an adapter has its own")
    add("--profile", help="which profile (default: DPO_KIT_PROFILE, else tiny)")
    add("--out", type=Path, default=Path("runs/evaluation"), help="where the report goes")
    add("--seed", type=int, default=0)
    add_reading_arguments(parser)


def evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Answer, judge, control, compare and write the report. Raises DpoKitError.

    Returns the report as data, with `html`, the path of its page."""
    from dpo_kit.evaluation.arms import Base, answer_all, parse_arm
    from dpo_kit.evaluation.harness import evaluate_answers
    from dpo_kit.models.generation import Answer
    from dpo_kit.models.store import Store
    from dpo_kit.preferences.importers import read_answers, read_prompts
    from dpo_kit.triage import rubric
    from dpo_kit.views.report import write_report

    given = {"path": arguments.model, "chat_template": arguments.chat_template}
    profile = load_profile(arguments.profile, model={key: value for key, value in given.items() if value is not None})
    how = reading(arguments)
    prompts = read_prompts(arguments.prompts, **how)
    base = Base(profile)
    arms = [parse_arm(text, base, lambda path: read_answers(path, prompts, **how)) for text in arguments.arms]
    names = [arm.name for arm in arms]
    primary = _primary(arguments.primary, names)
    judge, rate, settings = _judge(arguments, profile, prompts)
    trained_on = read_pairs(arguments.pairs) if arguments.pairs else ()
    samplings = _samplings(profile, arguments.seed, arguments.samples)
    store = Store(arguments.out / "answers.sqlite", Answer)
    answers = answer_all(arms, prompts, samplings, store, again=primary[1], again_prompts=arguments.controls)
    score = rubric.score if rubric.applies_to(prompts) else None
    report = evaluate_answers(
        prompts, answers.responses, score, judge, temperature=samplings[0].temperature, resample=answers.resample,
        arms=names, primary=primary, rate=rate, trained_on=trained_on, reasons=answers.reasons(),
        controlled=arguments.controls, seed=arguments.seed, workers=settings.concurrency,
    )  # fmt: skip
    write_report(arguments.out, report, [], prompts, answers.responses)
    return {"html": str(arguments.out / "report.html"), **report.to_data()}


def show(result: dict, arguments: argparse.Namespace) -> None:
    """Print the report's table and where the page is."""
    from dpo_kit.cli.run import show as show_report

    show_report(result, arguments)


def _primary(chosen: Sequence[str] | None, names: list[str]) -> tuple[str, str]:
    if len(names) < 2:
        raise DpoKitError(f"{len(names)} arm: a comparison needs two; add another to --arms")
    if absent := [name for name in chosen or () if name not in names]:
        raise DpoKitError(f"--primary: arm {absent[0]!r} is not there; the arms are {', '.join(names)}")
    if chosen:
        return chosen[0], chosen[1]
    # the arms of the workbook, or else the last against the one before it
    return ("dpo", "sft") if {"dpo", "sft"} <= set(names) else (names[-1], names[-2])


def _samplings(profile: Profile, seed: int, samples: int) -> "list[Sampling]":
    from dpo_kit.models.generation import Sampling

    if samples < 1:
        raise DpoKitError(f"--samples {samples}: one answer a prompt is the least")
    settings = profile.evaluation
    limits = {"max_new_tokens": settings.max_new_tokens, "batch_size": settings.batch_size}
    # other seeds give other samples of the same prompt
    return [Sampling(settings.temperature, seed + i, **limits) for i in range(samples)]


def _judge(arguments: argparse.Namespace, profile: Profile, prompts: Sequence[Prompt]) -> tuple:
    """The judge, asked in both orders; the function that rates single answers; and the settings of both."""
    from dpo_kit.preferences.judges import both_orders
    from dpo_kit.preferences.judges.llm import JudgeClient, llm_judge, llm_score
    from dpo_kit.triage import rubric
    from dpo_kit.triage.judges import judge_in_world, rubric_judge

    kind = arguments.judge or profile.judge.kind
    if kind == "none":
        return None, None, profile.judge
    if kind in ("rubric", "simulated") and not rubric.applies_to(prompts):
        raise DpoKitError(f"--judge {kind} needs the facts of incidents; choose openai, anthropic, reward or none")
    asked = {"model": arguments.judge_model, "base_url": arguments.judge_url, "max_dollars": arguments.max_dollars}
    # whatever the profile says: an order can decide a verdict
    given = {"kind": kind, "both_orders": True, **{key: value for key, value in asked.items() if value is not None}}
    settings = JudgeSettings(**{**profile.judge.model_dump(), **given})
    cache = arguments.out / "judge.sqlite"
    if kind in ("openai", "anthropic"):
        client = JudgeClient(settings, cache)  # one for both, because a client has a budget of its own
        return both_orders(llm_judge(client)), llm_score(client) if arguments.rate else None, settings
    if arguments.rate:
        raise DpoKitError(f"--rate needs a language model; --judge {kind} gives no scores from 1 to 5")
    return judge_in_world(settings, rubric_judge(), cache, arguments.seed), None, settings
