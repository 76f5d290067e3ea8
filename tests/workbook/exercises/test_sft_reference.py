"""The checks of notebook 03: what they want is what libraries make, and each plausible mistake gets its own hint."""

import bitsandbytes as bnb
import pytest
import torch
import torch.nn.functional as F

from dpo_kit.workbook.exercises import sft_reference as checks


def test_the_rounding_that_is_wanted_is_that_of_bitsandbytes():
    """One block of 64, without the second quantisation; the check's levels are rounded to four places."""
    block = torch.randn(64, generator=torch.Generator().manual_seed(3))
    packed, state = bnb.functional.quantize_4bit(block, blocksize=64, quant_type="nf4")
    assert torch.allclose(state.code, checks.LEVELS, atol=5e-5)
    stored = bnb.functional.dequantize_4bit(packed, state)
    assert torch.allclose(checks._rounding(block, state.code), stored, atol=1e-6)


def test_the_loss_that_is_wanted_is_cross_entropy_without_what_is_masked():
    draw = torch.Generator().manual_seed(2)
    logits, ids = torch.randn(2, 5, 7, generator=draw), torch.randint(0, 7, (2, 5), generator=draw)
    mask = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]]).bool()
    labels = ids.masked_fill(~mask, -100)
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert torch.allclose(checks._sft_loss(logits, ids, mask), expected)


def nearest(scaled, levels):
    return levels[(scaled[:, None] - levels).abs().argmin(dim=1)]


def logps(logits, ids):
    return logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]


ROUND, SIZE, LOSS = checks.check_rounding, checks.check_adapter_size, checks.check_sft_loss
MISTAKES = [
    (ROUND, lambda w, q: nearest(w / w.abs().max(), q), "scaled back"),
    (ROUND, nearest, "not scaled: divide"),
    (ROUND, lambda w, q: nearest(w / w.max(), q) * w.max(), "largest size"),
    (ROUND, lambda w, q: nearest(w / w.std(), q) * w.std(), "standard deviation"),
    (ROUND, lambda w, q: (w / w.abs().max() * 7).round() / 7 * w.abs().max(), "evenly spaced"),
    (SIZE, lambda layers, r: sum(i * o for i, o in layers), "frozen matrices"),
    (SIZE, lambda layers, r: sum(r * i * o for i, o in layers), "do not multiply"),
    (SIZE, lambda layers, r: sum(r * i for i, o in layers), "only A"),
    (SIZE, lambda layers, r: sum(r * o for i, o in layers), "only B"),
    (LOSS, lambda x, ids, m: logps(x, ids)[m[:, 1:]].mean(), "the sign"),
    (LOSS, lambda x, ids, m: -logps(x, ids).mean(), "prompt bears loss"),
    (LOSS, lambda x, ids, m: -x.log_softmax(-1).gather(2, ids[..., None])[..., 0][m].mean(), "next token"),
    (LOSS, lambda x, ids, m: -logps(x, ids)[m[:, :-1]].mean(), "off by one"),
    (LOSS, lambda x, ids, m: -((logps(x, ids) * m[:, 1:]).sum(1) / m.sum(1)).mean(), "rows' means"),
    (LOSS, lambda x, ids, m: -(logps(x, ids) * m[:, 1:]).sum(), "the sum over tokens"),
    (LOSS, lambda x, ids, m: -(logps(x, ids) * m[:, 1:]).mean(), "all positions"),
]


@pytest.mark.parametrize(("check", "answer", "word"), MISTAKES, ids=[f"{m[0].__name__}-{m[2]}" for m in MISTAKES])
def test_a_plausible_mistake_gets_its_own_hint(check, answer, word):
    verdict = check(answer)
    assert not verdict.passed
    assert verdict.message.startswith("not right:")
    assert word in verdict.message
