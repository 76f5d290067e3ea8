"""The whole path, stage by stage: SFT, pairs, DPO, comparison, report.

Where the profile's pairs are given and not the workbook's own, they are read first, SFT trains on their chosen answers,
and the path ends with a released adapter: comparing arms on other people's prompts is the `evaluate` command's work.

Each stage is a function of the profile, the seed and the folders of earlier stages, and writes one folder of its own.
`run` chains them; a notebook calls the same functions one at a time.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from dpo_kit.errors import DpoKitError
from dpo_kit.evaluation.results import Report
from dpo_kit.files import hashes, sha256, write_atomically
from dpo_kit.jsonl import read_pairs, read_records, write_pairs, write_records
from dpo_kit.preferences.judges import Judge, both_orders, by_coin, by_score
from dpo_kit.profiles import Profile
from dpo_kit.records import PreferencePair, Prompt, Response
from dpo_kit.triage import rubric
from dpo_kit.triage.demonstrations import Noise, demonstrate
from dpo_kit.triage.reports import draw_prompts
from dpo_kit.workspace import Workspace

# The model stack takes seconds to import, and a run whose stages are all done needs none of it: stages import it.


def run(profile: Profile, workdir: Path, *, seed: int = 0, fresh: bool = False, log: Callable = print) -> Report:
    """Walk the whole path in `workdir` and write `report.json` and `report.html` there; returns the report.

    Stages that are done and verify are skipped; `fresh` builds all of them again.
    Raises DpoKitError for anything that the reader can put right.
    """
    if profile.data.external:
        raise DpoKitError(
            f"data.pairs = {profile.data.pairs!r} has no exact rubric to be compared by: use `train`, then `evaluate`; "
            "data.pairs = 'triage' is the workbook's own world"
        )
    work = Workspace(workdir, profile.name, log)
    if fresh:
        work.clear()
    for stage in (sft, pairs, dpo, evaluate):
        stage(work, profile, seed)
    return report(work, profile, seed)


def train(
    profile: Profile, workdir: Path, *, seed: int = 0, fresh: bool = False, merge: bool = False, log: Callable = print
) -> Path:
    """SFT, DPO, release, on the profile's pairs. Returns the folder of the released adapter with its card and proof.

    Raises DpoKitError for anything that the reader can put right.
    """
    work = Workspace(workdir, profile.name, log)
    if fresh:
        work.clear()
    for stage in (sft, pairs, dpo):
        stage(work, profile, seed)
    return release(work, profile, seed, merge=merge)


def sft(work: Workspace, profile: Profile, seed: int) -> Path:
    """Fine-tune on noisy demonstrations, or on the chosen answers of given pairs, which are then read first.

    Writes `adapter/`, `demonstrations.jsonl`, `log.jsonl`.
    """

    def build(folder: Path) -> None:
        from dpo_kit.training.sft import train_sft

        settings = profile.sft
        if profile.data.external:
            prompts, demonstrations = chosen_answers(
                read_pairs(work.root / "pairs" / "pairs.jsonl"), settings.demonstrations
            )
        else:
            prompts = draw_prompts(settings.demonstrations, "train", "demonstrations", seed)
            noise = Noise(**{name: getattr(settings, name) for name in Noise.__dataclass_fields__})
            demonstrations = demonstrate(prompts, noise, seed)
        write_records(folder / "prompts.jsonl", prompts)
        write_records(folder / "demonstrations.jsonl", demonstrations)
        train_sft(profile, prompts, demonstrations, folder, seed, scratch=work.scratch("sft"), log=work.log)

    inputs = {"base": base_hashes(profile)}
    if profile.data.external:
        pairs(work, profile, seed)
        inputs |= work.outputs_of("pairs")
    return work.stage("sft", build, config(profile, seed, "sft"), inputs)


def pairs(work: Workspace, profile: Profile, seed: int) -> Path:
    """Sample two answers a prompt from the SFT arm, judge them, keep the decided. Given pairs are read instead.

    Writes `pairs.jsonl`, and `heldout.jsonl` of other prompts: pairs that training measures itself on and never learns
    from.
    """
    if profile.data.external:
        return external_pairs(work, profile, seed)
    sft_adapter = work.root / "sft" / "adapter"

    def build(folder: Path) -> None:
        from dpo_kit.models.answers import AnswerStore
        from dpo_kit.models.generation import count_stops
        from dpo_kit.models.loading import load_arms
        from dpo_kit.preferences.judges.llm import make_judge
        from dpo_kit.preferences.sampling import make_pairs, sample_twice

        prompts = draw_prompts(profile.pairs.prompts, "train", "pairs", seed)
        judge = make_judge(profile.judge, rubric_judge(), work.root / "judge_cache", seed)
        judge = by_coin(judge, seed) if profile.pairs.shuffle_labels else judge
        arms, store = load_arms(profile, {"sft": sft_adapter}), AnswerStore(work.answers("pairs"))
        a, b = sample_twice(arms, "sft", prompts, profile.pairs, seed, store)
        work.log(f"pairs: {count_stops([*a, *b])}")
        made = make_pairs(prompts, a, b, judge, profile.judge.concurrency)
        if not made:
            raise DpoKitError(f"{len(prompts)} prompts gave no pair: the judge saw no difference anywhere; sample more")
        write_records(folder / "prompts.jsonl", prompts)
        write_records(folder / "responses.jsonl", [*a, *b])
        write_pairs(folder / "pairs.jsonl", made)
        others = draw_prompts(profile.pairs.heldout_prompts, "heldout", "pairs", seed)
        answers = sample_twice(arms, "sft", others, profile.pairs, seed, store)
        write_pairs(folder / "heldout.jsonl", make_pairs(others, *answers, judge, profile.judge.concurrency))

    return work.stage("pairs", build, config(profile, seed, "pairs", "judge"), work.outputs_of("sft"))


def external_pairs(work: Workspace, profile: Profile, seed: int) -> Path:
    """Read, audit and split the profile's pairs. Writes `pairs.jsonl`, `heldout.jsonl`, `audit.json`."""

    def build(folder: Path) -> None:
        from dpo_kit.preferences.importers import load_external_pairs

        trained, held_out, audit = load_external_pairs(profile, folder / "quarantine.jsonl", seed, work.log)
        write_pairs(folder / "pairs.jsonl", trained)
        write_pairs(folder / "heldout.jsonl", held_out)
        write_atomically(folder / "audit.json", json.dumps(audit.to_json()) + "\n")

    source = Path(profile.data.pairs)
    found = sha256(source) if source.is_file() else hashes(source) if source.is_dir() else profile.data.pairs
    return work.stage("pairs", build, config(profile, seed, "data"), {"base": base_hashes(profile), "source": found})


def chosen_answers(pairs: Sequence[PreferencePair], most: int) -> tuple[list[Prompt], list[Response]]:
    """What SFT trains on where there are pairs and no demonstrations: each chosen answer once, at most so many.

    DPO compares with a reference that must give the pairs' answers some probability (arXiv 2305.18290, section 5; as
    Zephyr did, arXiv 2310.16944).
    """
    answers = {(pair.prompt.messages, pair.chosen.text): pair for pair in pairs}
    kept = list(answers.values())[:most]
    return [pair.prompt for pair in kept], [pair.chosen for pair in kept]


def dpo(work: Workspace, profile: Profile, seed: int) -> Path:
    """Train DPO on the pairs, starting from the SFT arm and against it. Writes `adapter/`, `log.jsonl` and more."""

    def build(folder: Path) -> None:
        from dpo_kit.training.dpo import train_dpo

        made = read_pairs(work.root / "pairs" / "pairs.jsonl")
        held_out = read_pairs(work.root / "pairs" / "heldout.jsonl")
        if profile.data.external:
            kl_prompts = list({pair.prompt.id: pair.prompt for pair in held_out}.values())[: profile.dpo.kl_prompts]
        else:
            kl_prompts = draw_prompts(profile.dpo.kl_prompts, "heldout", "kl", seed)
        train_dpo(
            profile,
            made,
            work.root / "sft" / "adapter",
            kl_prompts,
            folder,
            seed,
            held_out=held_out,
            scratch=work.scratch("dpo"),
            references=work.root / "references.sqlite",
            log=work.log,
        )

    # `pairs` too: KL is measured on answers that are sampled as those of the pairs were
    return work.stage("dpo", build, config(profile, seed, "dpo", "pairs"), work.outputs_of("sft", "pairs"))


def release(work: Workspace, profile: Profile, seed: int, *, merge: bool = False) -> Path:
    """Save the DPO adapter with its card, reload it, prove its rewards; with `merge` also as whole models, compared.

    Writes `adapter/`, `proof.json`, and with `merge` `merged.json` and the models under `merged/`.
    """

    def build(folder: Path) -> None:
        from dpo_kit.training.release import release_adapter

        release_adapter(profile, work.root, folder, merge=merge, log=work.log)

    given = config(profile, seed, "data", "sft", "pairs", "dpo") | {"merge": merge}
    return work.stage("release", build, given, work.outputs_of("sft", "pairs", "dpo"))


def evaluate(work: Workspace, profile: Profile, seed: int) -> Path:
    """Let the three arms answer held-out prompts, and the SFT arm answer twice, for the controls.

    Writes `prompts.jsonl`, `responses.jsonl` and `resample.jsonl`.
    """

    def build(folder: Path) -> None:
        from dpo_kit.evaluation.arms import Base, answer_all
        from dpo_kit.models.answers import AnswerStore
        from dpo_kit.models.generation import Sampling

        settings, base = profile.evaluation, Base(profile)
        arms = [base.arm("base"), *(base.arm(name, work.root / name / "adapter") for name in ("sft", "dpo"))]
        limits = {"seed": seed, "max_new_tokens": settings.max_new_tokens, "batch_size": settings.batch_size}
        samplings = [Sampling(temperature, **limits) for temperature in dict.fromkeys((settings.temperature, 0.0))]
        prompts = draw_prompts(settings.prompts, "heldout", "evaluation", seed)
        answers = answer_all(arms, prompts, samplings, AnswerStore(work.answers("eval")), again="sft")
        for arm in arms:
            work.log(f"eval: {arm.name}: {answers.count_stops(arm.name)}")
        write_records(folder / "prompts.jsonl", prompts)
        write_records(folder / "responses.jsonl", answers.responses)
        write_records(folder / "resample.jsonl", answers.resample)

    return work.stage("eval", build, config(profile, seed, "evaluation"), work.outputs_of("sft", "dpo"))


def report(work: Workspace, profile: Profile, seed: int) -> Report:
    """Score, control and compare what lies in the workdir; writes `report.json`, `report.html` and `outcomes.jsonl`."""
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


def rubric_judge() -> Judge:
    """The exact rubric as a judge of two answers."""
    return by_score(rubric.overall, "rubric")


def config(profile: Profile, seed: int, *tables: str) -> dict:
    """What a stage's result depends on besides its inputs: the model, its own tables of the profile, the seed."""
    return {"seed": seed, **{table: getattr(profile, table).model_dump() for table in ("model", *tables)}}


def base_hashes(profile: Profile) -> dict[str, str] | str:
    """What identifies the base: the hashes of a local folder's files but its card, or the Hub id."""
    folder = Path(profile.model_path)
    return hashes(folder, skip=("README.md", "manifest.json")) if folder.is_dir() else profile.model_path
