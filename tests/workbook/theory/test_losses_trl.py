"""Every loss that TRL also has, against TRL's trainers: value and gradient, on ordinary and on extreme log-probs.

The trainers are real and run their own `_compute_loss`; only the model in front of them is a stand-in, which returns
the per-token log-probs that the test wants scored.
"""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from dpo_kit.workbook.theory.losses import LOSSES

PAIRS, PROMPT, ANSWER = 5, 3, 6
LENGTHS = torch.tensor([1, 6, 3, 2, 5, 4, 6, 1, 5, 2])  # chosen half, then rejected half
WIDTH = PROMPT + ANSWER - 1


@pytest.fixture(scope="module")
def tokenizer():
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", "why", "because", "no"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


@pytest.fixture(scope="module")
def tiny_model():
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=5, **shape))


@pytest.fixture(scope="module")
def dpo_trainer(tokenizer, tiny_model, tmp_path_factory):
    pairs = Dataset.from_list([{"prompt": "why", "chosen": " because", "rejected": " no"}])
    config = DPOConfig(output_dir=str(tmp_path_factory.mktemp("dpo")), use_cpu=True, precompute_ref_log_probs=True)
    return DPOTrainer(tiny_model, args=config, train_dataset=pairs, processing_class=tokenizer)


@pytest.fixture(scope="module")
def kto_trainer(tokenizer, tiny_model, tmp_path_factory):
    answers = [{"prompt": "why", "completion": " because", "label": True}, {"prompt": "why", "completion": " no"}]
    answers = Dataset.from_list([{"label": False, **answer} for answer in answers])
    config = KTOConfig(output_dir=str(tmp_path_factory.mktemp("kto")), use_cpu=True, precompute_ref_log_probs=True)
    return KTOTrainer(tiny_model, args=config, train_dataset=answers, processing_class=tokenizer)


class StandIn(torch.nn.Module):
    """A model whose answers' per-token log-probs are given."""

    def __init__(self, log_probs):
        super().__init__()
        self.log_probs = log_probs

    def forward(self, **_):
        zeros = torch.zeros_like(self.log_probs)
        return SimpleNamespace(log_probs=self.log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


def completion_mask():
    positions = torch.arange(PROMPT + ANSWER)
    return ((positions >= PROMPT) & (positions < PROMPT + LENGTHS.unsqueeze(1))).long()  # (2B, P + A)


def token_logps(kind, seed):
    """Per-token log-probs (2B, T - 1), zero outside the completions, as TRL's head returns them."""
    draw = torch.rand(2 * PAIRS, WIDTH, generator=torch.Generator().manual_seed(seed))
    scale = {"ordinary": 3.0, "extreme": 5000.0}[kind]
    return -draw * scale * completion_mask()[:, 1:]


def trl_loss_and_gradient(trainer, log_probs, ref_log_probs, **settings):
    for name, value in settings.items():
        owner = trainer if hasattr(trainer, name) else trainer.args
        setattr(owner, name, value)
    leaf = log_probs.clone().requires_grad_()
    chosen, rejected = ref_log_probs.sum(dim=1).chunk(2)
    mask = completion_mask()
    inputs = {"input_ids": mask, "attention_mask": mask, "completion_mask": mask}
    inputs |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    loss = trainer._compute_loss(StandIn(leaf), inputs, return_outputs=False)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def our_loss_and_gradient(loss_function, log_probs, ref_log_probs, **settings):
    leaf = log_probs.clone().requires_grad_()
    logps = (*leaf.sum(dim=1).chunk(2), *ref_log_probs.sum(dim=1).chunk(2))
    losses, *_ = loss_function(*logps, **settings)
    assert losses.shape == (PAIRS,)
    return losses.mean().detach(), torch.autograd.grad(losses.mean(), leaf)[0] * completion_mask()[:, 1:]


def assert_parity(trainer, ours, theirs, kind, seed=0, **our_settings):
    log_probs, ref_log_probs = token_logps(kind, seed), token_logps(kind, seed + 100)
    expected, expected_gradient = trl_loss_and_gradient(trainer, log_probs, ref_log_probs, **theirs)
    loss, gradient = our_loss_and_gradient(LOSSES[ours], log_probs, ref_log_probs, **our_settings)
    assert torch.isfinite(expected), "TRL itself overflows here: choose other inputs"
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient * completion_mask()[:, 1:], rtol=1e-6, atol=1e-6)


CHOSEN_LENGTHS, REJECTED_LENGTHS = LENGTHS.chunk(2)
BOTH = {"chosen_lengths": CHOSEN_LENGTHS, "rejected_lengths": REJECTED_LENGTHS}
# ours, TRL's name, what only ours is told
PAIRED = [
    ("dpo", "sigmoid", {}),
    ("hinge", "hinge", {}),
    ("ipo", "ipo", BOTH),
    ("length_normalised_dpo", "sigmoid_norm", BOTH),
    ("nca", "nca_pair", {}),
    ("bco", "bco_pair", {}),
    ("sppo", "sppo_hard", {}),
    ("apo_zero", "apo_zero", {}),
    ("apo_down", "apo_down", {}),
    ("sft", "sft", {"chosen_lengths": CHOSEN_LENGTHS}),
    ("aot", "aot", {}),
    ("aot_unpaired", "aot_unpaired", {}),
]
NEUTRAL = {"label_smoothing": 0.0, "f_divergence_type": "reverse_kl", "loss_weights": [1.0]}


@pytest.mark.parametrize("kind", ["ordinary", "extreme"])
@pytest.mark.parametrize("beta", [0.05, 0.5])
@pytest.mark.parametrize(("ours", "theirs", "extra"), PAIRED, ids=[row[1] for row in PAIRED])
def test_paired_loss_is_trls(dpo_trainer, ours, theirs, extra, beta, kind):
    settings = NEUTRAL | {"loss_types": [theirs], "beta": beta}
    for seed in range(3):
        assert_parity(dpo_trainer, ours, settings, kind, seed, beta=beta, **extra)


@pytest.mark.parametrize("kind", ["ordinary", "extreme"])
@pytest.mark.parametrize("smoothing", [0.01, 0.3])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("robust_dpo", "robust"), ("exo", "exo_pair"), ("aot", "aot"), ("aot_unpaired", "aot_unpaired")],
)
def test_smoothed_loss_is_trls(dpo_trainer, ours, theirs, smoothing, kind):
    settings = NEUTRAL | {"loss_types": [theirs], "beta": 0.1, "label_smoothing": smoothing}
    assert_parity(dpo_trainer, ours, settings, kind, beta=0.1, label_smoothing=smoothing)


@pytest.mark.parametrize("tau", [0.05, 0.5])
def test_discopop_is_trls(dpo_trainer, tau):
    settings = NEUTRAL | {"loss_types": ["discopop"], "beta": 0.1, "discopop_tau": tau}
    for seed in range(3):
        assert_parity(dpo_trainer, "discopop", settings, "ordinary", seed, beta=0.1, tau=tau)


def test_discopop_stays_finite_where_trls_does_not(dpo_trainer):
    log_probs, ref_log_probs = token_logps("extreme", 0), token_logps("extreme", 100)
    settings = NEUTRAL | {"loss_types": ["discopop"], "beta": 0.1, "discopop_tau": 0.05}
    theirs, _ = trl_loss_and_gradient(dpo_trainer, log_probs, ref_log_probs, **settings)
    ours, gradient = our_loss_and_gradient(LOSSES["discopop"], log_probs, ref_log_probs, beta=0.1)
    assert not torch.isfinite(theirs)
    assert torch.isfinite(ours)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.5])
@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"])
def test_f_dpo_is_trls(dpo_trainer, divergence, alpha):
    settings = NEUTRAL | {"loss_types": ["sigmoid"], "beta": 0.1}
    settings |= {"f_divergence_type": divergence, "f_alpha_divergence_coef": alpha}
    assert_parity(dpo_trainer, "f_dpo", settings, "ordinary", beta=0.1, divergence=divergence, alpha=alpha)


@pytest.mark.parametrize("kind", ["ordinary", "extreme"])
def test_rpo_of_equally_long_answers_is_trls_sigmoid_plus_sft(dpo_trainer, kind):
    """TRL's SFT term averages over the batch's tokens, RPO's over each answer's own: the same for equal lengths."""
    log_probs, ref_log_probs = (token_logps(kind, seed) for seed in (0, 100))
    equal = torch.full_like(CHOSEN_LENGTHS, 6)
    settings = NEUTRAL | {"loss_types": ["sigmoid"], "beta": 0.1}
    sigmoid, sigmoid_gradient = trl_loss_and_gradient(dpo_trainer, log_probs, ref_log_probs, **settings)
    settings |= {"loss_types": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}
    both, both_gradient = trl_loss_and_gradient(dpo_trainer, log_probs, ref_log_probs, **settings)
    # what the SFT term added, rescaled from TRL's mean number of chosen tokens to six
    scale = CHOSEN_LENGTHS.float().mean() / 6
    ours, gradient = our_loss_and_gradient(
        LOSSES["rpo"], log_probs, ref_log_probs, beta=0.1, alpha=0.5, chosen_lengths=equal
    )
    mask = completion_mask()[:, 1:]
    torch.testing.assert_close(ours, sigmoid + scale * (both - sigmoid), rtol=1e-6, atol=1e-6)
    expected = (sigmoid_gradient + scale * (both_gradient - sigmoid_gradient)) * mask
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_a_real_model_and_its_reference_give_trls_loss(dpo_trainer, tiny_model, seed):
    """End to end: token ids through the trainer's own model, log-probs gathered by hand from full logits."""
    torch.manual_seed(seed)
    reference = LlamaForCausalLM(tiny_model.config)
    mask, ids = completion_mask(), torch.randint(0, 5, (2 * PAIRS, PROMPT + ANSWER))

    def summed_logps(model):
        logps = model(input_ids=ids).logits[:, :-1].log_softmax(dim=-1)
        return (logps.gather(-1, ids[:, 1:, None]).squeeze(-1) * mask[:, 1:]).sum(dim=1)

    with torch.no_grad():
        logps = (*summed_logps(tiny_model).chunk(2), *summed_logps(reference).chunk(2))
    for name, value in (NEUTRAL | {"loss_types": ["sigmoid"], "beta": 0.3}).items():
        setattr(dpo_trainer, name, value)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": mask}
    inputs |= {"ref_chosen_logps": logps[2], "ref_rejected_logps": logps[3]}
    expected = dpo_trainer._compute_loss(dpo_trainer.model, inputs, return_outputs=False)
    losses, *_ = LOSSES["dpo"](*logps, beta=0.3)
    torch.testing.assert_close(losses.mean(), expected.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["ordinary", "extreme"])
@pytest.mark.parametrize("kl_shift", [-2.0, 3.0])
def test_kto_is_trls(kto_trainer, kind, kl_shift):
    log_probs, ref_log_probs = token_logps(kind, 0), token_logps(kind, 100)
    desirable = torch.arange(2 * PAIRS) % 3 > 0
    mask, leaf = completion_mask(), token_logps(kind, 0).requires_grad_()
    kto_trainer.calculate_KL = True
    kto_trainer.beta, kto_trainer.desirable_weight, kto_trainer.undesirable_weight = 0.2, 1.5, 0.5
    inputs = {"input_ids": mask, "attention_mask": mask, "completion_mask": mask, "label": desirable}
    inputs |= {f"KL_{name}": mask for name in ("input_ids", "attention_mask", "completion_mask")}
    inputs |= {"ref_logps": ref_log_probs.sum(dim=1), "ref_KL_logps": log_probs.sum(dim=1) - kl_shift}
    expected = kto_trainer._compute_loss(StandIn(leaf), inputs, return_outputs=False)
    expected_gradient = torch.autograd.grad(expected, leaf)[0]

    ours_leaf = log_probs.clone().requires_grad_()
    losses, _ = LOSSES["kto"](
        ours_leaf.sum(dim=1), ref_log_probs.sum(dim=1), desirable,
        kl=kl_shift, beta=0.2, desirable_weight=1.5, undesirable_weight=0.5,
    )  # fmt: skip
    torch.testing.assert_close(losses.mean().detach(), expected.detach(), rtol=1e-6, atol=1e-6)
    gradient = torch.autograd.grad(losses.mean(), ours_leaf)[0]
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=1e-6)


def reference_free(kind):
    """The four arguments of a reference-free loss, and the average log-probs that TRL's methods take."""
    sums = -torch.rand(2, PAIRS, generator=torch.Generator().manual_seed(3)) * {"ordinary": 30, "extreme": 1e4}[kind]
    lengths = torch.stack([CHOSEN_LENGTHS, REJECTED_LENGTHS])
    return sums.requires_grad_(), lengths


@pytest.mark.parametrize("kind", ["ordinary", "extreme"])
def test_orpos_odds_ratio_term_is_trls(kind):
    sums, lengths = reference_free(kind)
    averages = sums / lengths
    stand_in = SimpleNamespace(beta=0.4, accelerator=SimpleNamespace(device="cpu"))
    term, *_ = ORPOTrainer.odds_ratio_loss(stand_in, *averages)
    expected = -averages[0] - term  # TRL adds the chosen answer's NLL outside this method
    ours, *_ = LOSSES["orpo"](*sums, chosen_lengths=lengths[0], rejected_lengths=lengths[1], beta=0.4)
    assert_same_value_and_gradient(ours, expected, sums)


@pytest.mark.parametrize("kind", ["ordinary", "extreme"])
def test_simpo_is_trls(kind):
    sums, lengths = reference_free(kind)
    stand_in = SimpleNamespace(
        alpha=0.0, beta=2.5, simpo_gamma=0.7, loss_type="simpo", label_smoothing=0.0,
        accelerator=SimpleNamespace(device="cpu"),
    )  # fmt: skip
    expected, *_ = CPOTrainer.cpo_loss(stand_in, *(sums / lengths))
    ours, *_ = LOSSES["simpo"](*sums, chosen_lengths=lengths[0], rejected_lengths=lengths[1], beta=2.5, gamma=0.7)
    assert_same_value_and_gradient(ours, expected, sums)


def assert_same_value_and_gradient(ours, expected, leaf):
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), leaf, retain_graph=True)
    (gradient,) = torch.autograd.grad(ours.sum(), leaf)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=1e-6)
