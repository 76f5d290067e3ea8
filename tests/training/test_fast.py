"""The fast path gives TRL's numbers: log-probs, losses, metrics and gradients, whatever the batch looks like."""

import copy
import re
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen3Config
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from trl import DPOConfig, DPOTrainer

from dpo_kit.profiles import ROOT
from dpo_kit.training import fast as module
from dpo_kit.training.branches import Branches
from dpo_kit.training.fast import AdaptedLinear, FastDPOTrainer, disagreement, unsupported_reason
from dpo_kit.training.token_scores import ScoreTokens, score

SHAPE = {
    "vocab_size": 1024, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1, "max_position_embeddings": 128,
}  # fmt: skip
MAX_LENGTH = 40
LOSSES = [
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ROOT / "data" / "tiny-base")


@pytest.fixture(scope="module")
def rows():
    """Pairs that are awkward: the numbers are the lengths of prompt, chosen and rejected."""
    draw = torch.Generator().manual_seed(0)

    def ids(n):
        return torch.randint(5, 1000, (n,), generator=draw).tolist()

    lengths = {
        "ordinary": (10, 5, 7), "prompt of one token": (1, 3, 20), "chosen much longer": (6, 30, 2),
        "no prompt": (0, 4, 5), "cut off": (30, 20, 15), "rejected empty": (12, 4, 0),
        "prompt fills the length": (39, 6, 3), "nothing left after cutting": (40, 5, 5),
    }  # fmt: skip
    made = [{"prompt_ids": ids(p), "chosen_ids": ids(c), "rejected_ids": ids(r)} for p, c, r in lengths.values()]
    alike = ids(6)
    made.append({"prompt_ids": ids(5), "chosen_ids": [*alike, *ids(3)], "rejected_ids": [*alike, *ids(5)]})
    made.append({"prompt_ids": ids(5), "chosen_ids": alike, "rejected_ids": [*alike, *ids(2)]})
    return made


def trainer(kind, tokenizer, mode, *, checkpointing=False, shape=None, **options):
    """One of the two trainers on the same random weights: `mode` is "adapter", "ref adapter" or "full"."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(shape or LlamaConfig(**SHAPE), dtype=options.pop("dtype", torch.float32))
    reference = None
    if mode == "full":
        reference = copy.deepcopy(model)
        for parameter in reference.parameters():
            parameter.data += 0.01 * torch.randn_like(parameter)
    else:
        lora = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False, **options.pop("lora", {})}
        model = get_peft_model(model, LoraConfig(**lora))
    names = ("max_tokens", "reference_cache", "checkpoint_layers")
    own = {name: options.pop(name) for name in names if name in options}
    made = kind(
        model, reference,
        DPOConfig(
            output_dir="unused", per_device_train_batch_size=4, max_length=MAX_LENGTH, use_cpu=True,
            bf16=options.pop("bf16", False),
            gradient_checkpointing=checkpointing, disable_tqdm=True, logging_steps=1, save_strategy="no",
            label_smoothing=0.1, learning_rate=3e-3,
            discopop_tau=1.0,  # the default 0.05 multiplies the rounding of log-probs by twenty
            **options,
        ),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}] * 4),
        processing_class=tokenizer, **own,
    )  # fmt: skip
    if mode == "adapter":  # the reference is then the base with its adapters off
        made.model.delete_adapter("ref")
    elif mode == "ref adapter":
        for name, parameter in made.model.named_parameters():
            if ".ref." in name:
                parameter.data += 0.05 * torch.randn(
                    parameter.shape, generator=torch.Generator().manual_seed(len(name))
                )
    made.current_gradient_accumulation_steps = 1
    return made


def step(made, batch):
    """Loss, gradients and metrics of one training step without an update."""
    made.model.zero_grad()
    made.model.train()
    made._metrics["train"].clear()
    made._total_train_tokens = 0
    loss = made.training_step(made.model, {name: tensor.clone() for name, tensor in batch.items()})
    gradients = {name: p.grad.clone() for name, p in made.model.named_parameters() if p.grad is not None}
    return loss.item(), gradients, {name: values[-1] for name, values in made._metrics["train"].items()}


def assert_same_step(stock, fast, batch):
    (loss, gradients, metrics), (fast_loss, fast_gradients, fast_metrics) = step(stock, batch), step(fast, batch)
    assert fast_loss == pytest.approx(loss, rel=1e-5, abs=1e-5)
    assert fast_gradients.keys() == gradients.keys()
    assert fast_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-4)
    total = torch.cat([g.flatten() for g in gradients.values()])
    difference = torch.cat([(fast_gradients[name] - g).flatten() for name, g in gradients.items()])
    assert difference.norm() <= 1e-5 * total.norm()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("mode", ["adapter", "ref adapter", "full"])
def test_every_loss_has_trls_value_gradient_and_metrics(tokenizer, rows, mode, checkpointing):
    stock = trainer(DPOTrainer, tokenizer, mode, checkpointing=checkpointing)
    whole, cut = (
        trainer(FastDPOTrainer, tokenizer, mode, checkpointing=checkpointing, max_tokens=budget)
        for budget in (None, 90)
    )
    assert whole.stock_reason is None
    batch = stock.data_collator(rows)
    sizes = [len(group) for group in cut._groups(batch)]
    assert len(sizes) > 2, "the budget must cut this batch"
    assert len(set(sizes)) > 1, "groups of one size would have weights 1 / groups as well as n_i / N"
    for loss in LOSSES:
        for made in (stock, whole, cut):
            made.loss_types = [loss]
        assert_same_step(stock, whole, batch)
        assert_same_step(stock, cut, batch)


@pytest.mark.parametrize(
    "options",
    [
        {"ld_alpha": 0.4}, {"use_weighting": True}, {"f_divergence_type": "js_divergence"},
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3]}, {"truncation_mode": "keep_end"},
    ],
    ids=str,
)  # fmt: skip
def test_every_option_that_touches_log_probs_has_trls_value(tokenizer, rows, options):
    stock, fast = (trainer(kind, tokenizer, "ref adapter", **options) for kind in (DPOTrainer, FastDPOTrainer))
    assert_same_step(stock, fast, stock.data_collator(rows))


def test_another_architecture_has_trls_value(tokenizer, rows):
    shape = Qwen3Config(**SHAPE, head_dim=16)
    stock, fast = (trainer(kind, tokenizer, "ref adapter", shape=shape) for kind in (DPOTrainer, FastDPOTrainer))
    assert fast.stock_reason is None
    assert_same_step(stock, fast, stock.data_collator(rows))


def replaced(made):
    """The adapted layers to which the fast path adds their adapters itself."""
    return [layer for layer in made.model.modules() if isinstance(layer, LoraLayer) and "forward" in vars(layer)]


@pytest.mark.parametrize(
    ("lora", "plain"),
    [({"use_rslora": True}, True), ({"use_dora": True}, False), ({"lora_bias": True}, False)],
    ids=["rank-stabilised", "DoRA", "bias"],
)
def test_adapters_of_another_kind_have_trls_value(tokenizer, rows, lora, plain):
    stock, fast = (trainer(kind, tokenizer, "adapter", lora=lora) for kind in (DPOTrainer, FastDPOTrainer))
    assert fast.stock_reason is None
    assert bool(replaced(fast)) == plain
    assert_same_step(stock, fast, stock.data_collator(rows))


BF16 = partial(torch.autocast, "cpu", torch.bfloat16)


# ---- the comparison before the fast forward is installed --------------------------------------------------------


def state(model):
    """Everything that an installed fast forward changes."""
    changed = [name for name, module in model.named_modules() if "forward" in vars(module)]
    return model.forward, model.config._attn_implementation, changed, model.training


@pytest.mark.parametrize(
    "autocast", [nullcontext, partial(torch.autocast, "cpu", torch.bfloat16)], ids=["fp32", "bf16"]
)
@pytest.mark.parametrize("mode", ["adapter", "full"])
def test_it_only_compares_and_leaves_the_model_as_it_was(tokenizer, mode, autocast, monkeypatch):
    stock = trainer(DPOTrainer, tokenizer, mode)
    model = stock.model.get_base_model() if mode == "adapter" else stock.model
    model.eval()
    before = state(model)
    assert disagreement(model, autocast) is None
    assert state(model) == before
    monkeypatch.setattr(module, "_score_pairs", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        disagreement(model, autocast)
    assert state(model) == before, "also after an error of another kind"
    assert all(p.grad is None for p in model.parameters())


def test_adapters_in_bf16_on_a_model_in_fp32_are_no_reason_against_it(tokenizer):
    stock = trainer(DPOTrainer, tokenizer, "adapter")
    for name, parameter in stock.model.named_parameters():
        if "lora" in name:
            parameter.data = parameter.data.bfloat16()
    assert disagreement(stock.model.get_base_model()) is None


def wrong_scores(hidden, head, labels):
    """Log-probs of the hidden states' neighbours: each token is scored one place too late."""
    return score(hidden.roll(1, dims=0), head, labels)


def half(backward, field):
    """A backward that returns half of one of its gradients."""

    def wrong(ctx, *gradients):
        found = list(backward(ctx, *gradients))
        found[field] = None if found[field] is None else 0.5 * found[field]
        return tuple(found)

    return staticmethod(wrong)


SPOILT = {
    "forward": (module, "score", wrong_scores, "log-probs differ from TRL's by"),
    "A": (
        AdaptedLinear,
        "backward",
        half(AdaptedLinear.backward, 2),
        r"the gradient of .*_proj has cosine",
    ),
    "hidden": (AdaptedLinear, "backward", half(AdaptedLinear.backward, 0), r"the gradient of .*_proj has cosine"),
    "head": (
        ScoreTokens,
        "backward",
        half(ScoreTokens.backward, 0),
        r"the gradient of .* cosine 1.*length 0\.5",
    ),
    "layout": (Branches, "attended", property(lambda self: 0, lambda self, value: None), "does not go through"),
}


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16 by autocast"])
@pytest.mark.parametrize("part", SPOILT)
def test_a_wrong_forward_or_backward_is_a_reason_against_it(tokenizer, rows, part, bf16, monkeypatch):
    """The trainer says why, and trains as TRL's does."""
    owner, name, wrong, reason = SPOILT[part]
    monkeypatch.setattr(owner, name, wrong, raising=False)
    stock, fast = (trainer(kind, tokenizer, "adapter", bf16=bf16) for kind in (DPOTrainer, FastDPOTrainer))
    assert re.search(reason, fast.stock_reason)
    assert not replaced(fast)
    batch = stock.data_collator(rows)
    with stock.accelerator.autocast():
        assert step(fast, batch)[0] == step(stock, batch)[0]


def test_what_differs_in_train_mode_alone_is_found(tokenizer):
    """Attention's own dropout is no layer that `unsupported_reason` could find, and does nothing in eval mode."""
    stock = trainer(DPOTrainer, tokenizer, "adapter", shape=LlamaConfig(**SHAPE, attention_dropout=0.5))
    assert unsupported_reason(stock.model) is None
    stock.model.eval()
    assert "differ" in disagreement(stock.model.get_base_model())


def test_the_comparison_knows_the_autocast_of_training(tokenizer, monkeypatch):
    used = []

    def look(model, autocast):
        with autocast():
            used.append(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"))

    monkeypatch.setattr(module, "disagreement", look)
    for bf16 in (False, True):
        trainer(FastDPOTrainer, tokenizer, "adapter", bf16=bf16)
    assert used == [False, torch.bfloat16]


def test_it_is_compared_once_and_installed_once(tokenizer, monkeypatch):
    """TRL precomputes references while the trainer is being built: then it is decided, and not once more later."""
    calls = []
    monkeypatch.setattr(module, "disagreement", lambda *_: calls.append("compared"))
    monkeypatch.setattr(module, "install", lambda model: calls.append("installed") or (lambda: calls.append("removed")))
    made = trainer(FastDPOTrainer, tokenizer, "full")
    assert calls == ["compared", "installed", "installed"], "the policy and its reference"
    made._choose_forward()
    assert len(calls) == 3
    with made.stock_forward():
        assert calls[3:] == ["removed"] * 2
    assert calls[5:] == ["installed"] * 2


def test_in_several_processes_it_is_trls_trainer(tokenizer, monkeypatch):
    monkeypatch.setattr(DPOConfig, "world_size", property(lambda self: 2))
    assert trainer(FastDPOTrainer, tokenizer, "adapter").stock_reason == "it runs in several processes"


def test_every_group_has_to_log_one_value_of_each_metric(tokenizer, rows, monkeypatch):
    """Else the batch's mean would be taken over values that belong to no group."""
    cut = trainer(FastDPOTrainer, tokenizer, "adapter", max_tokens=90)
    right = DPOTrainer._compute_loss

    def twice(self, *args):
        self._metrics["train"]["entropy"].append(0.0)
        return right(self, *args)

    monkeypatch.setattr(DPOTrainer, "_compute_loss", twice)
    with pytest.raises(AssertionError, match=r"(\d) groups logged \d+ values of entropy, not one each"):
        step(cut, cut.data_collator(rows))


def test_metrics_of_earlier_steps_stay_as_they_are(tokenizer, rows):
    """With accumulation several steps are logged together; the groups of one must not be averaged with another."""
    whole, cut = (trainer(FastDPOTrainer, tokenizer, "adapter", max_tokens=budget) for budget in (None, 90))
    for made in (whole, cut):
        for _ in range(2):
            made.training_step(made.model, made.data_collator(rows))
    for name, values in whole._metrics["train"].items():
        assert len(values) == (1 if name == "num_tokens" else 2)
        assert cut._metrics["train"][name] == pytest.approx(values, rel=1e-4, abs=1e-4)


def test_a_merged_or_disabled_adapter_is_peft_s_own_matter(tokenizer, rows):
    stock, fast = (trainer(kind, tokenizer, "adapter") for kind in (DPOTrainer, FastDPOTrainer))
    batch = stock.data_collator(rows)
    assert len(replaced(fast)) == 7 * SHAPE["num_hidden_layers"]
    for model in (stock.model, fast.model):
        model.merge_adapter()
    torch.testing.assert_close(log_probs(fast, batch), log_probs(stock, batch), atol=1e-4, rtol=0)
    with stock.model.disable_adapter(), fast.model.disable_adapter():
        torch.testing.assert_close(log_probs(fast, batch), log_probs(stock, batch), atol=1e-4, rtol=0)


def log_probs(made, batch):
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        return made.model(**inputs, labels=labels, use_cache=False, fused_lm_head=True).log_probs


def test_per_token_log_probs_are_trls(tokenizer, rows):
    stock, fast = (trainer(kind, tokenizer, "ref adapter") for kind in (DPOTrainer, FastDPOTrainer))
    batch = stock.data_collator(rows)
    torch.testing.assert_close(log_probs(fast, batch), log_probs(stock, batch), atol=1e-4, rtol=0)


def test_a_branch_does_not_see_its_sibling(tokenizer, rows):
    fast = trainer(FastDPOTrainer, tokenizer, "ref adapter")
    pairs = len(rows)
    before = log_probs(fast, fast.data_collator(rows))
    for side, half in (("rejected_ids", slice(pairs)), ("chosen_ids", slice(pairs, None))):
        changed = [{**row, side: [1000 - token for token in row[side]]} for row in rows]
        after = log_probs(fast, fast.data_collator(changed))
        torch.testing.assert_close(after[half], before[half], atol=2e-5, rtol=0)
        assert not torch.allclose(after, before, atol=0.1), "the other side must have moved"


def test_in_bf16_the_fast_path_is_no_further_from_fp32_than_trl(tokenizer):
    draw = torch.Generator().manual_seed(1)
    many = [
        {side: torch.randint(5, 1000, (n,), generator=draw).tolist() for side, n in zip(
            ("prompt_ids", "chosen_ids", "rejected_ids"), (8, 12, 9), strict=True)}
        for _ in range(64)
    ]  # fmt: skip
    exact = trainer(DPOTrainer, tokenizer, "ref adapter")
    batch = exact.data_collator(many)
    expected = log_probs(exact, batch)
    distance = {
        kind: (log_probs(trainer(kind, tokenizer, "ref adapter", dtype=torch.bfloat16), batch) - expected).pow(2).mean()
        for kind in (DPOTrainer, FastDPOTrainer)
    }
    # both round the same hidden states to 8 bits; 1,344 scored tokens leave a few percent of chance between them
    assert distance[FastDPOTrainer] <= 1.1 * distance[DPOTrainer]


@pytest.mark.slow
def test_twenty_steps_have_trls_loss_curve(tokenizer):
    draw = torch.Generator().manual_seed(2)

    def text(n):
        return tokenizer.decode(torch.randint(300, 1000, (n,), generator=draw))

    data = Dataset.from_list([{"prompt": text(6), "chosen": text(5), "rejected": text(8)} for _ in range(8)])
    curves = []
    for kind, budget in ((DPOTrainer, {}), (FastDPOTrainer, {"max_tokens": 40})):
        made = trainer(kind, tokenizer, "ref adapter", max_steps=20, **budget)
        made.train_dataset = made._prepare_dataset(data, tokenizer, made.args, "train")
        made.train()
        curves.append([row["loss"] for row in made.state.log_history if "loss" in row])
    stock, fast = curves
    assert len(stock) == 20
    assert stock[-1] < 0.5 * stock[0], "ten epochs over eight pairs must be learnt"
    assert fast == pytest.approx(stock, abs=1e-4)


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        ("mistral", {"sliding_window": 16}, "sliding window"),
        ("gemma3_text", {"head_dim": 8}, "layers that the fast path does not know"),
        ("mixtral", {"num_local_experts": 2}, "experts"),
        ("granite", {"logits_scaling": 2.0}, "rescaled"),
        ("llama", {}, None),
    ],
)
def test_models_it_does_not_fit_are_named_with_the_reason(kind, options, reason):
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**SHAPE, **options))
    found = unsupported_reason(model)
    assert found is None if reason is None else reason in found


def test_prompt_learning_and_dropout_are_reasons_too():
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE))
    prompted = get_peft_model(copy.deepcopy(model), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    assert "prompt of its own" in unsupported_reason(prompted)
    dropping = get_peft_model(model, LoraConfig(r=2, lora_dropout=0.1, target_modules="all-linear"))
    assert "dropout" in unsupported_reason(dropping)


def test_where_it_does_not_apply_it_is_trls_trainer(tokenizer, rows):
    shape = CONFIG_MAPPING["mistral"](**SHAPE, sliding_window=8)
    stock, fast = (trainer(kind, tokenizer, "adapter", shape=shape) for kind in (DPOTrainer, FastDPOTrainer))
    assert "sliding window" in fast.stock_reason
    batch = stock.data_collator(rows)
    assert step(fast, batch)[0] == step(stock, batch)[0]


def test_partial_checkpointing_changes_memory_and_not_the_gradient(tokenizer, rows):
    plain = trainer(FastDPOTrainer, tokenizer, "ref adapter")
    partly = trainer(FastDPOTrainer, tokenizer, "ref adapter", checkpointing=True, checkpoint_layers=1)
    batch = plain.data_collator(rows)
    for made in (plain, partly):  # as if precomputed: an online reference would switch checkpointing on again
        made.precompute_ref_logps = True
    batch |= {"ref_chosen_logps": torch.full((len(rows),), -9.0), "ref_rejected_logps": torch.full((len(rows),), -8.0)}
    partly.model.gradient_checkpointing_enable()
    assert_same_step(plain, partly, batch)
    layers = partly.model.get_base_model().model.layers
    assert [layer.gradient_checkpointing for layer in layers] == [True, False, False]


def test_references_come_from_the_cache_and_the_steps_stay_trls(tokenizer, tmp_path, monkeypatch):
    data = {"prompt": " its", "chosen": " values rise", "rejected": " values fall"}
    rows = Dataset.from_list([{**data, "prompt": f"{' its' * n} On"} for n in range(1, 9)])
    stock = trainer(DPOTrainer, tokenizer, "ref adapter")
    cached = trainer(FastDPOTrainer, tokenizer, "ref adapter", reference_cache=tmp_path / "cache.sqlite")
    expected = stock._prepare_dataset(rows, tokenizer, stock.args, "train")
    first = cached._precompute_ref_logps(expected, "train", 3)
    batch = stock.data_collator(list(expected))
    chosen, rejected = stock.compute_ref_log_probs(stock.model, batch)
    assert first["ref_chosen_logps"] == pytest.approx(chosen.tolist(), abs=1e-4)
    assert first["ref_rejected_logps"] == pytest.approx(rejected.tolist(), abs=1e-4)
    monkeypatch.setattr(cached, "compute_ref_log_probs", lambda *_: pytest.fail("all of this is in the cache"))
    assert cached._precompute_ref_logps(expected, "train", 2).to_list() == first.to_list()
    cached.precompute_ref_logps = True
    assert_same_step(stock, cached, cached.data_collator(list(first)))


def test_references_under_another_autocast_are_computed_anew(tokenizer, tmp_path, monkeypatch):
    rows = Dataset.from_list([{"prompt": " On", "chosen": " values rise", "rejected": " values fall"}])
    made = [
        trainer(FastDPOTrainer, tokenizer, "ref adapter", bf16=bf16, reference_cache=tmp_path / "cache.sqlite")
        for bf16 in (False, True)
    ]
    expected = made[0]._prepare_dataset(rows, tokenizer, made[0].args, "train")
    exact, rounded = (each._precompute_ref_logps(expected, "train", 1)["ref_chosen_logps"][0] for each in made)
    assert exact != rounded
    assert rounded == pytest.approx(exact, rel=0.01)
