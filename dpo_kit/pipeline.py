"""The stages of a run and the functions that build them in order, for the workbook's own world and for external pairs.

- `OWN_WORLD` (`triage.world`): the package invents prompts whose right answers are known. SFT learns from noisy
  demonstrations, its arm is sampled for pairs, and DPO learns from these. `run` then compares three arms.
- `EXTERNAL_PAIRS`: the pairs are a file or a data set that the profile names. They are read first, and SFT learns from
  their chosen answers. There is no rubric, so the arms are compared by the `evaluate` command.

`run` and `train` build all stages of a list; a notebook calls `sft`, `pairs` and `dpo` one at a time.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from dpo_kit.errors import DpoKitError
from dpo_kit.evaluation.results import Report
from dpo_kit.files import hashes, sha256, write_atomically
from dpo_kit.jsonl import read_pairs, write_pairs
from dpo_kit.profiles import Profile
from dpo_kit.records import PreferencePair, Prompt, Response
from dpo_kit.stages import Stage, base_identity, config, dpo_stage, release, sft_stage
from dpo_kit.triage.world import OWN_WORLD, evaluate, report
from dpo_kit.workspace import Workspace


def run(profile: Profile, workdir: Path, *, seed: int = 0, fresh: bool = False, log: Callable = print) -> Report:
    """Build the own world's stages in `workdir`, compare the three arms, and write `report.json` and `report.html`.

    Returns the report. Finished stages that verify are skipped; `fresh` builds all of them again.
    Raises DpoKitError for every error that the user can correct.
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
    """SFT, DPO and release on the profile's pairs. Returns the folder of the adapter with its card and proof.

    Finished stages that verify are skipped; `fresh` builds all of them again. `merge` also writes whole models.
    Raises DpoKitError for every error that the user can correct, also where `workdir` holds a finished stage of other
    settings or pairs.
    """
    work = Workspace(workdir, profile.name, log, fresh=fresh, keep=True)
    for stage in stages(profile).values():
        stage(work, profile, seed)
    return release(work, profile, seed, merge=merge)


# ---- stages by name, for notebooks ------------------------------------------------------------------------------


def sft(work: Workspace, profile: Profile, seed: int) -> Path:
    """Fine-tune the arm that DPO starts from; write `adapter/`, `prompts.jsonl`, `demonstrations.jsonl`, `log.jsonl`.

    It learns from noisy demonstrations, or from the chosen answers of external pairs, which are then read first.
    """
    return stages(profile)["sft"](work, profile, seed)


def pairs(work: Workspace, profile: Profile, seed: int) -> Path:
    """Sample and judge pairs of the SFT arm's answers, or read external pairs. Writes `pairs.jsonl`, `heldout.jsonl`.

    Training learns from `pairs.jsonl`. The pairs of `heldout.jsonl` have other prompts: training is measured on them
    and never learns from them.
    """
    return stages(profile)["pairs"](work, profile, seed)


def dpo(work: Workspace, profile: Profile, seed: int) -> Path:
    """Train DPO on the pairs, with the SFT arm as start and as reference. Writes `adapter/`, `log.jsonl` and more."""
    return stages(profile)["dpo"](work, profile, seed)


def stages(profile: Profile) -> dict[str, Stage]:
    """The stages that the profile needs for its pairs, by name, in the order in which they are built."""
    return EXTERNAL_PAIRS if profile.data.external else OWN_WORLD


# ---- pairs from outside -----------------------------------------------------------------------------------------


def external_pairs(work: Workspace, profile: Profile, seed: int) -> Path:
    """`pairs` for external pairs: read, audit and split those that the profile names. Also writes `audit.json`."""

    def build(folder: Path) -> None:
        from dpo_kit.preferences.importers import load_external_pairs

        # imported and audited here, so that no pair reaches a trainer unaudited
        trained, held_out, audit = load_external_pairs(profile, folder / "quarantine.jsonl", seed, work.log)
        write_pairs(folder / "pairs.jsonl", trained)
        write_pairs(folder / "heldout.jsonl", held_out)
        write_atomically(folder / "audit.json", json.dumps(audit.to_json()) + "\n")

    inputs = {"base": base_identity(profile), "source": source_identity(profile)}
    return work.stage("pairs", build, config(profile, seed, "data"), inputs)


def source_identity(profile: Profile) -> str | dict[str, str]:
    """What says which pairs the profile names: the hash of a file, those of a folder's files, or else the name."""
    source = Path(profile.data.pairs)
    return sha256(source) if source.is_file() else hashes(source) if source.is_dir() else profile.data.pairs


def sft_on_chosen(work: Workspace, profile: Profile, seed: int) -> Path:
    """`sft` for external pairs, which it reads first: the demonstrations are their chosen answers, or a file's."""
    made = external_pairs(work, profile, seed)
    source, inputs = Path(profile.sft.data).expanduser(), work.outputs_of("pairs")
    if profile.sft.data and not source.is_file():
        raise DpoKitError(f"sft.data = {profile.sft.data}: there is no such file")
    if profile.sft.data:
        inputs["demonstrations"] = {source.name: sha256(source)}

    def demonstrations() -> tuple[list[Prompt], list[Response]]:
        if profile.sft.data:
            return _demonstrated(source, read_pairs(made / "heldout.jsonl"), profile.sft.demonstrations, work.log)
        return chosen_answers(read_pairs(made / "pairs.jsonl"), profile.sft.demonstrations)

    return sft_stage(work, profile, seed, demonstrations, inputs)


def _demonstrated(
    source: Path, held_out: Sequence[PreferencePair], most: int, log: Callable[[str], None]
) -> tuple[list[Prompt], list[Response]]:
    """The demonstrations of a file, at most `most`, without those of prompts on which training measures itself.

    Raises DpoKitError where a row is no demonstration, or none is left.
    """
    from dpo_kit.preferences.importers import import_demonstrations

    measured = {pair.prompt.messages for pair in held_out}
    read = list(zip(*import_demonstrations(source, log=log), strict=True))
    usable = [row for row in read if row[0].messages not in measured]
    kept = usable[:most]
    log(f"sft: {len(kept)} of {len(read)} demonstrations in {source.name}"
        f" ({len(read) - len(usable)} have held-out prompts, and sft.demonstrations = {most})")  # fmt: skip
    if not kept:
        raise DpoKitError(f"{source}: no demonstration is left for SFT; add some with other prompts")
    return [prompt for prompt, _ in kept], [answer for _, answer in kept]


def chosen_answers(pairs: Sequence[PreferencePair], most: int) -> tuple[list[Prompt], list[Response]]:
    """Demonstrations for SFT where there are only pairs: each chosen answer once, at most `most` of them.

    DPO's reference must give the pairs' answers some probability, so it is first trained on the chosen ones (arXiv
    2305.18290, section 5; Zephyr does the same, arXiv 2310.16944).
    """
    # an answer that occurs in several pairs is used once
    answers = {(pair.prompt.messages, pair.chosen.text): pair for pair in pairs}
    kept = list(answers.values())[:most]
    return [pair.prompt for pair in kept], [pair.chosen for pair in kept]


def dpo_on_external(work: Workspace, profile: Profile, seed: int) -> Path:
    """`dpo` for external pairs: KL is measured on answers to the prompts of held-out pairs."""

    def kl_prompts(held_out: Sequence[PreferencePair]) -> list[Prompt]:
        # a prompt may have several pairs; its KL is measured once
        return list({pair.prompt.id: pair.prompt for pair in held_out}.values())[: profile.dpo.kl_prompts]

    return dpo_stage(work, profile, seed, kl_prompts)


EXTERNAL_PAIRS: dict[str, Stage] = {"pairs": external_pairs, "sft": sft_on_chosen, "dpo": dpo_on_external}
