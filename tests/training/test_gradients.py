"""The check that compares training's gradient with an independent one notices every kind of wrong gradient."""

import bitsandbytes as bnb
import pytest
import torch

from dpo_kit.errors import DpoKitError
from dpo_kit.jsonl import read_pairs
from dpo_kit.models.quantization import plain_products, quantized_layers
from dpo_kit.training import branches, dpo, fast, token_scores
from dpo_kit.training.dpo import dpo_trainer
from dpo_kit.training.fast import AdaptedLinear, compare_gradients, select_rows, trained_gradients
from dpo_kit.training.guards import PROBED, _few_tokens, check_gradients
from dpo_kit.training.sft import sft_trainer
from dpo_kit.training.trainers import GuardedTrainer
from dpo_kit.triage.demonstrations import Noise, demonstrate


@pytest.fixture(scope="module")
def build(small_run, incidents, tmp_path_factory):
    """A fresh trainer: "fast" and "stock" for DPO on either forward, "sft"; each in fp32 or bf16."""
    work, profile, _ = small_run
    pairs = read_pairs(work / "pairs" / "pairs.jsonl")

    def built(kind, dtype="float32"):
        folder = tmp_path_factory.mktemp(kind)
        typed = profile.model_copy(update={"model": profile.model.model_copy(update={"compute_dtype": dtype})})
        if kind == "sft":
            return sft_trainer(typed, incidents[:16], demonstrate(incidents[:16], Noise(), 0), folder, 0)
        with pytest.MonkeyPatch.context() as patch:
            if kind == "stock":
                for module in (fast, dpo):
                    patch.setattr(module, "unsupported_reason", lambda model: "it is not wanted in this test")
            return dpo_trainer(typed, pairs, work / "sft" / "adapter", folder, 0)

    return built


@pytest.fixture(scope="module")
def trainers(build):
    return {kind: build(kind) for kind in ("fast", "stock", "sft")}


# ---- where nothing is wrong -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fast", "stock", "sft"])
def test_training_computes_the_gradient_of_an_independent_path(trainers, kind):
    trainer = trainers[kind]
    trainer.model.eval()
    state, metrics = forwards(trainer), dict(trainer._metrics["train"])
    assert check_gradients(trainer) == pytest.approx(1, abs=1e-4)
    assert not trainer.model.training, "the mode is as it was"
    assert all(p.grad is None for p in trainer.model.parameters()), "no gradient is left behind"
    assert forwards(trainer) == state, "the forward that training uses is the one of before"
    assert trainer._metrics["train"] == metrics, "nothing was logged"


def forwards(trainer):
    """Which attention the model uses, and which of its layers have a forward that is not their class's."""
    changed = [name for name, module in trainer.model.named_modules() if "forward" in vars(module)]
    return trainer.model.config._attn_implementation, changed


@pytest.mark.parametrize("kind", ["fast", "sft"])
def test_in_bf16_it_differs_by_rounding_and_is_not_refused(build, kind):
    trainer, modes = build(kind, "bfloat16"), []
    trainer.model.register_forward_pre_hook(
        lambda *_: modes.append((torch.is_autocast_enabled("cpu"), trainer.model.training))
    )
    assert 0.99 < check_gradients(trainer) < 1 + 1e-4
    assert modes == [(True, True), (False, False), (True, True)], (
        "in training's modes, but for the one token in between"
    )


def test_both_paths_are_what_they_are_called(trainers, monkeypatch):
    """The fast path uses `AdaptedLinear`; the independent one uses neither that nor bitsandbytes' products."""
    used = []
    for owner, name in ((AdaptedLinear, "forward"), (bnb.nn.Linear4bit, "forward"), (fast, "_score_pairs")):
        own = getattr(owner, name)
        spy = lambda *args, own=own, name=(owner, name), **options: used.append(name) or own(*args, **options)  # noqa: E731
        monkeypatch.setattr(owner, name, staticmethod(spy) if owner is AdaptedLinear else spy)
    trainer = trainers["fast"]
    batch = select_rows(trainer.probe_batch(), [0])
    trainer.sequence_logps(batch)
    assert set(used) == {(AdaptedLinear, "forward"), (fast, "_score_pairs")}
    used.clear()
    with trainer.stock_forward(), plain_products(trainer.model):
        trainer.sequence_logps(batch)
    assert not used


@pytest.mark.parametrize(("shared", "answer"), [(500, 7), (500, 300), (3, 300), (0, 4)])
def test_the_few_tokens_hold_the_first_difference_of_a_pair(shared, answer):
    """Up to there the gradients of chosen and rejected cancel; a long prompt must not push it out."""
    ids = torch.zeros(2, shared + answer, dtype=torch.long)
    ids[0, shared:], ids[1, shared:] = 1, 2
    few = _few_tokens({"input_ids": ids, "completion_mask": torch.ones_like(ids), "ref_chosen_logps": torch.ones(1)})
    assert set(few) == {"input_ids", "completion_mask"}
    assert few["input_ids"].shape[1] <= PROBED
    assert (few["input_ids"][0] != few["input_ids"][1]).any()


def test_the_few_tokens_of_a_demonstration_hold_its_beginning():
    labels = torch.full((1, 900), -100)
    labels[0, 700:] = 5
    few = _few_tokens({"input_ids": torch.zeros_like(labels), "labels": labels})
    assert few["labels"].shape == (1, PROBED)
    assert 0 < (few["labels"] != -100).sum() < PROBED


# ---- where something is -----------------------------------------------------------------------------------------


def spoil_hidden(function, layers=None):
    """A backward of `AdaptedLinear` whose gradient at the hidden states goes through `function`, in some layers."""
    right = AdaptedLinear.backward

    def backward(ctx, gradient):
        hidden, *rest = right(ctx, gradient)
        spoilt = hidden is not None and (layers is None or ctx.base in layers)  # embeddings are frozen
        return (function(hidden) if spoilt else hidden), *rest

    return staticmethod(backward)


@pytest.mark.parametrize("cut", [torch.zeros_like, lambda g: 0.06 * g], ids=["to nothing", "to a twentieth"])
def test_a_gradient_that_is_cut_in_the_fast_path_is_found(trainers, monkeypatch, cut):
    monkeypatch.setattr(AdaptedLinear, "backward", spoil_hidden(cut))
    with pytest.raises(DpoKitError, match="training does not compute the gradient that dequantised weights give"):
        check_gradients(trainers["fast"])


@pytest.mark.parametrize("number", [0, 3])
def test_a_cut_in_a_single_layer_is_found_early_or_late(trainers, monkeypatch, number):
    layer = trainers["fast"].model.get_base_model().model.layers[number].mlp.down_proj.get_base_layer()
    monkeypatch.setattr(AdaptedLinear, "backward", spoil_hidden(torch.zeros_like, {layer}))
    with pytest.raises(DpoKitError, match=r"layers\.\d\..* has cosine"):
        check_gradients(trainers["fast"])


def test_every_layer_is_compared_not_the_lowest_alone(trainers, monkeypatch):
    """The gradient of one adapter in the last layer is wrong; those of all others are right."""
    layer = trainers["fast"].model.get_base_model().model.layers[3].mlp.down_proj.get_base_layer()
    right = AdaptedLinear.backward

    def backward(ctx, gradient):
        dx, _, da, db, _ = right(ctx, gradient)
        return (dx, None, 2 * da, 2 * db, None) if ctx.base is layer else (dx, None, da, db, None)

    monkeypatch.setattr(AdaptedLinear, "backward", staticmethod(backward))
    with pytest.raises(DpoKitError, match=r"layers\.3\.mlp\.down_proj has cosine 1\.000 and relative length 2\.000"):
        check_gradients(trainers["fast"])


def test_a_wrong_gradient_of_attention_or_of_the_head_is_found(trainers, monkeypatch):
    for function, field in ((branches.Attention, 2), (token_scores.ScoreTokens, 0)):
        right = function.backward

        def wrong(ctx, *gradients, right=right, field=field):
            found = list(right(ctx, *gradients))
            found[field] = 0.5 * found[field]
            return tuple(found)

        with monkeypatch.context() as patch:
            patch.setattr(function, "backward", staticmethod(wrong))
            with pytest.raises(DpoKitError, match="does not compute the gradient"):
                check_gradients(trainers["fast"])
    check_gradients(trainers["fast"])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(lambda g: 2 * g, r"cosine 1\.000 and relative length 2\.000"), (lambda g: g.flip(0), r"relative length 1\.000")],
    ids=["right direction, wrong length", "right length, wrong direction"],
)
def test_direction_and_length_are_both_compared(trainers, monkeypatch, spoil, said):
    right = AdaptedLinear.backward

    def backward(ctx, gradient):
        hidden, _, by_a, by_b, _ = right(ctx, gradient)
        return hidden, None, spoil(by_a), spoil(by_b), None

    monkeypatch.setattr(AdaptedLinear, "backward", staticmethod(backward))
    with pytest.raises(DpoKitError, match=said):
        check_gradients(trainers["fast"])


@pytest.mark.parametrize("kind", ["sft", "stock"])
def test_without_keep_gradients_the_check_fails_where_the_cpu_repacks_weights(build, kind):
    if not bnb.functional.has_avx512bf16():
        pytest.skip("this CPU has no AVX512-bf16: bitsandbytes repacks nothing here; the next test cuts by hand")
    trainer = build(kind)
    for layer in quantized_layers(trainer.model):
        layer.support_avx512bf16_for_cpu = True
    with pytest.raises(DpoKitError, match=r"does not compute the gradient.*unless keep_gradients\(model\)"):
        check_gradients(trainer)
    with pytest.raises(DpoKitError, match="repacked for inference"):
        check_gradients(trainer)


def test_weights_that_were_repacked_are_refused_on_the_fast_path_too(build):
    if not bnb.functional.has_avx512bf16():
        pytest.skip("this CPU has no AVX512-bf16: bitsandbytes repacks nothing here")
    trainer = build("fast")
    for layer in quantized_layers(trainer.model):
        layer.support_avx512bf16_for_cpu = True
    with pytest.raises(DpoKitError, match="repacked for inference"):
        check_gradients(trainer)


@pytest.mark.parametrize("always", [True, False], ids=["from the start", "after a forward in eval mode"])
@pytest.mark.parametrize("kind", ["sft", "stock"])
def test_4_bit_layers_that_drop_their_gradient_are_found_on_any_machine(trainers, kind, always, monkeypatch):
    right, seen = bnb.nn.Linear4bit.forward, {"cut": always}

    def cut(self, x):
        seen["cut"] |= not self.training
        result = right(self, x)
        return result.detach() if seen["cut"] else result

    monkeypatch.setattr(bnb.nn.Linear4bit, "forward", cut)
    with pytest.raises(DpoKitError, match="does not compute the gradient"):
        check_gradients(trainers[kind])


def test_no_gradient_at_all_is_no_agreement(trainers, monkeypatch):
    right = GuardedTrainer.sequence_logps
    monkeypatch.setattr(GuardedTrainer, "sequence_logps", lambda self, row: 0 * right(self, row))
    with pytest.raises(DpoKitError, match="all gradients are zero"):
        check_gradients(trainers["sft"])


# ---- the comparison ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cosine", "length", "exact", "coarse"),
    [
        (1.0, 1.0, True, True), (0.995, 1.0, False, True), (1.0, 1.05, False, True), (1.0, 0.95, False, True),
        (0.8, 1.0, False, False), (1.0, 1.5, False, False), (1.0, 0.5, False, False), (-1.0, 1.0, False, False),
        (1.0, 0.0, False, False), (1.0, float("inf"), False, False), (1.0, float("nan"), False, False),
    ],
)  # fmt: skip
def test_direction_alone_and_length_alone_decide(cosine, length, exact, coarse):
    expected = torch.tensor([3.0, 4.0])
    found = length * (cosine * expected + (1 - cosine**2) ** 0.5 * torch.tensor([-4.0, 3.0]))
    for rounding, holds in ((True, exact), (False, coarse)):
        lowest, wrong = compare_gradients({"layer": found}, {"layer": expected}, rounding)
        assert (wrong is None) == holds
        assert not holds or lowest == pytest.approx(cosine)


def test_gradients_are_compared_layer_by_layer():
    """A wrong layer shows beside a right one of a thousand times its length; zero on one side is no agreement."""
    x, y, zero = torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0]), torch.zeros(2)

    def compare(*pairs):
        found, expected = ({str(n): pair[side] for n, pair in enumerate(pairs)} for side in (0, 1))
        return compare_gradients(found, expected, exact=False)

    right = (1000 * x, 1000 * x)
    assert compare(right, (zero, zero)) == (pytest.approx(1), None)
    lowest, wrong = compare(right, (y, x), (x, -x), right)
    assert lowest == pytest.approx(-1)
    assert "gradient of 2 has cosine -1.000" in wrong, "that of 1 has (4 * 3 + 3 * 4) / 25 = .96, as bf16 may have"
    for one_sided in ((zero, x), (x, zero)):
        assert "gradient of 1 has" in compare(right, one_sided, right)[1]


def test_an_adapters_two_matrices_are_one_layers_and_unused_weights_have_gradient_zero():
    lora = {"lora_A": torch.nn.Linear(2, 1, bias=False), "lora_B": torch.nn.Linear(1, 2, bias=False)}
    model = torch.nn.ModuleDict({"q": torch.nn.ModuleDict(lora), "unused": torch.nn.Linear(1, 1, bias=False)})
    value = model["q"]["lora_B"](model["q"]["lora_A"](torch.ones(2))).sum()
    a, b = model["q"]["lora_A"].weight[0], model["q"]["lora_B"].weight[:, 0]
    found = trained_gradients(model, value)
    # value = (b1 + b2)(a1 + a2): by A it is (b1 + b2) twice, by B it is (a1 + a2) twice
    expected = torch.stack([b.sum(), b.sum(), a.sum(), a.sum()])
    torch.testing.assert_close(found["q"], expected.detach())
    assert found["unused.weight"].tolist() == [0]
