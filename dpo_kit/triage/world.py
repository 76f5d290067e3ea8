"""The workbook's own world as stages of a run: prompts are invented, and the right answer to each is known.

SFT learns from noisy demonstrations, its arm is sampled for pairs, and DPO learns from these. In the end three arms
answer held-out prompts and are compared by the exact rubric.
"""

from pathlib import Path

from dpo_kit.errors import DpoKitError
from dpo_kit.evaluation.results import Report
from dpo_kit.jsonl import read_pairs, read_records, write_pairs, write_records
from dpo_kit.preferences.judges import both_orders
from dpo_kit.profiles import Profile
from dpo_kit.records import Prompt, Response
from dpo_kit.stages import Stage, config, dpo_stage, sft_stage
from dpo_kit.triage import rubric
from dpo_kit.triage.demonstrations import Noise, demonstrate
from dpo_kit.triage.judges import by_coin, judge_in_world, rubric_judge
from dpo_kit.triage.reports import draw_prompts
from dpo_kit.workspace import Workspace


def sft_on_demonstrations(work: Workspace, profile: Profile, seed: int) -> Path:
    """The own world's `sft`: prompts are drawn and answered by people in a hurry, wrong at the profile's rates."""

    def demonstrations() -> tuple[list[Prompt], list[Response]]:
        prompts = draw_prompts(profile.sft.demonstrations, "train", "demonstrations", seed)
        noise = Noise(**{name: getattr(profile.sft, name) for name in Noise.__dataclass_fields__})
        return prompts, demonstrate(prompts, noise, seed)

    return sft_stage(work, profile, seed, demonstrations, {})


def sampled_pairs(work: Workspace, profile: Profile, seed: int) -> Path:
    """The own world's `pairs`: the SFT arm answers each prompt twice, the judge compares, and ties are left out."""

    def build(folder: Path) -> None:
        from dpo_kit.models.generation import Answer, count_stops
        from dpo_kit.models.loading import load_arms
        from dpo_kit.models.store import Store
        from dpo_kit.preferences.sampling import make_pairs, sample_twice

        prompts = draw_prompts(profile.pairs.prompts, "train", "pairs", seed)
        judge = judge_in_world(profile.judge, rubric_judge(), work.root / "judge_cache.sqlite", seed)
        # the control experiment: with random labels training must not improve anything
        judge = by_coin(judge, seed) if profile.pairs.shuffle_labels else judge
        arms = load_arms(profile, {"sft": work.root / "sft" / "adapter"})
        store = Store(work.answers("pairs"), Answer)
        a, b = sample_twice(arms, "sft", prompts, profile.pairs, seed, store)
        work.log(f"pairs: {count_stops([*a, *b])}")
        made = make_pairs(prompts, a, b, judge, profile.judge.concurrency)
        if not made:
            raise DpoKitError(f"{len(prompts)} prompts gave no pair: the judge saw no difference anywhere; sample more")
        write_records(folder / "prompts.jsonl", prompts)
        write_records(folder / "responses.jsonl", [*a, *b])
        write_pairs(folder / "pairs.jsonl", made)
        # pairs of these prompts are for measurement and are never trained on
        others = draw_prompts(profile.pairs.heldout_prompts, "heldout", "pairs", seed)
        answers = sample_twice(arms, "sft", others, profile.pairs, seed, store)
        write_pairs(folder / "heldout.jsonl", make_pairs(others, *answers, judge, profile.judge.concurrency))

    return work.stage("pairs", build, config(profile, seed, "pairs", "judge"), work.outputs_of("sft"))


def dpo_on_sampled(work: Workspace, profile: Profile, seed: int) -> Path:
    """The own world's `dpo`: KL is measured on answers to prompts that are drawn for this purpose only."""
    return dpo_stage(work, profile, seed, lambda _: draw_prompts(profile.dpo.kl_prompts, "heldout", "kl", seed))


OWN_WORLD: dict[str, Stage] = {"sft": sft_on_demonstrations, "pairs": sampled_pairs, "dpo": dpo_on_sampled}


def evaluate(work: Workspace, profile: Profile, seed: int) -> Path:
    """Let the three arms answer held-out prompts, and the SFT arm answer twice, for the controls.

    Writes `prompts.jsonl`, `responses.jsonl` and `resample.jsonl`.
    """

    def build(folder: Path) -> None:
        from dpo_kit.evaluation.arms import Base, answer_all
        from dpo_kit.models.generation import Answer, Sampling
        from dpo_kit.models.store import Store

        settings, base = profile.evaluation, Base(profile)
        arms = [base.arm("base"), *(base.arm(name, work.root / name / "adapter") for name in ("sft", "dpo"))]
        limits = {"seed": seed, "max_new_tokens": settings.max_new_tokens, "batch_size": settings.batch_size}
        # greedy answers too, to be compared beside the sampled ones
        samplings = [Sampling(temperature, **limits) for temperature in dict.fromkeys((settings.temperature, 0.0))]
        prompts = draw_prompts(settings.prompts, "heldout", "evaluation", seed)
        answers = answer_all(arms, prompts, samplings, Store(work.answers("eval"), Answer), again="sft")
        for arm in arms:
            work.log(f"eval: {arm.name}: {answers.count_stops(arm.name)}")
        write_records(folder / "prompts.jsonl", prompts)
        write_records(folder / "responses.jsonl", answers.responses)
        write_records(folder / "resample.jsonl", answers.resample)

    return work.stage("eval", build, config(profile, seed, "evaluation"), work.outputs_of("sft", "dpo"))


def report(work: Workspace, profile: Profile, seed: int) -> Report:
    """Score and compare the answers in the workdir; write `report.json`, `report.html` and `outcomes.jsonl`."""
    from dpo_kit.evaluation.harness import evaluate_answers
    from dpo_kit.training.metrics_log import read_log
    from dpo_kit.views.report import write_report

    prompts = read_records(work.root / "eval" / "prompts.jsonl", Prompt)
    responses, resample = (
        read_records(work.root / "eval" / name, Response) for name in ("responses.jsonl", "resample.jsonl")
    )
    trained_on = read_pairs(work.root / "pairs" / "pairs.jsonl")
    manifests = [work.manifest(stage) for stage in ("sft", "pairs", "dpo", "eval")]
    made = evaluate_answers(
        prompts, responses, rubric.score, both_orders(rubric_judge()), temperature=profile.evaluation.temperature,
        resample=resample, trained_on=trained_on, seed=seed, profile=profile.name, pairs=len(trained_on),
        timings_s={manifest["stage"]: manifest["cost"]["seconds"] for manifest in manifests},
        peak_memory_mb=max(manifest["cost"]["peak_memory_mb"] for manifest in manifests),
        versions=manifests[-1]["versions"],
    )  # fmt: skip
    write_report(work.root, made, read_log(work.root / "dpo" / "log.jsonl"), prompts, responses)
    return made
