"""The checks of notebook 05: what they want is what libraries make, and each plausible mistake gets its own hint."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from dpo_kit.training.branches import Branches
from dpo_kit.workbook.exercises import qlora_dpo as checks


def test_the_merge_that_is_wanted_is_pefts():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3, bias=False))
    weight = model[0].weight.detach().clone()
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=7, target_modules=["0"], init_lora_weights=False))
    layer = adapted.base_model.model[0]
    a, b = layer.lora_A["default"].weight.detach().clone(), layer.lora_B["default"].weight.detach().clone()
    merged = adapted.merge_and_unload()[0].weight.detach()
    assert torch.allclose(checks._merge(weight, a, b, 7.0), merged, atol=1e-6)


def test_the_saving_that_is_wanted_is_counted_by_the_fast_path():
    """Prompts of ones, answers that differ from their first token on: what is shared is the prompt alone."""
    lengths = [(8, 4, 20), (30, 9, 3), (5, 2, 2)]
    sides = [[1] * p + [2 + side] * n for side in (0, 1) for p, *answers in lengths for n in [answers[side]]]
    width = max(map(len, sides))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in sides])
    branches = Branches.of(ids, (ids > 0).long())
    assert checks._saving(lengths) == pytest.approx(ids.numel() / len(branches.owner))


def best(checkpoints, whole):
    return max((step for step, promised, found in checkpoints if whole(promised, found)), default=0)


def padded(rows):
    return 2 * len(rows) * max(p + max(c, r) for p, c, r in rows)


MERGE, NEWEST, SAVING = checks.check_merge, checks.check_newest, checks.check_saving
MISTAKES = [
    (MERGE, lambda w, a, b, alpha: w + alpha * b @ a, "alpha alone"),
    (MERGE, lambda w, a, b, alpha: w + b @ a, "is missing"),
    (MERGE, lambda w, a, b, alpha: w + alpha / len(b) * b @ a, "inner size"),
    (MERGE, lambda w, a, b, alpha: alpha / len(a) * b @ a, "only the change"),
    (MERGE, lambda w, a, b, alpha: w - alpha / len(a) * b @ a, "the sign"),
    (NEWEST, lambda c: max((step for step, *_ in c), default=0), "highest number is not enough"),
    (NEWEST, lambda c: next((s for s, p, f in reversed(c) if p == f), 0), "last in the list"),
    (NEWEST, lambda c: best(c, lambda p, f: all(p.get(k) == v for k, v in f.items())), "missing file"),
    (NEWEST, lambda c: best(c, lambda p, f: all(f.get(k) == v for k, v in p.items())), "nobody promised"),
    (NEWEST, lambda c: best(c, lambda p, f: set(p) == set(f)), "names are not enough"),
    (SAVING, lambda rows: sum(2 * p + c + r for p, c, r in rows) / sum(map(sum, rows)), "padding is missing"),
    (SAVING, lambda rows: padded(rows) / 2 / sum(map(sum, rows)), "two rows"),
    (SAVING, lambda rows: sum(map(sum, rows)) / padded(rows), "other way round"),
    (SAVING, lambda rows: padded(rows) / sum(2 * p + c + r for p, c, r in rows), "stands once"),
]


@pytest.mark.parametrize(("check", "answer", "word"), MISTAKES, ids=[f"{m[0].__name__}-{m[2]}" for m in MISTAKES])
def test_a_plausible_mistake_gets_its_own_hint(check, answer, word):
    verdict = check(answer)
    assert not verdict.passed
    assert verdict.message.startswith("not right:")
    assert word in verdict.message
