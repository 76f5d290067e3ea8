"""The whole path, stage by stage: SFT, pairs, DPO, comparison, report.

Each stage is a function of the profile, the seed and the folders of earlier stages, and writes one folder of its own.
`run` chains them; a notebook calls the same functions one at a time.
"""

from collections.abc import Callable
from pathlib import Path

from dpo_kit.errors import DpoKitError
from dpo_kit.files import hashes
from dpo_kit.profiles import Profile
from dpo_kit.records import Prompt, Response, read_pairs, read_records, write_pairs, write_records
from dpo_kit.triage import rubric
from dpo_kit.triage.demonstrations import Noise, demonstrate
from dpo_kit.triage.reports import draw_prompts
from dpo_kit.workspace import Workspace

# The model stack takes seconds to import, and a run whose stages are all done needs none of it: stages import it.


def run(profile: Profile, workdir: Path, *, seed: int = 0, fresh: bool = False, say: Callable = print) -> dict:
    """Walk the whole path in `workdir` and write `report.json` and `report.html` there; returns the report's data.

    Stages that are done and verify are skipped; `fresh` builds all of them again.
    Raises DpoKitError for anything that the reader can put right.
    """
    work = Workspace(workdir, profile.name, say)
    if fresh:
        work.clear()
    for stage in (sft, pairs, dpo, evaluate):
        stage(work, profile, seed)
    return report(work, profile, seed)


def sft(work: Workspace, profile: Profile, seed: int) -> Path:
    """Fine-tune on noisy demonstrations. Writes `adapter/`, `demonstrations.jsonl`, `log.jsonl`."""

    def build(folder: Path) -> None:
        from dpo_kit.training.sft import train_sft

        settings = profile.sft
        prompts = draw_prompts(settings.demonstrations, "train", "demonstrations", seed)
        noise = Noise(**{name: getattr(settings, name) for name in Noise.__dataclass_fields__})
        demonstrations = demonstrate(prompts, noise, seed)
        write_records(folder / "prompts.jsonl", prompts)
        write_records(folder / "demonstrations.jsonl", demonstrations)
        train_sft(profile, prompts, demonstrations, folder, seed)

    return work.stage("sft", build, config(profile, seed, "sft"), {"base": base_hashes(profile)})


def pairs(work: Workspace, profile: Profile, seed: int) -> Path:
    """Sample two answers a prompt from the SFT arm, judge them, keep the decided. Writes `pairs.jsonl`."""
    sft_adapter = work.root / "sft" / "adapter"

    def build(folder: Path) -> None:
        from dpo_kit.models.loading import load_arms
        from dpo_kit.preferences.judging import by_coin
        from dpo_kit.preferences.sampling import make_pairs, sample_twice

        prompts = draw_prompts(profile.pairs.prompts, "train", "pairs", seed)
        judge = by_coin(rubric_judge(), seed) if profile.pairs.shuffle_labels else rubric_judge()
        arms = load_arms(profile, {"sft": sft_adapter})
        a, b = sample_twice(arms, "sft", prompts, profile.pairs, seed)
        made = make_pairs(prompts, a, b, judge)
        if not made:
            raise DpoKitError(f"{len(prompts)} prompts gave no pair: the judge saw no difference anywhere; sample more")
        write_records(folder / "prompts.jsonl", prompts)
        write_records(folder / "responses.jsonl", [*a, *b])
        write_pairs(folder / "pairs.jsonl", made)

    return work.stage("pairs", build, config(profile, seed, "pairs"), work.outputs_of("sft"))


def dpo(work: Workspace, profile: Profile, seed: int) -> Path:
    """Train DPO on the pairs, starting from the SFT arm and against it. Writes `adapter/`, `log.jsonl` and more."""

    def build(folder: Path) -> None:
        from dpo_kit.training.dpo import train_dpo

        made = read_pairs(work.root / "pairs" / "pairs.jsonl")
        kl_prompts = draw_prompts(profile.dpo.kl_prompts, "heldout", "kl", seed)
        train_dpo(profile, made, work.root / "sft" / "adapter", kl_prompts, folder, seed)

    return work.stage("dpo", build, config(profile, seed, "dpo"), work.outputs_of("sft", "pairs"))


def evaluate(work: Workspace, profile: Profile, seed: int) -> Path:
    """Let the three arms answer held-out prompts. Writes `prompts.jsonl` and `responses.jsonl`."""
    adapters = {arm: work.root / arm / "adapter" for arm in ("sft", "dpo")}

    def build(folder: Path) -> None:
        from dpo_kit.evaluation.arms import answer_all
        from dpo_kit.models.loading import load_arms

        prompts = draw_prompts(profile.evaluation.prompts, "heldout", "evaluation", seed)
        responses = answer_all(load_arms(profile, adapters), prompts, profile.evaluation, seed)
        write_records(folder / "prompts.jsonl", prompts)
        write_records(folder / "responses.jsonl", responses)

    return work.stage("eval", build, config(profile, seed, "evaluation"), work.outputs_of("sft", "dpo"))


def report(work: Workspace, profile: Profile, seed: int) -> dict:
    """Score and compare what lies in the workdir; writes `report.json` and `report.html` at its top."""
    from dpo_kit.evaluation.comparison import compare
    from dpo_kit.training.metrics_log import read_log
    from dpo_kit.views.report import summarize, write_report

    prompts = read_records(work.root / "eval" / "prompts.jsonl", Prompt)
    responses = read_records(work.root / "eval" / "responses.jsonl", Response)
    sampled = [r for r in responses if r.temperature > 0]
    greedy = [r for r in responses if r.temperature == 0]
    data = summarize(
        profile=profile.name,
        seed=seed,
        pairs=len(read_pairs(work.root / "pairs" / "pairs.jsonl")),
        sampled=compare(prompts, sampled, rubric.score, rubric_judge()),
        greedy=compare(prompts, greedy, rubric.score, rubric_judge()),
        manifests=[work.manifest(stage) for stage in ("sft", "pairs", "dpo", "eval")],
    )
    write_report(work.root, data, read_log(work.root / "dpo" / "log.jsonl"), prompts, sampled)
    return data


def rubric_judge():
    """The exact rubric as a judge of two answers."""
    from dpo_kit.preferences.judging import by_score

    return by_score(rubric.overall, "rubric")


def config(profile: Profile, seed: int, table: str) -> dict:
    """What a stage's result depends on besides its inputs: the model, its own table of the profile, the seed."""
    return {"seed": seed, "model": profile.model.model_dump(), table: getattr(profile, table).model_dump()}


def base_hashes(profile: Profile) -> dict[str, str] | str:
    """What identifies the base: the hashes of a local folder's files but its card, or the Hub id."""
    folder = Path(profile.model_path)
    return hashes(folder, skip=("README.md", "manifest.json")) if folder.is_dir() else profile.model_path
