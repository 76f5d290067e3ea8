"""`python -m dpo_kit pairs`: makes preference pairs for your own prompts, from a model's own answers and a judge.

Each prompt is answered several times by one arm, the answers are ranked by a judge or by a score of yours, and pairs
are made of the ranking and audited. Answers and verdicts are stored as they come, so the same command goes on where it
stopped.
"""

import argparse
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_kit.errors import DpoKitError
from dpo_kit.profiles import JudgeSettings, Profile, load_profile, parse_overrides
from dpo_kit.records import Message, PreferencePair, Prompt, Response

if TYPE_CHECKING:
    from dpo_kit.preferences.ranking import Ranking

JUDGES = ("openai", "anthropic", "reward", "score")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    add("--prompts", type=Path, required=True, help="A file of rows with `messages` or `prompt`, or of pairs.")
    add("--out", type=Path, required=True, help="The file that the pairs are written to; it must not exist yet.")
    add("--arm", default="base", metavar="SPEC", help="Who answers: `base`, the folder of an adapter, a model (folder "
        "or Hub id), or http://host/v1#model (default: base).")  # fmt: skip
    add("--model", help="The base: a local folder or a Hub id (default: the profile's).")
    add("--profile", help="A profile's name or a .toml file (default: DPO_KIT_PROFILE, else tiny).")
    add("--set", nargs="+", action="extend", default=[], metavar="TABLE.KEY=VALUE", help="Any setting of the profile.")
    add("--n", type=int, default=4, help="How many answers are drawn for each prompt (default: 4).")
    add("--temperature", nargs="+", type=float, default=[1.0], help="The temperatures of the draws, in turn "
        "(default: 1).")  # fmt: skip
    add("--system", nargs="+", default=[], metavar="TEXT", help="System prompts of the draws, in turn. They make "
        "answers differ, and do not become part of the pairs.")  # fmt: skip
    add("--few-shot", type=Path, metavar="FILE", help="Pairs whose prompts and chosen answers stand before each prompt "
        "while it is answered. They do not become part of the pairs.")  # fmt: skip
    add("--judge", choices=JUDGES, help="Who ranks the answers (default: the profile's judge).")
    add("--judge-model", help="The model that judges.")
    add("--judge-url", help="An OpenAI-compatible server that judges. Its key is read from DPO_KIT_JUDGE_KEY.")
    add("--max-dollars", type=float, help="The judge is asked nothing that could make it cost more than this in all.")
    add("--criteria", metavar="FILE", help="What a good answer is: a file of text, or the name of a shipped one.")
    add("--score", metavar="FILE.py:FUNCTION", help="Your own score of an answer, for --judge score. The file is "
        "executed.")  # fmt: skip
    add("--keep", choices=("ends", "all"), default="ends", help="Which two answers of a prompt make a pair: the best "
        "and the worst, or every two that differ (default: ends).")  # fmt: skip
    add("--min-gap", type=float, default=0.0, help="The least difference of a pair's points: of the scores, or of the "
        "shares of comparisons that were won.")  # fmt: skip
    add("--seed", type=int, default=0, help="The seed of all draws.")


def pairs(arguments: argparse.Namespace) -> dict[str, Any]:
    """Draw answers, rank them, make pairs, audit them, write those that are kept. Raises DpoKitError.

    Returns the audit's data with `prompts`, `answers`, `pairs` (how many were written), `ended`, which says how the
    answers ended, `out`, and `blocking`.
    """
    from dpo_kit.evaluation.arms import Base, parse_arm
    from dpo_kit.jsonl import write_pairs
    from dpo_kit.models.generation import Answer, Missing, count_stops
    from dpo_kit.models.store import Store
    from dpo_kit.preferences.audit import audit_pairs
    from dpo_kit.preferences.importers import read_prompts

    if arguments.n < 2:
        raise DpoKitError(f"--n {arguments.n}: a pair needs two answers")
    if bad := [t for t in arguments.temperature if not (0 < t < math.inf)]:
        raise DpoKitError(f"--temperature {bad[0]:g}: draws at one prompt differ only above 0")
    if arguments.out.exists():
        raise DpoKitError(f"{arguments.out}: is there already, and nothing is overwritten; choose another --out")
    profile = _profile(arguments)
    prompts = read_prompts(arguments.prompts)
    ranking = _ranker(arguments, profile)
    before = _few_shot(arguments.few_shot)
    arm = parse_arm(f"draws={arguments.arm}", Base(profile))
    store = Store(arguments.out.with_suffix(".answers.sqlite"), Answer)
    answers: list[Response | Missing] = []
    for number in range(arguments.n):
        asked = [_as_asked(prompt, before, arguments.system, number) for prompt in prompts]
        answers += arm.answer(asked, _sampling(arguments, profile, number), store)
    arm.release()  # after the last draw, so that a model of its own is loaded once
    responses = [answer for answer in answers if isinstance(answer, Response)]
    if not responses:
        reasons = dict.fromkeys(answer.reason for answer in answers if isinstance(answer, Missing))
        raise DpoKitError(f"--arm {arguments.arm}: gave no answer: {'; '.join(reasons)}")
    drawn: dict[str, list[Response]] = defaultdict(list)
    for response in responses:
        drawn[response.prompt_id].append(response)
    ranked = [ranking(prompt, drawn[prompt.id]) for prompt in prompts]
    found = _paired(ranked, arguments.keep, arguments.min_gap)
    if not found:
        raise DpoKitError(
            f"{len(responses)} answers to {len(prompts)} prompts gave no pair: no two answers differ by --min-gap "
            f"{arguments.min_gap:g} or at all; draw more (--n), at a higher --temperature, or with --system prompts"
        )
    report = audit_pairs(found)
    if report.kept:
        write_pairs(arguments.out, report.kept)
    told = {
        "prompts": len(prompts),
        "answers": len(responses),
        "pairs": len(report.kept),
        "ended": str(count_stops(responses)),
    }
    return {**report.to_json(), **told, "out": str(arguments.out), "blocking": bool(report.blocking) or not report.kept}


def show(result: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Print the audit's table, how many pairs there are, and the next command."""
    from rich.console import Console

    from dpo_kit.views.tables import audit_table

    Console().print(audit_table(result))
    print(f"answers: {result['ended']}")
    if not result["pairs"]:
        print("no pair is left after the audit, so none was written; the findings say what to change")
        return
    print(f"{result['pairs']} pairs of {result['prompts']} prompts: {result['out']}")
    print(f"next: python -m dpo_kit train --pairs {result['out']}")


def _profile(arguments: argparse.Namespace) -> Profile:
    overrides = parse_overrides(arguments.set)
    if arguments.model:
        overrides.setdefault("model", {}).setdefault("path", arguments.model)
    return load_profile(arguments.profile, **overrides)


def _sampling(arguments: argparse.Namespace, profile: Profile, number: int) -> Any:
    """How draw `number` is made. Its seed is used by no other draw, nor by a draw of another --seed."""
    from dpo_kit.models.generation import Sampling

    temperature = arguments.temperature[number % len(arguments.temperature)]
    limits = profile.pairs.max_new_tokens, profile.pairs.batch_size
    return Sampling(temperature, arguments.n * arguments.seed + number, *limits)


def _few_shot(path: Path | None) -> tuple[Message, ...]:
    from dpo_kit.preferences.importers import import_pairs

    shown = import_pairs(path).pairs if path else []
    return tuple(message for pair in shown for message in (*pair.prompt.messages, *pair.chosen.messages))


def _as_asked(prompt: Prompt, before: tuple[Message, ...], systems: Sequence[str], number: int) -> Prompt:
    """The prompt as the arm gets it in draw `number`: its own id, after a system prompt and examples."""
    own = prompt.messages
    if systems:
        own = tuple(message for message in own if message.role != "system")
        before = (Message(role="system", content=systems[number % len(systems)]), *before)
    elif before and own[0].role == "system":
        before, own = (own[0], *before), own[1:]
    return prompt.model_copy(update={"messages": (*before, *own)})


def _ranker(arguments: argparse.Namespace, profile: Profile) -> Any:
    """A function from a prompt and its answers to their ranking."""
    from dpo_kit.evaluation.own_score import load_score, mean_score
    from dpo_kit.preferences.judges.criteria import read_criteria
    from dpo_kit.preferences.judges.llm import make_judge
    from dpo_kit.preferences.ranking import rank_by_judge, rank_by_score

    kind = arguments.judge or ("score" if arguments.score else profile.judge.kind)
    if (kind == "score") != (arguments.score is not None):
        raise DpoKitError("--judge score and --score FILE.py:FUNCTION belong together; give both, or neither")
    if kind == "score":
        score = mean_score(load_score(arguments.score))
        return lambda prompt, answers: rank_by_score(prompt, answers, score, f"score {arguments.score}")
    if kind not in JUDGES:
        raise DpoKitError(f"the judge of profile {profile.name} ({kind}) knows only the workbook's incidents; choose "
                          f"--judge {', '.join(JUDGES)}")  # fmt: skip
    given = {"kind": kind, "model": arguments.judge_model, "base_url": arguments.judge_url,
             "max_dollars": arguments.max_dollars,
             "criteria": read_criteria(arguments.criteria) if arguments.criteria else None}  # fmt: skip
    settings = JudgeSettings(
        **{**profile.judge.model_dump(), **{name: value for name, value in given.items() if value is not None}}
    )
    judge = make_judge(settings, arguments.out.with_suffix(".judge.sqlite"))
    return lambda prompt, answers: rank_by_judge(prompt, answers, judge, settings.concurrency)


def _paired(rankings: "Sequence[Ranking]", keep: str, min_gap: float) -> list[PreferencePair]:
    from dpo_kit.preferences.ranking import best_against_worst, margin_filtered

    if keep == "all":
        return margin_filtered(rankings, min_gap)
    return best_against_worst(rankings, min_gap)
