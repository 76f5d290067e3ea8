"""`python -m dpo_kit evaluate`: compares your own models on your own prompts, with a judge or without one.

It is the same comparison as at the end of `run`, for any arms, any prompts and any judge. Answers are stored as they
come, so the same command goes on where it stopped. What an endpoint did not answer is in the report as missing.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dpo_kit.cli.reading import add_reading_arguments, reading
from dpo_kit.errors import DpoKitError
from dpo_kit.jsonl import read_pairs
from dpo_kit.preferences.judges.criteria import criteria_names, read_criteria
from dpo_kit.profiles import JudgeSettings, Profile, parse_overrides
from dpo_kit.records import PreferencePair, Prompt, Response

if TYPE_CHECKING:
    from dpo_kit.evaluation.arms import Answerer, Answers, ModelArm
    from dpo_kit.evaluation.results import Report
    from dpo_kit.evaluation.scoring import Rate, Score
    from dpo_kit.models.generation import Sampling
    from dpo_kit.preferences.judges import Judge

OWN_WORLD, LANGUAGE_MODELS = ("rubric", "simulated"), ("openai", "anthropic")
JUDGES = (*OWN_WORLD, "reward", *LANGUAGE_MODELS, "score", "person", "none")
NOT_ASKED_TWICE = (*LANGUAGE_MODELS, "person")  # they cost money or time, so they judge the sampled answers only


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    add("--arms", nargs="+", required=True, metavar="NAME=SPEC", help="Two arms or more. SPEC is `base`, the folder of "
        "an adapter, a model (folder or Hub id), answers.jsonl, or http://host/v1#model, whose key is read from "
        "DPO_KIT_ENDPOINT_KEY. Adapters say in their own records how their base is loaded.")  # fmt: skip
    add("--prompts", type=Path, help="A file of rows with `messages`, `prompt` or MT-Bench's `turns`, or of pairs. "
        "Without it the prompts of --heldout-pairs are used.")  # fmt: skip
    add("--model", help="The base of `base` and of the adapters: a local folder or a Hub id. The default is the base "
        "of the profile, or of the adapters' records.")  # fmt: skip
    add("--chat-template", metavar="FILE|chatml|none", help="A chat template in place of the tokenizer's own. An "
        "adapter that was trained with another one carries it.")  # fmt: skip
    add("--profile", help="The profile whose settings are used. The default is DPO_KIT_PROFILE, else the profile that "
        "an adapter's record names, else tiny.")  # fmt: skip
    add("--set", nargs="+", action="extend", default=[], metavar="TABLE.KEY=VALUE",
        help="Any setting of the profile, such as model.quantize=none.")  # fmt: skip
    add("--temperature", type=float, help="How answers are sampled (default: as the profile says). Greedy answers are "
        "compared beside sampled ones; with 0 there are only greedy ones.")  # fmt: skip
    add("--max-new-tokens", type=int, help="The greatest length of an answer, in tokens (default: the profile's).")
    add("--samples", type=int, default=1, help="How many answers are drawn for each prompt. With 2 or more, and with "
        "scores, the best of K are compared too.")  # fmt: skip
    add("--judge", choices=JUDGES, help="Who compares two answers. `score` prefers the higher --score, and `person` "
        "asks you, here in the terminal. The default is the profile's judge.")  # fmt: skip
    add("--judge-model", help="The model that judges.")
    add("--judge-url", help="An OpenAI-compatible server that judges. Its key is read from DPO_KIT_JUDGE_KEY.")
    add("--max-dollars", type=float, help="The judge is asked nothing that could make it cost more than this in all.")
    add("--criteria", metavar="FILE", help="What a good answer is, for a language model or a person who judges: a file "
        f"of text, or one of {', '.join(criteria_names())}.")  # fmt: skip
    add("--rate", action="store_true", help="Let the language model that judges score each answer from 1 to 5 too.")
    add("--annotator", default="me", help="The name of the person who judges; labels are kept under it.")
    add("--score", metavar="FILE.py:FUNCTION", help="Your own score: a function of a prompt and an answer that gives a "
        "number from 0 to 1, or a dict of several. The file is executed.")  # fmt: skip
    add("--heldout-pairs", type=Path, metavar="FILE", help="Preference pairs that nobody trained on. Implicit rewards "
        "of each arm with weights are measured on them.")  # fmt: skip
    add("--regression", action="store_true", help="Also measure what was forgotten: the log-loss of a neutral text, "
        "and small tasks that a program can check.")  # fmt: skip
    add("--primary", nargs=2, metavar=("TREATED", "CONTROL"), help="The comparison that was fixed in advance. The "
        "default is dpo against sft, else the last arm against the one before it.")  # fmt: skip
    add("--controls", type=int, default=100, help="On how many prompts the judge's controls run; 0 runs none.")
    add("--pairs", type=Path, help="The training pairs. It is said where their judge judges here too.")
    add("--out", type=Path, default=Path("runs/evaluation"), help="The folder that the report is written to.")
    add("--seed", type=int, default=0, help="The seed of all draws.")
    add_reading_arguments(parser)


def evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Answer, judge, control, compare and write the report. Raises DpoKitError.

    Returns the report's data, the path of its page as `html`, and `blocking`, whether a control refuses its verdicts.
    """
    from dpo_kit.evaluation.adapters import profile_of_adapters
    from dpo_kit.evaluation.arms import Base, FileArm, answer_all, parse_arm
    from dpo_kit.evaluation.harness import evaluate_answers
    from dpo_kit.evaluation.own_score import load_score
    from dpo_kit.models.generation import Answer
    from dpo_kit.models.store import Store
    from dpo_kit.preferences.importers import import_pairs, read_answers
    from dpo_kit.triage import rubric
    from dpo_kit.views.report import write_report

    profile = profile_of_adapters(_adapters(arguments.arms), arguments.profile, _typed(arguments))
    held_out = import_pairs(arguments.heldout_pairs, **reading(arguments)).pairs if arguments.heldout_pairs else ()
    prompts = _prompts(arguments, held_out)
    base = Base(profile)
    parsed = [parse_arm(text, base, lambda path: read_answers(path, prompts, **reading(arguments)))
              for text in arguments.arms]  # fmt: skip
    arms = {arm.name: arm for arm in parsed}
    primary = _primary(arguments.primary, [text.partition("=")[0] for text in arguments.arms])
    measured = _with_weights(arms, primary, held_out)
    if arguments.controls < 0:
        raise DpoKitError(
            f"--controls {arguments.controls}: give the number of prompts that they run on, or 0 for none"
        )
    if arguments.regression and (ready := [arm for arm in primary if isinstance(arms[arm], FileArm)]):
        raise DpoKitError(
            f"--regression asks new questions, and arm {ready[0]} is a file of ready answers; leave it out"
        )
    trained_on = read_pairs(arguments.pairs) if arguments.pairs else ()
    greedy_too = any(not isinstance(arm, FileArm) for arm in arms.values())
    samplings = _samplings(profile, arguments.temperature, arguments.seed, arguments.samples, greedy_too)
    own = load_score(arguments.score) if arguments.score else None
    score = own or (rubric.score if rubric.applies_to(prompts) else None)
    settings, told = _judge_settings(arguments, profile, prompts)
    judge, rate = _judge(arguments, settings, own)

    store = Store(arguments.out / "answers.sqlite", Answer)
    answers = answer_all(list(arms.values()), prompts, samplings, store, again=primary[1] if judge else None,
                         again_prompts=arguments.controls)  # fmt: skip
    if arguments.judge == "person":
        judge = _person(arguments, prompts, answers, primary, samplings[0], settings.criteria if settings else "")
    temperature, twice = samplings[0].temperature, _kind(arguments, settings) not in NOT_ASKED_TWICE
    responses = answers.responses
    report = evaluate_answers(
        prompts, responses if twice else [r for r in responses if r.temperature == temperature], score, judge,
        temperature=temperature, resample=answers.resample, arms=list(arms), primary=primary, rate=rate,
        trained_on=trained_on, reasons=answers.reasons(),
        controlled=0 if arguments.judge == "person" else arguments.controls, seed=arguments.seed,
        workers=settings.concurrency if settings else 1, profile=profile.name,
    )  # fmt: skip
    if arguments.judge == "person":
        report = replace(report, controls=())
        told.append("a person judged, so the controls of automatic judges were not run; sides were drawn by a coin")
    elif judge and not arguments.controls:
        told.append("the judge's controls were not run (--controls 0), so nothing shows that it can be believed")
    if arguments.samples > 1 and not report.win_rate_at_k:
        told.append("the best of several samples cannot be told without scores: give --score or --rate")
    report = _with_heuristics(report, prompts, responses, score, told + _leaked(held_out, trained_on))
    report = _with_weights_measured(report, arguments, arms, measured, held_out, profile, store)
    write_report(arguments.out, report, [], prompts, responses)
    html = str(arguments.out / "report.html")
    return {"html": html, "blocking": report.refusal is not None, **report.to_data()}


def show(result: dict, arguments: argparse.Namespace) -> None:
    """Print the report's table and where the page is."""
    from dpo_kit.cli.run import show as show_report

    show_report(result, arguments)


# ---- what is compared -------------------------------------------------------------------------------------------


def _typed(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What the command line sets in the profile, by table."""
    typed = parse_overrides(arguments.set)
    named = (
        ("model", "path", arguments.model),
        ("model", "chat_template", arguments.chat_template),
        ("evaluation", "max_new_tokens", arguments.max_new_tokens),
    )
    for table, key, value in named:
        if value is not None:
            typed.setdefault(table, {})[key] = value
    return typed


def _adapters(specs: Sequence[str]) -> list[Path]:
    folders = (Path(text.partition("=")[2]).expanduser() for text in specs)
    return [folder for folder in folders if (folder / "adapter_config.json").is_file()]


def _prompts(arguments: argparse.Namespace, held_out: Sequence[PreferencePair]) -> list[Prompt]:
    from dpo_kit.preferences.importers import read_prompts

    if arguments.prompts:
        return read_prompts(arguments.prompts, **reading(arguments))
    if not held_out:
        raise DpoKitError("there are no prompts: give --prompts FILE, or --heldout-pairs FILE, whose prompts are used")
    return list({pair.prompt.id: pair.prompt for pair in held_out}.values())


def _primary(chosen: Sequence[str] | None, names: list[str]) -> tuple[str, str]:
    if len(set(names)) < len(names):
        raise DpoKitError(f"arms {', '.join(names)}: two have the same name; give each its own")
    if len(names) < 2:
        raise DpoKitError(f"{len(names)} arm: a comparison needs two; add another to --arms")
    if absent := [name for name in chosen or () if name not in names]:
        raise DpoKitError(f"--primary: arm {absent[0]!r} is not there; the arms are {', '.join(names)}")
    if chosen and chosen[0] == chosen[1]:
        raise DpoKitError(f"--primary: {chosen[0]} is compared with itself; name two arms")
    if chosen:
        return chosen[0], chosen[1]
    # the arms of the workbook, or else the last against the one before it
    return ("dpo", "sft") if {"dpo", "sft"} <= set(names) else (names[-1], names[-2])


def _samplings(
    profile: Profile, temperature: float | None, seed: int, samples: int, greedy_too: bool
) -> "list[Sampling]":
    """How answers are drawn: the samples, and greedy ones beside them."""
    from dpo_kit.models.generation import Sampling

    settings = profile.evaluation
    temperature = settings.temperature if temperature is None else temperature
    if samples < 1:
        raise DpoKitError(f"--samples {samples}: one answer a prompt is the least")
    if not 0 <= temperature < float("inf"):
        raise DpoKitError(f"--temperature {temperature:g}: 0 is greedy decoding, and 1 samples as the model says")
    if samples > 1 and not temperature:
        raise DpoKitError(f"--samples {samples}: at temperature 0 all of them would be the same answer")
    limits = {"max_new_tokens": settings.max_new_tokens, "batch_size": settings.batch_size}
    # other seeds give other samples of the same prompt
    drawn = [Sampling(temperature, seed + i, **limits) for i in range(samples)]
    return [*drawn, Sampling(0.0, seed, **limits)] if temperature and greedy_too else drawn


# ---- who judges -------------------------------------------------------------------------------------------------


def _kind(arguments: argparse.Namespace, settings: JudgeSettings | None) -> str:
    own = arguments.judge in ("score", "person", "none")
    return arguments.judge if own else settings.kind if settings else "none"


def _judge_settings(
    arguments: argparse.Namespace, profile: Profile, prompts: Sequence[Prompt]
) -> tuple[JudgeSettings | None, list[str]]:
    """The settings of the judge, None where no judge of the profile is asked, and what the reader must be told."""
    from dpo_kit.triage import rubric

    kind = arguments.judge or profile.judge.kind
    criteria = {"criteria": read_criteria(arguments.criteria)} if arguments.criteria else {}
    if arguments.score is None and kind == "score":
        raise DpoKitError("--judge score prefers the answer of higher score; give --score FILE.py:FUNCTION too")
    if criteria and kind not in NOT_ASKED_TWICE:
        raise DpoKitError(f"--criteria is read by a language model or a person; --judge {kind} has no use for it")
    if arguments.rate and kind not in LANGUAGE_MODELS:
        raise DpoKitError(f"--rate needs a language model; --judge {kind} gives no scores from 1 to 5")
    if kind in OWN_WORLD and not rubric.applies_to(prompts):
        if arguments.judge:
            raise DpoKitError(f"--judge {kind} needs the facts of incidents; choose another, or none")
        return None, [f"no judge was asked: that of profile {profile.name} ({kind}) knows only the workbook's "
                      "incidents; choose one with --judge"]  # fmt: skip
    if kind in ("score", "none"):
        return None, []
    asked = {"model": arguments.judge_model, "base_url": arguments.judge_url, "max_dollars": arguments.max_dollars}
    # both orders, whatever the profile says: an order can decide a verdict
    given = {"both_orders": True, **{key: value for key, value in asked.items() if value is not None}, **criteria}
    named = {} if kind == "person" else {"kind": kind}
    return JudgeSettings(**{**profile.judge.model_dump(), **given, **named}), []


def _judge(
    arguments: argparse.Namespace, settings: JudgeSettings | None, own: "Score | None"
) -> "tuple[Judge | None, Rate | None]":
    """The judge, asked in both orders, and the function that rates single answers; None where nobody does."""
    from dpo_kit.evaluation.own_score import score_judge
    from dpo_kit.preferences.judges import both_orders
    from dpo_kit.preferences.judges.llm import JudgeClient, llm_judge, llm_score
    from dpo_kit.triage.judges import judge_in_world, rubric_judge

    if arguments.judge == "score" and own:
        return score_judge(own), None
    if arguments.judge == "person" or settings is None:
        return None, None  # a person is asked when the answers are there
    cache = arguments.out / "judge.sqlite"
    if settings.kind in LANGUAGE_MODELS:
        client = JudgeClient(settings, cache)  # one for both, because a client has a budget of its own
        return both_orders(llm_judge(client)), llm_score(client) if arguments.rate else None
    return judge_in_world(settings, rubric_judge(), cache, arguments.seed), None


def _person(
    arguments: argparse.Namespace, prompts: Sequence[Prompt], answers: "Answers", primary: tuple[str, str],
    sampling: "Sampling", criteria: str,
) -> "Judge":  # fmt: skip
    """Ask the person about the first samples of the two primary arms, where both answered."""
    from dpo_kit.preferences.person import ask_person

    first: dict[str, dict[str, Response]] = {arm: {} for arm in primary}
    for response in sorted(answers.responses, key=lambda r: r.seed or 0):
        if response.arm in first and response.temperature == sampling.temperature:
            first[response.arm].setdefault(response.prompt_id, response)
    treated, control = (first[arm] for arm in primary)
    rows = [(p, treated[p.id], control[p.id]) for p in prompts if p.id in treated and p.id in control]
    asked = {"criteria": criteria, "seed": arguments.seed, "read": input, "write": partial(print, flush=True)}
    return ask_person(rows, arguments.annotator, arguments.out / "labels.db", **asked)


# ---- what needs no judge ----------------------------------------------------------------------------------------


def _with_heuristics(
    report: "Report", prompts: Sequence[Prompt], responses: Sequence[Response], score: "Score | None", told: list[str]
) -> "Report":
    """The report with heuristics of its answers, of the greedy ones too, and with their warnings before all others."""
    from dpo_kit.evaluation.comparison import compare
    from dpo_kit.evaluation.heuristics import compare_heuristics

    greedy = [r for r in responses if r.temperature == 0]
    drawn = [r for r in responses if r.temperature != 0] or greedy
    found, warnings = compare_heuristics(prompts, drawn, report.arms, report.primary)
    beside = report.greedy
    if greedy and drawn is not greedy:
        beside = beside or compare(prompts, greedy, score, None, arms=report.arms, primary=report.primary)
        further, more = compare_heuristics(prompts, greedy, report.arms, report.primary)
        beside = replace(beside, heuristics=further)
        warnings += [f"greedy answers: {line}" for line in more]
    return replace(report, heuristics=found, greedy=beside, warnings=(*warnings, *report.warnings, *told))


def _with_weights(
    arms: "dict[str, Answerer]", primary: tuple[str, str], held_out: Sequence[PreferencePair]
) -> "list[ModelArm]":
    """The arms whose implicit rewards are measured, against the primary control. Raises DpoKitError for none."""
    from dpo_kit.evaluation.arms import ModelArm

    if not held_out:
        return []
    if not isinstance(arms[primary[1]], ModelArm):
        raise DpoKitError(f"--heldout-pairs: arm {primary[1]} is the reference and has no weights here, so there are "
                          "no log-probs; give a model or `base` as the control of --primary")  # fmt: skip
    trained = [arm for arm in arms.values() if isinstance(arm, ModelArm) and (arm.folder or not arm.base.shared)]
    measured = [arm for arm in trained if arm.name != primary[1]]
    if not measured:
        raise DpoKitError(
            f"--heldout-pairs: no other arm than {primary[1]} was trained here; give an adapter or a model"
        )
    return measured


def _with_weights_measured(
    report: "Report", arguments: argparse.Namespace, arms: "dict[str, Answerer]", measured: "list[ModelArm]",
    held_out: Sequence[PreferencePair], profile: Profile, store: Any,
) -> "Report":  # fmt: skip
    """The report with implicit rewards on held-out pairs and the regression suite, where they were asked for."""
    from dpo_kit.evaluation.adapters import beta_of
    from dpo_kit.evaluation.heldout import held_out_rewards
    from dpo_kit.evaluation.regression import regression_suite
    from dpo_kit.training.release import answer_logps

    treated, control = (arms[name] for name in report.primary)
    typed, beta = "beta" in _typed(arguments).get("dpo", {}), profile.dpo.beta
    rewards = [
        held_out_rewards(
            arm, cast("ModelArm", control), held_out, beta if typed else beta_of(arm.folder, beta), answer_logps
        )
        for arm in measured
    ]
    limit = profile.evaluation.batch_size
    suite = regression_suite(control, treated, store, batch_size=limit) if arguments.regression else None
    return replace(report, held_out=tuple(rewards), regression=suite)


def _leaked(held_out: Sequence[PreferencePair], trained_on: Sequence[PreferencePair]) -> list[str]:
    """A warning where pairs that are called held out have prompts that were trained on."""
    known = {pair.prompt.messages for pair in trained_on}
    seen = sum(pair.prompt.messages in known for pair in held_out)
    return [f"{seen} of {len(held_out)} held-out pairs have a prompt that is among the training pairs: the rewards on "
            "these were learned by heart"] if seen else []  # fmt: skip
