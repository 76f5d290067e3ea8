"""The stages of a run, and the two lists of them: for the workbook's own world, and for pairs from outside.

Each stage is a function of the workspace, the profile and the seed. It reads the folders of earlier stages and writes
one folder of its own. `run` and `train` walk a list; a notebook calls `sft`, `pairs`, `dpo` one at a time.

- `OWN_WORLD`: the package invents prompts whose right answers are known. SFT learns from noisy demonstrations, its arm
  is sampled for pairs, and DPO learns from these. `run` then compares three arms by the exact rubric.
- `EXTERNAL_PAIRS`: the pairs are a file or a data set that the profile names. They are read first, and SFT learns from
  their chosen answers. There is no rubric, so the arms are compared by the `evaluate` command.
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

# The model stack takes seconds to import, and a run whose stages are all done needs none of it. So the stages import
# it inside their build functions.

Stage = Callable[[Workspace, Profile, int], Path]


def run(profile: Profile, workdir: Path, *, seed: int = 0, fresh: bool = False, log: Callable = print) -> Report:
    """Walk the own world's stages in `workdir`, compare the three arms, and write `report.json` and `report.html`.

    Returns the report. Stages that are done and verify are skipped; `fresh` builds all of them again.
    Raises DpoKitError for anything that the reader can put right.
    """
    if profile.data.external:
        raise DpoKitError(
            f"data.pairs = {profile.data.pairs!r} has no exact rubric to be compared by: use `train`, then `evaluate`; "
            "data.pairs = 'triage' is the workbook's own world"
        )
    work = Workspace(workdir, profile.name, log, fresh=fresh)
    for stage in (*OWN_WORLD.values(), evaluate):
        stage(work, profile, seed)
    return report(work, profile, seed)


def train(
    profile: Profile, workdir: Path, *, seed: int = 0, fresh: bool = False, merge: bool = False, log: Callable = print
) -> Path:
    """SFT, DPO, release, on the profile's pairs. Returns the folder of the released adapter with its card and proof.

    Stages that are done and verify are skipped; `fresh` builds all of them again. `merge` also writes whole models.
    Raises DpoKitError for anything that the reader can put right, and where `workdir` holds a finished stage of other
    settings or pairs.
    """
    work = Workspace(workdir, profile.name, log, fresh=fresh, keep=True)
    for stage in stages(profile).values():
        stage(work, profile, seed)
    return release(work, profile, seed, merge=merge)


# ---- stages by name, for notebooks ------------------------------------------------------------------------------


def sft(work: Workspace, profile: Profile, seed: int) -> Path:
    """Fine-tune the arm that DPO starts from. Writes `adapter/`, `prompts.jsonl`, `demonstrations.jsonl`, `log.jsonl`.

    It learns from noisy demonstrations, or from the chosen answers of external pairs, which are then read first.
    """
    return stages(profile)["sft"](work, profile, seed)


def pairs(work: Workspace, profile: Profile, seed: int) -> Path:
    """Sample and judge pairs of the SFT arm's answers, or read external pairs. Writes `pairs.jsonl`, `heldout.jsonl`.

    Training learns from `pairs.jsonl`. The pairs of `heldout.jsonl` have other prompts: training measures itself on
    them and never learns from them.
    """
    return stages(profile)["pairs"](work, profile, seed)


def dpo(work: Workspace, profile: Profile, seed: int) -> Path:
    """Train DPO on the pairs, starting from the SFT arm and against it. Writes `adapter/`, `log.jsonl` and more."""
    return stages(profile)["dpo"](work, profile, seed)


def stages(profile: Profile) -> dict[str, Stage]:
    """The list of stages that the profile's pairs ask for, by name, in the order in which they are built."""
    return EXTERNAL_PAIRS if profile.data.external else OWN_WORLD


# ---- the workbook's own world -----------------------------------------------------------------------------------


def sft_on_demonstrations(work: Workspace, profile: Profile, seed: int) -> Path:
    """The own world's `sft`: prompts are drawn and answered by people in a hurry, wrong at the profile's rates."""
    if profile.sft.skip or profile.sft.from_:
        return start_without_sft(work, profile, seed)

    def demonstrations() -> tuple[list[Prompt], list[Response]]:
        prompts = draw_prompts(profile.sft.demonstrations, "train", "demonstrations", seed)
        noise = Noise(**{name: getattr(profile.sft, name) for name in Noise.__dataclass_fields__})
        return prompts, demonstrate(prompts, noise, seed)

    return _sft(work, profile, seed, demonstrations, {})


def sampled_pairs(work: Workspace, profile: Profile, seed: int) -> Path:
    """The own world's `pairs`: the SFT arm answers each prompt twice, the judge compares, and ties are left out."""

    def build(folder: Path) -> None:
        from dpo_kit.models.answers import AnswerStore
        from dpo_kit.models.generation import count_stops
        from dpo_kit.models.loading import load_arms
        from dpo_kit.preferences.judges.llm import make_judge
        from dpo_kit.preferences.sampling import make_pairs, sample_twice

        prompts = draw_prompts(profile.pairs.prompts, "train", "pairs", seed)
        judge = make_judge(profile.judge, rubric_judge(), work.root / "judge_cache", seed)
        judge = by_coin(judge, seed) if profile.pairs.shuffle_labels else judge
        arms = load_arms(profile, {"sft": work.root / "sft" / "adapter"})
        store = AnswerStore(work.answers("pairs"))
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


def dpo_on_sampled(work: Workspace, profile: Profile, seed: int) -> Path:
    """The own world's `dpo`: KL is measured on answers to prompts that are drawn for this alone."""
    return _dpo(work, profile, seed, lambda _: draw_prompts(profile.dpo.kl_prompts, "heldout", "kl", seed))


OWN_WORLD: dict[str, Stage] = {"sft": sft_on_demonstrations, "pairs": sampled_pairs, "dpo": dpo_on_sampled}


# ---- pairs from outside -----------------------------------------------------------------------------------------


def external_pairs(work: Workspace, profile: Profile, seed: int) -> Path:
    """`pairs` from outside: read, audit and split those that the profile names. Also writes `audit.json`."""

    def build(folder: Path) -> None:
        from dpo_kit.preferences.importers import load_external_pairs

        trained, held_out, audit = load_external_pairs(profile, folder / "quarantine.jsonl", seed, work.log)
        write_pairs(folder / "pairs.jsonl", trained)
        write_pairs(folder / "heldout.jsonl", held_out)
        write_atomically(folder / "audit.json", json.dumps(audit.to_json()) + "\n")

    source = Path(profile.data.pairs)
    found = sha256(source) if source.is_file() else hashes(source) if source.is_dir() else profile.data.pairs
    return work.stage("pairs", build, config(profile, seed, "data"), {"base": base_hashes(profile), "source": found})


def sft_on_chosen(work: Workspace, profile: Profile, seed: int) -> Path:
    """`sft` for external pairs, which it reads first: the demonstrations are their chosen answers."""
    made = external_pairs(work, profile, seed) / "pairs.jsonl"
    if profile.sft.skip or profile.sft.from_:
        return start_without_sft(work, profile, seed)

    def demonstrations() -> tuple[list[Prompt], list[Response]]:
        return chosen_answers(read_pairs(made), profile.sft.demonstrations)

    return _sft(work, profile, seed, demonstrations, work.outputs_of("pairs"))


def chosen_answers(pairs: Sequence[PreferencePair], most: int) -> tuple[list[Prompt], list[Response]]:
    """What SFT trains on where there are pairs and no demonstrations: each chosen answer once, at most so many.

    DPO compares with a reference that must give the pairs' answers some probability (arXiv 2305.18290, section 5; as
    Zephyr did, arXiv 2310.16944).
    """
    answers = {(pair.prompt.messages, pair.chosen.text): pair for pair in pairs}
    kept = list(answers.values())[:most]
    return [pair.prompt for pair in kept], [pair.chosen for pair in kept]


def dpo_on_external(work: Workspace, profile: Profile, seed: int) -> Path:
    """`dpo` for external pairs: KL is measured on answers to the prompts of held-out pairs."""

    def kl_prompts(held_out: Sequence[PreferencePair]) -> list[Prompt]:
        return list({pair.prompt.id: pair.prompt for pair in held_out}.values())[: profile.dpo.kl_prompts]

    return _dpo(work, profile, seed, kl_prompts)


EXTERNAL_PAIRS: dict[str, Stage] = {"pairs": external_pairs, "sft": sft_on_chosen, "dpo": dpo_on_external}


# ---- what both lists share --------------------------------------------------------------------------------------


def _sft(work: Workspace, profile: Profile, seed: int, demonstrations: Callable, inputs: dict) -> Path:
    """The stage `sft` on what `demonstrations()` returns. It depends on `inputs` besides the profile and the base."""

    def build(folder: Path) -> None:
        from dpo_kit.training.sft import train_sft

        prompts, demonstrated = demonstrations()
        write_records(folder / "prompts.jsonl", prompts)
        write_records(folder / "demonstrations.jsonl", demonstrated)
        train_sft(profile, prompts, demonstrated, folder, seed, scratch=work.scratch("sft"), log=work.log)

    return work.stage("sft", build, config(profile, seed, "sft"), {"base": base_hashes(profile), **inputs})


def start_without_sft(work: Workspace, profile: Profile, seed: int) -> Path:
    """The stage `sft` where nothing is fine-tuned: the base itself as an adapter, or the adapter that is named."""

    def build(folder: Path) -> None:
        from dpo_kit.training.sft import copy_adapter, start_at_base

        if profile.sft.from_:
            work.log(f"sft: not trained; DPO starts from {profile.sft.from_}, which is also its reference")
            copy_adapter(profile, Path(profile.sft.from_), folder / "adapter")
        else:
            work.log(f"sft: skipped; DPO starts from {profile.model.path} as it is, which is also its reference")
            start_at_base(profile, folder / "adapter", seed)

    source = Path(profile.sft.from_).expanduser()
    given = {"from": hashes(source)} if profile.sft.from_ and source.is_dir() else {}
    return work.stage("sft", build, config(profile, seed, "sft"), {"base": base_hashes(profile), **given})


def _dpo(work: Workspace, profile: Profile, seed: int, kl_prompts: Callable) -> Path:
    """The stage `dpo`. `kl_prompts` takes the held-out pairs and returns the prompts that KL is measured on."""

    def build(folder: Path) -> None:
        from dpo_kit.training.dpo import train_dpo

        held_out = read_pairs(work.root / "pairs" / "heldout.jsonl")
        train_dpo(
            profile,
            read_pairs(work.root / "pairs" / "pairs.jsonl"),
            work.root / "sft" / "adapter",
            kl_prompts(held_out),
            folder,
            seed,
            held_out=held_out,
            scratch=work.scratch("dpo"),
            references=work.root / "references.sqlite",
            log=work.log,
        )

    # the table `pairs` too: KL is measured on answers that are sampled as those of the pairs were
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
