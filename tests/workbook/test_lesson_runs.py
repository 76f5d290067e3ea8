"""What notebook 04 saves is what notebook 05 trains on; a stopped run is found again; labels reach the training."""

import pytest
import torch

from dpo_kit.errors import DpoKitError
from dpo_kit.jsonl import read_pairs, write_pairs
from dpo_kit.preferences.labels import Labels, as_items
from dpo_kit.training.trainers import TrainingStopped
from dpo_kit.workbook import lesson_runs
from dpo_kit.workbook.cells import in_one_line, only_incidents
from dpo_kit.workspace import Workspace


@pytest.fixture
def work(small_run, tmp_path):
    """A workspace whose sampled pairs are those of the small run."""
    folder = tmp_path / "pairs"
    write_pairs(folder / "pairs.jsonl", read_pairs(small_run[0] / "pairs" / "pairs.jsonl"))
    return Workspace(tmp_path, "tiny", log=lambda line: None)


def test_what_was_saved_is_trained_on_until_the_sampled_pairs_change(work, small_profile):
    source = work.root / "pairs" / "pairs.jsonl"
    pairs = read_pairs(source)
    lesson_runs.save_pairs(work, source, pairs[:3], pairs[3:5])
    assert lesson_runs.pairs_to_train_on(work, small_profile, source) == (pairs[:3], pairs[3:5])
    write_pairs(source, pairs[:-1])
    train, held_out = lesson_runs.pairs_to_train_on(work, small_profile, source)
    assert (train, held_out) != (pairs[:3], pairs[3:5])
    assert {p.prompt.text for p in train}.isdisjoint(p.prompt.text for p in held_out)


def test_a_persons_label_replaces_the_judges(work):
    pairs = read_pairs(work.root / "pairs" / "pairs.jsonl")
    labels, items = Labels(work.root / "labels.db"), as_items(pairs)
    for item, choice in zip(items[:3], ("b", "tie", "skip"), strict=True):
        labels.add("me", item, choice, "ab")
    mine = lesson_runs.with_labels(pairs, labels, "me")
    assert len(mine) == len(pairs) - 1
    assert mine[:-1] == pairs[2:]
    assert (mine[-1].chosen.text, mine[-1].rejected.text) == (pairs[0].rejected.text, pairs[0].chosen.text)


def test_a_run_has_one_folder_and_other_settings_another(work, small_profile):
    pairs = read_pairs(work.root / "pairs" / "pairs.jsonl")
    folder = lesson_runs.run_folder(work, small_profile, pairs)
    assert lesson_runs.run_folder(work, small_profile, pairs) == folder
    other = small_profile.model_copy(update={"dpo": small_profile.dpo.model_copy(update={"beta": 0.2})})
    assert (
        len({folder, lesson_runs.run_folder(work, other, pairs), lesson_runs.run_folder(work, small_profile, [])}) == 3
    )


def test_margins_are_the_rewards_that_training_ended_with(small_run):
    root, profile, _ = small_run
    pairs = read_pairs(root / "pairs" / "pairs.jsonl")
    ended = lesson_runs.json.loads((root / "dpo" / "end.json").read_text())
    found = lesson_runs.margins(profile, root / "dpo" / "adapter", root / "sft" / "adapter", pairs, batch_size=3)
    expected = torch.tensor(ended["chosen"]) - torch.tensor(ended["rejected"])
    assert torch.allclose(found[: len(expected)], expected, atol=1e-3)
    assert len(found) == len(pairs)


def test_more_pairs_give_a_narrower_interval():
    few, many = lesson_runs.margin_lines(torch.linspace(-1, 2, 300)[torch.randperm(300)], (30, 300))
    width = [float(line.split("[")[1].split("]")[0].split(", ")[1]) for line in (few, many)]
    assert "30 pairs" in few
    assert "300 pairs" in many
    assert width[0] > width[1]


def test_pairs_from_outside_are_refused_in_one_line(small_profile):
    only_incidents(small_profile, "x")
    outside = small_profile.model_copy(update={"data": small_profile.data.model_copy(update={"pairs": "mine.jsonl"})})
    with pytest.raises(DpoKitError, match=r"mine\.jsonl.*use `dpo_kit evaluate`") as refused:
        only_incidents(outside, "dpo_kit evaluate")
    assert len(refused.value._render_traceback_()) == 1
    assert in_one_line(TrainingStopped("stopped"))._render_traceback_() == ["TrainingStopped: stopped"]
