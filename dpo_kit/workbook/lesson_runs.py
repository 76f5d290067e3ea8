"""What notebooks 04 and 05 leave on the disk: 04 saves pairs, 05 trains on these pairs and keeps its run.

Both lie in the folder of the workbook's run. `my_pairs` belongs to one file of sampled pairs; where these are sampled
again, it is made again. The folder of notebook 05's run is named after its settings and its pairs, so a training that
was stopped is found again, and a training of other settings has a folder of its own.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer

from dpo_kit.evaluation.statistics import mean_interval
from dpo_kit.files import json_object, sha256, write_atomically
from dpo_kit.jsonl import read_pairs, write_pairs
from dpo_kit.models.loading import load_arms
from dpo_kit.preferences.labels import Labels
from dpo_kit.profiles import Profile
from dpo_kit.records import PreferencePair, Prompt, Response, split_by_prompt
from dpo_kit.triage.reports import draw_prompts
from dpo_kit.workbook import from_scratch
from dpo_kit.workspace import Workspace

FOLDER, TRAIN, HELD_OUT, MADE_FROM = "my_pairs", "train.jsonl", "held_out.jsonl", "made_from.json"
HOLDOUT = 0.4  # the share of prompts held out: a margin needs some hundred pairs before its interval is narrow

Pairs = Sequence[PreferencePair]
Split = tuple[list[PreferencePair], list[PreferencePair]]


def with_labels(pairs: Pairs, labels: Labels, annotator: str) -> list[PreferencePair]:
    """The pairs, with a person's verdict in place of the judge's wherever the person gave one.

    A tie removes the pair. A preference where the judge saw a tie adds one. A skipped item changes nothing.
    """
    items, verdicts = labels.items(), labels.verdicts(annotator)
    decided = {_key(items[i].prompt, items[i].a, items[i].b) for i, v in verdicts.items() if v.winner != "unjudged"}
    kept = [pair for pair in pairs if _key(pair.prompt, pair.chosen, pair.rejected) not in decided]
    return [*kept, *labels.pairs(annotator)]


def _key(prompt: Prompt, a: Response, b: Response) -> tuple[tuple, frozenset[str]]:
    return tuple((m.role, m.content) for m in prompt.messages), frozenset((a.text, b.text))


def save_pairs(work: Workspace, source: Path, train: Pairs, held_out: Pairs) -> Path:
    """Write both lists of pairs for notebook 05; `source` is the file of sampled pairs that they come from.

    Returns the folder. What is there of an earlier time is replaced.
    """
    folder = work.root / FOLDER
    (folder / MADE_FROM).unlink(missing_ok=True)  # written last, so that a folder without it is not used
    for name, pairs in ((TRAIN, train), (HELD_OUT, held_out)):
        write_pairs(folder / name, pairs)
    write_atomically(folder / MADE_FROM, json.dumps({"pairs_sha256": sha256(source)}) + "\n")
    return folder


def pairs_to_train_on(work: Workspace, profile: Profile, source: Path, seed: int = 0) -> Split:
    """(train, held out): the pairs that notebook 04 saved, or the same made here if they are not there yet.

    `source` is the file of sampled pairs, `pairs.jsonl` of the run's stage of that name.
    Pairs that the profile takes from outside were audited and split when they were read, and are taken as they are.
    """
    if profile.data.external:
        return read_pairs(source), read_pairs(source.with_name("heldout.jsonl"))
    folder = work.root / FOLDER
    if json_object(folder / MADE_FROM).get("pairs_sha256") != sha256(source):
        from dpo_kit.preferences.audit import audit_pairs  # needed only where notebook 04 was not run

        holdout = draw_prompts(profile.evaluation.prompts, "heldout", "evaluation", seed)
        tokenizer = AutoTokenizer.from_pretrained(profile.model_path)
        kept = audit_pairs(read_pairs(source), tokenizer, holdout, profile.model.max_length).kept
        save_pairs(work, source, *split_by_prompt(kept, HOLDOUT))
    return read_pairs(folder / TRAIN), read_pairs(folder / HELD_OUT)


def run_folder(work: Workspace, profile: Profile, pairs: Pairs) -> Path:
    """The folder in which notebook 05 trains with these settings on these pairs: the same at each call."""
    identity = json.dumps([profile.model_dump(mode="json"), *(pair.to_trl() for pair in pairs)])
    folder = work.root / "lesson_05" / hashlib.sha256(identity.encode()).hexdigest()[:8]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def margins(profile: Profile, policy: Path, reference: Path, pairs: Pairs, batch_size: int = 32) -> torch.Tensor:
    """The DPO margin of each pair, beta times the difference of log-ratios, `(len(pairs),)`, from saved adapters."""
    arms = load_arms(profile, {"policy": policy, "reference": reference})
    gaps = []
    for start in range(0, len(pairs), batch_size):
        batch = from_scratch.collate(arms.tokenizer, pairs[start : start + batch_size])
        gap = {}
        for arm in ("policy", "reference"):
            with arms.use(arm) as model, torch.no_grad():
                on_device = from_scratch.Batch(*(tensor.to(model.device) for tensor in vars(batch).values()))
                chosen, rejected = from_scratch.pair_logps(model, on_device)
            gap[arm] = (chosen - rejected).float().cpu()
        gaps.append(gap["policy"] - gap["reference"])
    return profile.dpo.beta * torch.cat(gaps)


def margin_lines(found: torch.Tensor, counts: Sequence[int]) -> list[str]:
    """The mean margin and the share above zero on the first so many pairs, each with its 95% interval, as sentences."""
    lines = []
    for count in counts:
        first = found[:count]
        mean, share = mean_interval(first.tolist()), mean_interval((first > 0).double().tolist())
        lines.append(
            f"{len(first):4} pairs: mean margin {mean.mean:.2f} [{mean.low:.2f}, {mean.high:.2f}], "
            f"margin above zero {share.mean:.2f} [{share.low:.2f}, {share.high:.2f}]"
        )
    return lines
