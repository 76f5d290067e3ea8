"""The stages that every training has, for pairs from any source: SFT, DPO and the release of the adapter.

Each stage is a function of the workspace, the profile and the seed. It reads the folders of earlier stages and writes
one folder of its own. The caller passes what depends on the source of the pairs: the demonstrations that SFT learns
from, and the prompts on whose answers DPO measures the KL.
"""

from collections.abc import Callable
from pathlib import Path

from dpo_kit.files import hashes
from dpo_kit.jsonl import read_pairs, write_records
from dpo_kit.models.identity import base_fingerprint
from dpo_kit.profiles import Profile
from dpo_kit.workspace import Workspace

# Importing torch and its libraries takes seconds, and a run whose stages are all finished does not need them. So the
# stages import them inside their build functions.

FEW_PAIRS = 50  # below this a warning: no published recipe trains on fewer than some hundreds

Stage = Callable[[Workspace, Profile, int], Path]


def sft_stage(work: Workspace, profile: Profile, seed: int, demonstrations: Callable, inputs: dict) -> Path:
    """The stage `sft` on what `demonstrations()` returns. It depends on the profile, the base and `inputs`.

    With `sft.skip` in the profile nothing is fine-tuned, and the adapter leaves the base's output unchanged. With
    `sft.from` it is a copy of the named one. In each case it is the start of DPO, and its reference.
    """
    source = Path(profile.sft.from_).expanduser()
    if profile.sft.from_ and source.is_dir():
        inputs = {**inputs, "from": hashes(source)}

    def build(folder: Path) -> None:
        from dpo_kit.training.sft import copy_adapter, start_at_base, train_sft

        if profile.sft.from_:
            work.log(f"sft: not trained; DPO starts from the adapter in {source}, which is also its reference")
            copy_adapter(profile, source, folder / "adapter")
            return
        if profile.sft.skip:
            work.log(f"sft: skipped; DPO starts from {profile.model.path} as it is, which is also its reference")
            start_at_base(profile, folder / "adapter", seed)
            return
        prompts, demonstrated = demonstrations()
        write_records(folder / "prompts.jsonl", prompts)
        write_records(folder / "demonstrations.jsonl", demonstrated)
        train_sft(profile, prompts, demonstrated, folder, seed, scratch=work.scratch("sft"), log=work.log)

    return work.stage("sft", build, config(profile, seed, "sft"), {"base": base_identity(profile), **inputs})


def dpo_stage(work: Workspace, profile: Profile, seed: int, kl_prompts: Callable) -> Path:
    """The stage `dpo`. `kl_prompts` takes the held-out pairs and returns the prompts that KL is measured on."""

    def build(folder: Path) -> None:
        from dpo_kit.training.dpo import train_dpo

        held_out = read_pairs(work.root / "pairs" / "heldout.jsonl")
        trained = read_pairs(work.root / "pairs" / "pairs.jsonl")
        if len(trained) < FEW_PAIRS:
            work.log(f"dpo: {len(trained)} pairs are few: expect no effect that an evaluation could tell from chance")
        if not held_out:
            work.log("dpo: no pairs are held out, so margins are those of trained pairs and say nothing about new ones")
        train_dpo(
            profile,
            trained,
            work.root / "sft" / "adapter",
            kl_prompts(held_out),
            folder,
            seed,
            held_out=held_out,
            scratch=work.scratch("dpo"),
            references=work.root / "reference_logps.sqlite",
            log=work.log,
        )

    # the table `pairs` too, because KL is measured on answers that are sampled with its settings
    return work.stage("dpo", build, config(profile, seed, "dpo", "pairs"), work.outputs_of("sft", "pairs"))


def release(work: Workspace, profile: Profile, seed: int, *, merge: bool = False) -> Path:
    """Save the DPO adapter with its card, and prove that it gives training's rewards when loaded again.

    Writes `adapter/`, `proof.json`, and with `merge` `merged.json` and the models under `merged/`.
    """

    def build(folder: Path) -> None:
        from dpo_kit.training.release import release_adapter

        release_adapter(profile, work.root, folder, merge=merge, log=work.log)

    given = config(profile, seed, "data", "sft", "pairs", "dpo") | {"merge": merge}
    return work.stage("release", build, given, work.outputs_of("sft", "pairs", "dpo"))


def config(profile: Profile, seed: int, *tables: str) -> dict:
    """What a stage's result depends on besides its inputs: the model, the stage's tables of the profile, the seed."""
    return {
        "seed": seed,
        **{table: getattr(profile, table).model_dump(exclude={"max_tokens"}) for table in ("model", *tables)},
    }


def base_identity(profile: Profile) -> dict[str, str] | str | None:
    """The fingerprint of a base in a folder. For one on the Hub its id, because it may not be downloaded yet."""
    return base_fingerprint(profile.model_path) if Path(profile.model_path).is_dir() else profile.model_path
