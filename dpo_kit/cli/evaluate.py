"""`python -m dpo_kit evaluate`: a reader's own models on a reader's own prompts.

The same comparison as at the end of the path, from other beginnings: any arms, any prompts, any judge. Answers are kept
as they come, so the same command goes on where it stopped; what an endpoint did not answer is in the report as missing.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dpo_kit.errors import DpoKitError
from dpo_kit.jsonl import read_pairs
from dpo_kit.profiles import JudgeSettings, Profile, load_profile
from dpo_kit.records import Prompt

JUDGES = ("rubric", "simulated", "reward", "openai", "anthropic", "none")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--arms", nargs="+", required=True, metavar="NAME=SPEC",
                        help="`base`, an adapter, a model, http://host/v1#model (its key: DPO_KIT_ENDPOINT_KEY), "
                             "or answers.jsonl")  # fmt: skip
    parser.add_argument("--prompts", type=Path, required=True, help="rows with `messages` or `prompt`, or pairs")
    parser.add_argument("--judge", choices=JUDGES, help="who compares (default: the profile's)")
    parser.add_argument("--judge-model", help="which model judges")
    parser.add_argument("--judge-url", help="an OpenAI-compatible server; its key: DPO_KIT_JUDGE_KEY")
    parser.add_argument("--max-dollars", type=float, help="nothing is asked that could cost more in all")
    parser.add_argument("--rate", action="store_true", help="have each answer scored from 1 to 5 too (language models)")
    parser.add_argument("--primary", nargs=2, metavar=("TREATED", "CONTROL"), help="default: dpo sft, or the last two")
    parser.add_argument("--samples", type=int, default=1, help="answers a prompt; from 2 on with best of K")
    parser.add_argument("--controls", type=int, default=100, help="on how many prompts the controls run")
    parser.add_argument("--pairs", type=Path, help="the training pairs: warns where their judge judges here too")
    parser.add_argument("--profile", help="which profile (default: DPO_KIT_PROFILE, else tiny)")
    parser.add_argument("--out", type=Path, default=Path("runs/evaluation"), help="where the report goes")
    parser.add_argument("--seed", type=int, default=0)


def evaluate(arguments: argparse.Namespace) -> dict:
    """Answer, judge, control, compare, report; returns the report's data. Raises DpoKitError."""
    from dpo_kit.evaluation.arms import SharedBase, answer_all, parse_arm
    from dpo_kit.evaluation.comparison import compare
    from dpo_kit.models.answers import AnswerStore
    from dpo_kit.preferences.importers import read_prompts
    from dpo_kit.views.report import summarize, write_report

    profile = load_profile(arguments.profile)
    prompts = read_prompts(arguments.prompts)
    base = SharedBase(profile)
    arms = [parse_arm(text, base) for text in arguments.arms]
    primary = _primary(arguments.primary, [arm.name for arm in arms])
    judge, rate, settings = _judge(arguments, profile, prompts)
    trained_on = read_pairs(arguments.pairs) if arguments.pairs else ()
    samplings = _samplings(profile, arguments.seed, arguments.samples)
    store = AnswerStore(arguments.out / "answers.jsonl")
    answers = answer_all(arms, prompts, samplings, store)
    wanted = prompts[: arguments.controls]
    again = _resample(arms, primary[1], wanted, samplings, answers.responses, store)
    compared = compare(
        prompts, answers.responses, _score(prompts), judge, arms=[arm.name for arm in arms], primary=primary, rate=rate,
        trained_on=trained_on, workers=settings.concurrency,
    )  # fmt: skip
    for arm, missing in answers.missing.items():
        reason = Counter(gap.reason for gap in missing).most_common(1)[0][0]
        compared["missing"].setdefault(arm, {"count": 0, "first": []})["reason"] = f"{len(missing)} times {reason}"
    controls = _controls(wanted, answers.responses, again, judge, primary, arguments.seed, settings.concurrency)
    if judge is not None and len(controls.controls) <= len(arms):
        compared["warnings"].append("the judge's controls were not run: they need two prompts that all arms answered")
    data = summarize(
        compared,
        seed=arguments.seed,
        sampling=f"sampled at temperature {samplings[0].temperature:g}",
        controls=controls.to_data(),
        refusal=controls.refusal,
    )
    write_report(arguments.out, data, [], prompts, answers.responses, compared["per_prompt"])
    return {"html": str(arguments.out / "report.html"), **data}


def show(result: dict, arguments: argparse.Namespace) -> None:
    """Print the report's table and where the page is."""
    from dpo_kit.views.tables import print_report

    print_report(result)
    print(f"\nreport: {result['html']}")


def _primary(chosen: Sequence[str] | None, names: list[str]) -> tuple[str, str]:
    if len(names) < 2:
        raise DpoKitError(f"{len(names)} arm: a comparison needs two; add another to --arms")
    if absent := [name for name in chosen or () if name not in names]:
        raise DpoKitError(f"--primary: arm {absent[0]!r} is not there; the arms are {', '.join(names)}")
    if chosen:
        return chosen[0], chosen[1]
    return ("dpo", "sft") if {"dpo", "sft"} <= set(names) else (names[-1], names[-2])


def _samplings(profile: Profile, seed: int, samples: int) -> list:
    from dpo_kit.models.generation import Sampling

    if samples < 1:
        raise DpoKitError(f"--samples {samples}: one answer a prompt is the least")
    settings = profile.evaluation
    limits = settings.temperature, settings.max_new_tokens, settings.batch_size
    temperature, *sizes = limits
    return [Sampling(temperature, seed + i, *sizes) for i in range(samples)]


def _in_the_world(prompts: Sequence[Prompt]) -> bool:
    """Whether the truth of every prompt is known: its facts are those of an incident."""
    from dpo_kit.triage.incidents import Incident

    try:
        return all(Incident.from_facts(prompt.facts) for prompt in prompts)
    except (KeyError, TypeError, ValueError):
        return False


def _score(prompts: Sequence[Prompt]):
    from dpo_kit.triage import rubric

    return rubric.score if _in_the_world(prompts) else None


def _judge(arguments: argparse.Namespace, profile: Profile, prompts: Sequence[Prompt]) -> tuple:
    """The judge in both orders, what rates single answers, and the settings of both."""
    from dpo_kit.pipeline import rubric_judge
    from dpo_kit.preferences.judges.llm import JudgeClient, llm_score, make_judge

    kind = arguments.judge or profile.judge.kind
    if kind == "none":
        return None, None, profile.judge
    if kind in ("rubric", "simulated") and not _in_the_world(prompts):
        raise DpoKitError(f"--judge {kind} needs the facts of incidents; choose openai, anthropic, reward or none")
    asked = {"model": arguments.judge_model, "base_url": arguments.judge_url, "max_dollars": arguments.max_dollars}
    given = {"kind": kind, "both_orders": True, **{key: value for key, value in asked.items() if value is not None}}
    settings = JudgeSettings(**{**profile.judge.model_dump(), **given})
    judge = make_judge(settings, rubric_judge(), arguments.out / "judge", arguments.seed)
    if arguments.rate and kind not in ("openai", "anthropic"):
        raise DpoKitError(f"--rate needs a language model; --judge {kind} gives no scores from 1 to 5")
    rate = llm_score(JudgeClient(settings, arguments.out / "judge")) if arguments.rate else None
    return judge, rate, settings


def _resample(arms, name: str, prompts, samplings, responses, store) -> list:
    """A second sample of the arm called `name`: one that was drawn anyway, or a new one; ready answers have none."""
    from dpo_kit.evaluation.arms import FileArm

    number, arm = next((i, arm) for i, arm in enumerate(arms) if arm.name == name)
    seeds = [len(arms) * sampling.seed + number for sampling in samplings]  # as `answer_all` gives them
    if len(seeds) > 1:
        return [r for r in responses if r.arm == name and r.seed == seeds[1]]
    if isinstance(arm, FileArm):
        return []
    drawn = arm.answer(prompts, replace(samplings[0], seed=seeds[0] + len(arms)), store)
    arm.release()
    return drawn


def _controls(prompts, responses, again, judge, primary, seed, workers):
    """The controls on the prompts that all arms answered, with the second sample where there is one."""
    from dpo_kit.evaluation.comparison import first_answers
    from dpo_kit.evaluation.controls import Controls, run_controls, varied
    from dpo_kit.records import Response

    wanted = {prompt.id for prompt in prompts}
    drawn = [r.model_copy(update={"arm": "resample"}) for r in again if isinstance(r, Response)]
    kept = [r for r in [*responses, *drawn] if r.prompt_id in wanted]
    asked, answers = first_answers(prompts, kept)
    resample = answers.pop("resample", None)
    if judge is None or len(asked) < 2 or not set(primary) <= answers.keys():
        return Controls(tuple(varied(arm, texts) for arm, texts in answers.items()))
    return run_controls(asked, answers, judge, resample=resample, primary=primary, seed=seed, workers=workers)
