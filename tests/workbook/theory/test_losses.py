"""The losses against worked numbers, finite differences, and what must always hold."""

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_kit.workbook.theory import losses
from dpo_kit.workbook.theory.descent import minimise
from dpo_kit.workbook.theory.divergences import F_DIVERGENCES
from dpo_kit.workbook.theory.losses import LOSSES

UNPAIRED = {"kto"}
REFERENCE_FREE = {"orpo", "simpo"}
PAIRED = sorted(set(LOSSES) - UNPAIRED - REFERENCE_FREE)
BATCH = 4


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def needed(name, lengths=(3, 2, 5, 1)):
    """The keyword arguments that the loss cannot do without."""
    offered = {"chosen_lengths": torch.tensor(lengths), "rejected_lengths": torch.tensor(lengths).flip(0)}
    parameters = inspect.signature(LOSSES[name]).parameters
    return {key: value for key, value in offered.items() if key in parameters and name != "ipo"}


def logps(*values, dtype=torch.float64):
    return [torch.tensor([value], dtype=dtype) for value in values]


# One pair, worked by hand: h_w = -4 + 6 = 2, h_l = -7 + 6 = -1, so with beta = 0.5 the rewards are 1 and -0.5 and
# the margin is 1.5.
WORKED = (-4.0, -7.0, -6.0, -6.0)
LENGTHS = {"chosen_lengths": torch.tensor([4]), "rejected_lengths": torch.tensor([2])}
M = -math.log(sigmoid(1.5))
WORKED_VALUES = {
    "dpo": (M, {}),
    # one label in five is taken to be wrong
    "cdpo": (0.8 * M - 0.2 * math.log(sigmoid(-1.5)), {"label_smoothing": 0.2}),
    "robust_dpo": ((0.8 * M + 0.2 * math.log(sigmoid(-1.5))) / 0.6, {"label_smoothing": 0.2}),
    # f' = 1 - 1/t: 1 - e^-2 and 1 - e^1, times 0.5
    "f_dpo": (-math.log(sigmoid(0.5 * ((1 - math.exp(-2)) - (1 - math.e)))), {"divergence": "forward_kl"}),
    "ipo": ((3 - 1) ** 2, {}),
    "hinge": (0.0, {}),
    "rpo": (M + 2 * 4.0 / 4, {"alpha": 2.0, "chosen_lengths": LENGTHS["chosen_lengths"]}),
    # 2/4 - (-1)/2 = 1
    "length_normalised_dpo": (-math.log(sigmoid(0.5)), LENGTHS),
    "exo": (
        sigmoid(1.5) * math.log(sigmoid(1.5) / 0.9) + sigmoid(-1.5) * math.log(sigmoid(-1.5) / 0.1),
        {"label_smoothing": 0.1},
    ),
    "nca": (-math.log(sigmoid(1)) - 0.5 * math.log(sigmoid(-1)) - 0.5 * math.log(sigmoid(0.5)), {}),
    "bco": (-math.log(sigmoid(1)) - math.log(sigmoid(0.5)), {}),
    "sppo": ((2 - 1) ** 2 + (-1 + 1) ** 2, {}),
    "aot": (M, {}),
    "aot_unpaired": (M, {}),
    "apo_zero": (1 - sigmoid(1) + sigmoid(-0.5), {}),
    "apo_down": (sigmoid(1) + 1 - sigmoid(1.5), {}),
    # tau = 1: s = sigmoid(1.5)
    "discopop": ((1 - sigmoid(1.5)) * M + sigmoid(1.5) * math.exp(-1.5), {"tau": 1.0}),
    "sft": (4.0 / 4, {"chosen_lengths": LENGTHS["chosen_lengths"]}),
    # -log pi(y_w) + 0.5 log pi(y_l)
    "negative_preference": (4 - 3.5, {"weight": 0.5}),
}


def test_every_paired_loss_has_a_worked_value():
    assert sorted(WORKED_VALUES) == PAIRED


@pytest.mark.parametrize("name", PAIRED)
def test_worked_value(name):
    expected, extra = WORKED_VALUES[name]
    values, chosen_rewards, rejected_rewards = LOSSES[name](*logps(*WORKED), beta=0.5, **extra)
    assert values.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    if name != "f_dpo":  # whose reward is beta f'
        assert (chosen_rewards.item(), rejected_rewards.item()) == (1.0, -0.5)


def test_ipo_with_lengths_is_another_loss_than_the_papers():
    """Per token the gap is 2/4 - (-1)/2 = 1, which at beta = 0.5 is exactly the target 1/(2 beta) = 1."""
    per_token, *_ = LOSSES["ipo"](*logps(*WORKED), beta=0.5, **LENGTHS)
    whole, *_ = LOSSES["ipo"](*logps(*WORKED), beta=0.5)
    assert (per_token.item(), whole.item()) == (0.0, 4.0)


def test_orpo_worked_value():
    """Averages -1 and -3.5; the odds of e^a are e^a / (1 - e^a)."""
    odds = [math.exp(a) / (1 - math.exp(a)) for a in (-1.0, -3.5)]
    expected = 1.0 - 0.5 * math.log(sigmoid(math.log(odds[0] / odds[1])))
    values, *_ = LOSSES["orpo"](*logps(*WORKED[:2]), beta=0.5, **LENGTHS)
    assert values.item() == pytest.approx(expected, rel=1e-12)


def test_simpo_worked_value():
    """2 (-1 + 3.5) - 1.5 = 3.5."""
    values, *_ = LOSSES["simpo"](*logps(*WORKED[:2]), beta=2.0, gamma=1.5, **LENGTHS)
    assert values.item() == pytest.approx(-math.log(sigmoid(3.5)), rel=1e-12)


def test_kto_worked_value():
    """h = 2 liked and h = -1 disliked, kl = 0.5, beta = 0.5: arguments 0.75 and 0.75, weights 1 and 3."""
    policy, ref = torch.tensor([-4.0, -7.0]), torch.tensor([-6.0, -6.0])
    values, rewards = LOSSES["kto"](policy, ref, torch.tensor([True, False]), kl=0.5, beta=0.5, undesirable_weight=3.0)
    assert values.tolist() == pytest.approx([sigmoid(-0.75), 3 * sigmoid(-0.75)])
    assert rewards.tolist() == [1.0, -0.5]


def test_kto_never_lets_the_kl_be_negative():
    policy, ref, good = torch.tensor([-4.0]), torch.tensor([-6.0]), torch.tensor([True])
    assert torch.equal(LOSSES["kto"](policy, ref, good, kl=-5.0)[0], LOSSES["kto"](policy, ref, good, kl=0.0)[0])


@pytest.mark.parametrize("name", ["dpo", "cdpo", "ipo", "length_normalised_dpo", "hinge"])
def test_a_policy_that_is_its_reference_has_the_loss_of_no_margin(name):
    expected = {"ipo": 25.0, "hinge": 1.0}.get(name, math.log(2))  # 1/(2 * 0.1) = 5, squared
    same = [torch.randn(BATCH, dtype=torch.float64)] * 2
    values, chosen, rejected = LOSSES[name](*same, *same, beta=0.1, **needed(name))
    torch.testing.assert_close(values, torch.full_like(values, expected))
    assert not chosen.any()
    assert not rejected.any()


finite_logps = st.lists(st.floats(-200, 0), min_size=BATCH, max_size=BATCH).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)
four = st.tuples(finite_logps, finite_logps, finite_logps, finite_logps)


@given(four)
@settings(max_examples=40)
def test_swapping_chosen_and_rejected_negates_the_margin(batch):
    chosen, rejected, ref_chosen, ref_rejected = batch
    values, *rewards = LOSSES["dpo"](*batch)
    swapped_values, *swapped = LOSSES["dpo"](rejected, chosen, ref_rejected, ref_chosen)
    margin = rewards[0] - rewards[1]
    torch.testing.assert_close(swapped[0] - swapped[1], -margin)
    # log sigmoid(m) - log sigmoid(-m) = m
    torch.testing.assert_close(swapped_values - values, margin, rtol=1e-9, atol=1e-9)


@given(four, st.floats(-50, 50))
@settings(max_examples=40)
def test_prompt_tokens_in_the_sum_move_rewards_but_not_the_loss(batch, prompt_logp):
    """A mask that takes in the prompt adds the same log-prob to both answers; only rewards can tell."""
    chosen, rejected, *_ = batch
    values, reward, _ = LOSSES["dpo"](*batch)
    leaked_values, leaked_reward, _ = LOSSES["dpo"](chosen + prompt_logp, rejected + prompt_logp, *batch[2:])
    torch.testing.assert_close(leaked_values, values, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(leaked_reward - reward, torch.full_like(reward, 0.1 * prompt_logp))


@given(st.sampled_from(PAIRED), four)
@settings(max_examples=120)
def test_a_batch_is_its_examples_one_by_one(name, batch):
    """Nothing is reduced. The sorted losses and the token mean of SFT do look at the whole batch, and say so."""
    if name in {"aot", "aot_unpaired", "sft"}:
        return
    extra = needed(name)
    values, *_ = LOSSES[name](*batch, **extra)
    for i in range(BATCH):
        single, *_ = LOSSES[name](*(part[i : i + 1] for part in batch), **{k: v[i : i + 1] for k, v in extra.items()})
        torch.testing.assert_close(single, values[i : i + 1])


@given(st.floats(0.05, 5))
@settings(max_examples=20)
def test_ipos_minimum_is_at_half_over_tau(tau):
    def loss(gap):
        return LOSSES["ipo"](gap, gap * 0, gap * 0, gap * 0, beta=tau)[0].sum()

    gap = minimise(loss, torch.zeros(1, dtype=torch.float64))
    assert gap.item() == pytest.approx(1 / (2 * tau), rel=1e-6)


@given(st.floats(0.02, 0.45), st.floats(0.2, 2))
@settings(max_examples=20)
def test_cdpos_minimum_is_at_the_logit_of_the_label_noise(epsilon, beta):
    def loss(gap):
        return LOSSES["cdpo"](gap, gap * 0, gap * 0, gap * 0, beta=beta, label_smoothing=epsilon)[0].sum()

    gap = minimise(loss, torch.zeros(1, dtype=torch.float64))
    assert beta * gap.item() == pytest.approx(math.log((1 - epsilon) / epsilon), rel=1e-4)


@given(four, st.floats(0, 0.45))
@settings(max_examples=40)
def test_robust_dpo_averaged_over_flipped_labels_is_clean_dpo(batch, epsilon):
    chosen, rejected, ref_chosen, ref_rejected = batch
    clean, *_ = LOSSES["dpo"](*batch)
    kept, *_ = LOSSES["robust_dpo"](*batch, label_smoothing=epsilon)
    flipped, *_ = LOSSES["robust_dpo"](rejected, chosen, ref_rejected, ref_chosen, label_smoothing=epsilon)
    torch.testing.assert_close((1 - epsilon) * kept + epsilon * flipped, clean, rtol=1e-8, atol=1e-8)


def test_dpos_gradient_weighs_a_pair_by_how_wrongly_it_is_ordered():
    """d loss / d log pi(y_w) = -beta sigmoid(-m): beta at m = -20, half of it at 0, nothing at 20."""
    chosen = torch.tensor([-200.0, 0.0, 200.0], dtype=torch.float64, requires_grad=True)
    rest = [torch.zeros(3, dtype=torch.float64)] * 3
    LOSSES["dpo"](chosen, *rest, beta=0.1)[0].sum().backward()
    assert chosen.grad.tolist() == pytest.approx([-0.1 * sigmoid(20), -0.05, -0.1 * sigmoid(-20)])


def test_the_negative_preference_term_has_no_floor():
    fallen = [LOSSES["negative_preference"](*logps(-1.0, -depth, -1.0, -1.0))[0].item() for depth in (10, 100, 1000)]
    assert fallen == [-9.0, -99.0, -999.0]


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_gradients_agree_with_finite_differences_and_so_do_second_derivatives(name):
    torch.manual_seed(3)
    inputs = [(-10 * torch.rand(BATCH, dtype=torch.float64) - 0.1).requires_grad_() for _ in range(4)]
    extra = needed(name)
    if name == "kto":
        inputs, extra = inputs[:2], {"desirable": torch.tensor([True, False, True, False]), "kl": 0.3}
    if name in REFERENCE_FREE:
        inputs = inputs[:2]

    def value(*parts):
        return LOSSES[name](*parts, **extra)[0]

    assert torch.autograd.gradcheck(value, inputs)
    if name not in {"hinge", "aot", "aot_unpaired"}:
        assert torch.autograd.gradgradcheck(value, inputs)


def extreme_batches(dtype):
    low, high = torch.full((BATCH,), -1e4, dtype=dtype), torch.zeros(BATCH, dtype=dtype)
    for bits in range(16):
        yield [low if bits >> i & 1 else high for i in range(4)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_finite_at_log_probs_of_minus_ten_thousand(name, dtype):
    for batch in extreme_batches(dtype):
        leaves, extra = [part.clone().requires_grad_() for part in batch], needed(name)
        if name == "kto":
            leaves, extra = leaves[:2], {"desirable": torch.tensor([True, False, True, False]), "kl": 1e4}
        if name in REFERENCE_FREE:
            leaves = leaves[:2]
        values = LOSSES[name](*leaves, **extra)[0]
        values.sum().backward()
        assert values.dtype == torch.float32, "bf16 would swallow the difference the loss is about"
        assert values.isfinite().all()
        assert all(leaf.grad is None or leaf.grad.isfinite().all() for leaf in leaves)


@pytest.mark.parametrize("divergence", sorted(F_DIVERGENCES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_f_divergence_is_finite_too(divergence, dtype):
    for batch in extreme_batches(dtype):
        assert LOSSES["f_dpo"](*batch, divergence=divergence)[0].isfinite().all()


def test_small_differences_of_long_answers_survive_bf16_rewards():
    """-1000 and -1004 are both bf16 numbers; their difference must not be rounded again."""
    pair = logps(-1000.0, -1004.0, -1004.0, -1000.0, dtype=torch.bfloat16)
    _, chosen, rejected = LOSSES["dpo"](*pair, beta=0.1)
    assert (chosen.item(), rejected.item()) == pytest.approx((0.4, -0.4))


@pytest.mark.parametrize(
    ("name", "setting"),
    [("robust_dpo", {"label_smoothing": 0.5}), ("exo", {"label_smoothing": 0.0}), ("discopop", {"tau": 2.0})],
)
def test_settings_without_a_meaning_are_refused(name, setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        LOSSES[name](*logps(*WORKED), **setting)


def test_the_dict_lists_every_loss_of_the_module():
    public = {name.removesuffix("_loss") for name in vars(losses) if name.endswith("_loss") and name[0] != "_"}
    assert public == set(LOSSES)
