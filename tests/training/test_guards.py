"""Each known silent error of a training is caused on purpose, and a guard must report it."""

import json
import math
import shutil
from collections.abc import Callable

import pytest
import torch
from accelerate import init_empty_weights
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import DataCollatorForLanguageModeling, LlamaConfig, LlamaForCausalLM

from dpo_kit import pipeline
from dpo_kit.errors import DpoKitError
from dpo_kit.jsonl import read_pairs
from dpo_kit.models.identity import base_fingerprint
from dpo_kit.models.loading import add_adapter, load_base
from dpo_kit.profiles import ROOT, load_profile
from dpo_kit.records import PreferencePair
from dpo_kit.training.checkpoints import Checkpoints
from dpo_kit.training.dpo import dpo_trainer, train_dpo
from dpo_kit.training.guards import BadRow, check_learning_rate, check_rows, check_trainable, loss_rows
from dpo_kit.training.metrics_log import attach, read_log
from dpo_kit.training.sft import train_sft
from dpo_kit.triage.demonstrations import Noise, demonstrate


@pytest.fixture
def base(tmp_path, small_profile) -> Callable:
    """A copy of the tiny base with some of its text files edited, as a profile."""

    def edited(**edits):
        folder = tmp_path / "base"
        shutil.copytree(ROOT / "data" / "tiny-base", folder)
        (folder / "manifest.json").unlink()
        for name, edit in edits.items():
            path = next(folder.glob(f"{name}.*"))
            path.write_text(edit(path.read_text()))
        model = small_profile.model.model_copy(update={"path": str(folder)})
        return small_profile.model_copy(update={"model": model})

    return edited


@pytest.fixture
def sft(incidents, tmp_path) -> Callable:
    def train(profile, prompts=incidents[:16]):
        train_sft(profile, prompts, demonstrate(prompts, Noise(), 0), tmp_path, 0)

    return train


@pytest.fixture
def build(small_run, tmp_path) -> Callable:
    """A DPO trainer on some pairs of the small run, with what `train_dpo` would give it."""
    work, profile, _ = small_run

    def built(edit=lambda pairs: pairs, **model):
        pairs = edit(read_pairs(work / "pairs" / "pairs.jsonl"))
        changed = profile.model_copy(update={"model": profile.model.model_copy(update=model)})
        trainer = dpo_trainer(changed, pairs, work / "sft" / "adapter", tmp_path, 0)
        trainer.checkpoints = Checkpoints(tmp_path / "checkpoints", {})
        trainer.metrics_log = attach(trainer, tmp_path / "log.jsonl", "DPO")
        return trainer

    return built


# ---- rows -------------------------------------------------------------------------------------------------------


def test_loss_rows_are_the_answers_with_their_eos(build):
    trainer = build()
    tokenizer = trainer.processing_class
    rows = list(loss_rows(trainer))
    assert len(rows) == len(trainer.train_dataset)
    for sides, row in zip(rows, trainer.train_dataset, strict=True):
        for side in sides:
            assert side.trained == row[f"{side.name}_ids"]
            assert tokenizer.decode(side.trained).count("<|end|>") == 1
            assert tokenizer.decode(side.trained).endswith("<|end|>")
            assert tokenizer.decode(side.ids).endswith(tokenizer.decode(side.trained))
    check_rows(trainer)


def test_a_template_without_eos_is_refused_and_the_row_can_be_shown(base, sft, incidents):
    profile = base(chat_template=lambda text: text.replace("<|end|>", ""))
    with pytest.raises(BadRow, match=r"answer: no loss on EOS .*the chat template does not write it") as refused:
        sft(profile)
    row = refused.value
    assert len(row.tokens) == len(row.mask)
    trained = "".join(token for token, selected in zip(row.tokens, row.mask, strict=True) if selected)
    answer = demonstrate(incidents[:16], Noise(), 0)[0].text
    assert trained == answer
    assert repr("".join(f"[{token}]" for token in row.tokens[-5:])).strip("'\"") in str(row), "loss is in brackets"


def test_an_answer_that_max_length_cuts_is_refused(small_profile, sft, incidents):
    short = small_profile.model.model_copy(update={"max_length": 90})
    with pytest.raises(BadRow, match="max_length = 90 cuts the answer off"):
        sft(small_profile.model_copy(update={"model": short}), incidents[:64])


def test_a_prompt_that_fills_max_length_is_not_dropped_in_silence(build):
    with pytest.raises(DpoKitError, match=r"of 2\d rows have a prompt of at least max_length = 30 tokens"):
        check_rows(build(max_length=30))


def test_bos_twice_is_refused(base, sft):
    profile = base(
        chat_template=lambda text: "<|system|><|system|>" + text,
        tokenizer_config=lambda text: json.dumps({**json.loads(text), "bos_token": "<|system|>"}),
    )
    with pytest.raises(BadRow, match=r"begins with '<\|system\|>' twice"):
        sft(profile)


def test_pad_as_eos_is_harmless_where_the_mask_knows_positions_and_refused_where_it_does_not(build):
    """TRL's collator masks by position. The classic one masks every pad token, and with it every EOS."""
    trainer = build()
    tokenizer = trainer.processing_class
    tokenizer.pad_token = tokenizer.eos_token
    trainer.data_collator.pad_token_id = tokenizer.eos_token_id
    check_rows(trainer)
    classic = DataCollatorForLanguageModeling(tokenizer, mlm=False)

    def collate(rows):
        return classic([{"input_ids": row["prompt_ids"] + row[side]} for side in SIDES for row in rows])

    trainer.data_collator = collate
    with pytest.raises(BadRow, match="the mask leaves EOS out, because padding is the same token"):
        check_rows(trainer)


SIDES = ("chosen_ids", "rejected_ids")


def test_equal_sides_are_refused_by_name(build):
    def spoil(pairs):
        same = PreferencePair(**{**dict(pairs[3]), "rejected": pairs[3].chosen})
        return [*pairs[:3], same, *pairs[4:]]

    trainer = build(spoil)
    with pytest.raises(BadRow, match=f"row {trainer.row_names[3]}: chosen and rejected are the same tokens"):
        check_rows(trainer)


# ---- weights and rates ------------------------------------------------------------------------------------------


def test_a_weight_in_bf16_is_refused_because_small_updates_leave_it_where_it_is(build):
    weight = torch.tensor([0.5], dtype=torch.bfloat16)
    assert weight + 3e-4 == weight, "the update of a step at the profile's rate is rounded to nothing"
    trainer = build()
    check_trainable(trainer.model)
    name, parameter = next((n, p) for n, p in trainer.model.named_parameters() if p.requires_grad)
    parameter.data = parameter.data.bfloat16()
    with pytest.raises(DpoKitError) as refused:
        check_trainable(trainer.model)
    assert str(refused.value) == (
        f"1 trained weights are too coarse for small updates, such as {name} (torch.bfloat16); "
        "keep adapters in fp32 (`adapters_to_fp32`)"
    )


def test_a_model_in_which_nothing_is_trained_is_refused_with_advice_of_its_own(build):
    model = build().model.requires_grad_(False)
    with pytest.raises(DpoKitError) as refused:
        check_trainable(model)
    assert str(refused.value) == "no weight is trained; load the adapter with trainable=True before training"


@pytest.fixture(scope="module")
def billions():
    """An 8B model, in shape only: no weight of it exists."""
    shape = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_key_value_heads": 8}
    with init_empty_weights():
        full = LlamaForCausalLM(LlamaConfig(vocab_size=128_256, num_attention_heads=32, **shape))
        lora = get_peft_model(
            LlamaForCausalLM(LlamaConfig(vocab_size=128_256, num_attention_heads=32, **shape)),
            LoraConfig(r=16, target_modules="all-linear"),
        )
    return {"full": full, "LoRA": lora}


@pytest.mark.parametrize(
    ("kind", "fine", "too_high"),
    [("full", 5e-7, 1e-5), ("full", 1e-6, 2e-5), ("LoRA", 5e-6, 2e-4), ("LoRA", 1e-5, 1e-3)],
)
def test_rates_that_recipes_publish_pass_and_those_that_wreck_a_model_do_not(billions, kind, fine, too_high):
    """3e-7 to 1e-6 for full fine-tuning, 5e-6 to 1e-5 for LoRA on billions of parameters; 1e-5 in full wrecks it."""
    check_learning_rate(billions[kind], "dpo", load_profile("tiny", dpo={"learning_rate": fine}).dpo)
    with pytest.raises(DpoKitError, match=rf"dpo.learning_rate = {too_high:g} is above .* for {kind} training of 8,\d"):
        check_learning_rate(billions[kind], "dpo", load_profile("tiny", dpo={"learning_rate": too_high}).dpo)
    allowed = load_profile("tiny", dpo={"learning_rate": too_high, "any_learning_rate": True}).dpo
    check_learning_rate(billions[kind], "dpo", allowed)


def test_a_tiny_model_bears_more(build):
    """2e-4 to 5e-4 improved it; 1e-3 harmed it while its training margin grew."""
    model = build().model
    for rate in (3e-4, 5e-4):
        check_learning_rate(model, "dpo", load_profile("tiny", dpo={"learning_rate": rate}).dpo)
    with pytest.raises(DpoKitError, match="above"):
        check_learning_rate(model, "dpo", load_profile("tiny", dpo={"learning_rate": 1e-3}).dpo)


# ---- numbers that are none --------------------------------------------------------------------------------------


def test_a_row_whose_loss_is_no_number_stops_the_run_before_it_is_learnt(build, tmp_path):
    """A layer fails on one token: the rows that hold it, and no other, are at fault."""
    trainer = build()
    spoilt, names = _token_of_few_rows(trainer)
    start = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}

    def fail(layer, inputs, output):
        return output.masked_fill((inputs[0] == spoilt)[..., None], float("nan"))

    trainer.model.get_input_embeddings().register_forward_hook(fail)
    with pytest.raises(DpoKitError, match=r"step \d+: loss nan, gradient norm nan.*nothing was learnt") as stopped:
        trainer.run()
    last = read_log(tmp_path / "log.jsonl")[-1]
    step = int(str(stopped.value).split(":")[0].removeprefix("step "))
    assert last["step"] == step
    assert math.isnan(last["loss"])
    assert math.isnan(last["rewards/margins"])
    blamed = set(str(stopped.value).split("Offending rows: ")[1].split(". Look")[0].split(", "))
    assert blamed
    assert blamed <= names
    weights = dict(trainer.model.named_parameters())
    assert all(weights[name].isfinite().all() for name in start), "the step was not taken"
    assert step > 1 or all(torch.equal(weights[name], start[name]) for name in start)


def _token_of_few_rows(trainer):
    """A token that some rows hold and others do not, and the names of those that do."""
    rows = {n: set(r["prompt_ids"]) for n, r in zip(trainer.row_names, trainer.train_dataset, strict=True)}
    tokens = sorted(set.union(*rows.values()))
    holders = {token: {name for name, ids in rows.items() if token in ids} for token in tokens}
    token = min((t for t in tokens if len(holders[t]) >= 2), key=lambda t: len(holders[t]))
    answers = {
        n: {*r["chosen_ids"], *r["rejected_ids"]} for n, r in zip(trainer.row_names, trainer.train_dataset, strict=True)
    }
    return token, holders[token] | {name for name, ids in answers.items() if token in ids}


def test_a_rate_that_blows_the_model_up_is_stopped_and_logged_as_it_was(small_run, tmp_path):
    work, profile, _ = small_run
    wild = profile.dpo.model_copy(update={"learning_rate": 1e20, "any_learning_rate": True})
    pairs = read_pairs(work / "pairs" / "pairs.jsonl")
    with pytest.raises(DpoKitError, match="lower learning rate"):
        train_dpo(
            profile.model_copy(update={"dpo": wild}),
            pairs,
            work / "sft" / "adapter",
            [],
            tmp_path,
            0,
            log=lambda line: None,
        )
    last = read_log(tmp_path / "log.jsonl")[-1]
    assert not all(math.isfinite(last[name]) for name in ("loss", "grad_norm", "rewards/margins"))
    assert not (tmp_path / "adapter").exists()


def test_a_gradient_that_is_no_number_stops_the_run_though_loss_and_margin_are_finite(build):
    trainer = build()
    weights = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    start = {n: p.detach().clone() for n, p in weights.items()}
    next(iter(weights.values())).register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(DpoKitError, match=r"step 1: loss 0\.693\d*, gradient norm nan, margin 0; nothing was learnt"):
        trainer.run()
    assert all(torch.equal(weights[n], before) for n, before in start.items())


# ---- several processes ------------------------------------------------------------------------------------------


def test_several_processes_are_refused_before_anything_is_loaded(small_profile, incidents, tmp_path, monkeypatch):
    """Each would train on full batches and write the same log. One line says so, in every way to start a training."""

    def load(*given):
        raise AssertionError("a model was loaded")

    for module in ("sft", "dpo"):
        monkeypatch.setattr(f"dpo_kit.training.{module}.load_base", load)
    prompts = incidents[:4]
    given = {**small_profile.data.model_dump(), "pairs": str(tmp_path / "pairs.jsonl"), "heldout": 0.5}
    own = small_profile.model_copy(update={"data": type(small_profile.data)(**given)})
    lines = [{"prompt": f"Question {n}?", "chosen": f"Yes, {n}.", "rejected": f"No, not {n}."} for n in range(16)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    starts = {
        "train_sft": lambda: train_sft(small_profile, prompts, demonstrate(prompts, Noise(), 0), tmp_path, 0),
        "train_dpo": lambda: train_dpo(small_profile, [], tmp_path, [], tmp_path, 0),
        "run": lambda: pipeline.run(small_profile, tmp_path / "run", log=lambda line: None),
        "train": lambda: pipeline.train(own, tmp_path / "train", log=lambda line: None),
    }
    monkeypatch.setenv("WORLD_SIZE", "2")
    for start in starts.values():
        with pytest.raises(DpoKitError, match="WORLD_SIZE = 2: training in several processes is not supported") as said:
            start()
        assert len(str(said.value).splitlines()) == 1
    for alone in ("1", ""):
        monkeypatch.setenv("WORLD_SIZE", alone)
        with pytest.raises(AssertionError, match="a model was loaded"):
            starts["train_dpo"]()


# ---- which base an adapter is for -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "edits"),
    [
        ("template", {"chat_template": lambda text: text + " "}),
        ("tokenizer", {"tokenizer": lambda text: text + "\n"}),
        ("weights", {}),
    ],
)
def test_an_adapter_on_another_base_is_refused(small_run, base, part, edits):
    adapter = small_run[0] / "sft" / "adapter"
    add_adapter(load_base(small_run[1])[0], "sft", adapter)
    other = base(**edits)
    if part == "weights":
        path = next((ROOT / other.model.path).glob("*.safetensors"))
        weights = load_file(path)
        weights["model.norm.weight"] *= 1.01
        save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(DpoKitError, match=f"trained on another base, whose {part} differ"):
        add_adapter(load_base(other)[0], "sft", adapter)


def test_a_training_of_a_large_base_shows_in_a_sample_of_its_weights(base, monkeypatch):
    """As if files of any size were large: adapters merged into the linear layers move every such weight a little."""
    monkeypatch.setattr("dpo_kit.models.identity.WHOLE", 0)
    profile = base()
    model, _ = load_base(profile)
    before = base_fingerprint(model)
    path = next((ROOT / profile.model.path).glob("*.safetensors"))
    weights = load_file(path)
    save_file({n: w * 1.01 if "_proj" in n else w for n, w in weights.items()}, path, metadata={"format": "pt"})
    assert base_fingerprint(model)["weights"] != before["weights"]
    save_file(weights, path, metadata={"format": "pt"})
    assert base_fingerprint(model) == before


@pytest.mark.parametrize("part", ["embed_tokens", "layers.3.mlp.down_proj"])
@pytest.mark.parametrize("whole", [True, False], ids=["read as a whole", "read in samples"])
def test_a_base_that_was_changed_early_or_late_alone_is_another(small_run, base, monkeypatch, part, whole):
    if not whole:
        monkeypatch.setattr("dpo_kit.models.identity.WHOLE", 0)
    profile = base()
    model, _ = load_base(profile)
    before = base_fingerprint(model)
    path = next((ROOT / profile.model.path).glob("*.safetensors"))
    weights = load_file(path)
    changed = {n: w * 1.01 if part in n else w for n, w in weights.items()}
    assert sum(not torch.equal(changed[n], weights[n]) for n in weights) == 1
    save_file(changed, path, metadata={"format": "pt"})
    assert base_fingerprint(model)["weights"] != before["weights"]


@pytest.mark.parametrize("part", ["weights", "tokenizer", "template"])
def test_an_adapter_that_leaves_a_part_of_its_base_unsaid_is_refused(small_run, tmp_path, part):
    adapter = shutil.copytree(small_run[0] / "sft" / "adapter", tmp_path / "adapter")
    said = json.loads((adapter / "base.json").read_text())
    (adapter / "base.json").write_text(json.dumps({name: value for name, value in said.items() if name != part}))
    with pytest.raises(DpoKitError, match=f"trained on another base, whose {part} differ"):
        add_adapter(load_base(small_run[1])[0], "sft", adapter)


def test_the_same_base_elsewhere_and_unquantised_is_the_same_base(small_run, base):
    other = base()
    plain = other.model_copy(update={"model": other.model.model_copy(update={"quantize": "none"})})
    add_adapter(load_base(plain)[0], "sft", small_run[0] / "sft" / "adapter")


def test_an_adapter_that_names_no_base_is_loaded_with_a_warning(small_run, tmp_path):
    adapter = shutil.copytree(small_run[0] / "sft" / "adapter", tmp_path / "adapter")
    (adapter / "base.json").unlink()
    with pytest.warns(UserWarning, match=r"no base\.json says which base it was trained on"):
        add_adapter(load_base(small_run[1])[0], "sft", adapter)


def test_a_pickled_adapter_is_not_loaded(small_run, tmp_path):
    adapter = shutil.copytree(small_run[0] / "sft" / "adapter", tmp_path / "adapter")
    weights = load_file(adapter / "adapter_model.safetensors")
    torch.save(weights, adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(DpoKitError, match=r"no adapter_model\.safetensors there"):
        add_adapter(load_base(small_run[1])[0], "sft", adapter)
