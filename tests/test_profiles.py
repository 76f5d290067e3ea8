"""Profiles: what sets a value, which values are refused, and a short CPU training with every GPU profile."""

import math
import re
from typing import get_args

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from dpo_kit.errors import DpoKitError
from dpo_kit.jsonl import read_pairs
from dpo_kit.models.loading import load_base, lora, save_adapter
from dpo_kit.models.memory import SHAPES
from dpo_kit.models.quantization import quantized_layers
from dpo_kit.profiles import ROOT, Loss, Profile, load_profile, parse_overrides, profile_names
from dpo_kit.records import PreferencePair, Prompt, Response, Verdict
from dpo_kit.training.dpo import train_dpo
from dpo_kit.training.metrics_log import read_log
from dpo_kit.training.trainers import rows_at_once


def test_every_profile_loads():
    assert profile_names()
    for name in profile_names():
        assert load_profile(name).name == name


def test_the_environment_sets_the_dial(monkeypatch):
    monkeypatch.setenv("DPO_KIT_PROFILE", "tinny")
    with pytest.raises(DpoKitError, match="unknown profile 'tinny'; did you mean 'tiny'"):
        load_profile()
    monkeypatch.setenv("DPO_KIT_PROFILE", "tiny")
    assert load_profile().name == "tiny"


def test_a_profile_may_be_a_file_of_the_users_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('like = "tiny"\n[dpo]\nbeta = 0.2\n')
    profile, tiny = load_profile(str(path)), load_profile("tiny")
    assert (profile.name, profile.dpo.beta, profile.sft) == ("mine", 0.2, tiny.sft)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("beta = 0.2", "'beta' stands outside any table"),
        ('like = "tinny"', "unknown profile 'tinny'; did you mean 'tiny'"),
        ("[dopo]\nbeta = 1", "unknown table 'dopo'; did you mean 'dpo'"),
        ('like = "tiny"\n[dpo]\nbta = 1', "unknown key dpo.bta; did you mean 'beta'"),
        ("[dpo\n", "not a TOML file"),
        (None, "no profile can be read there"),
    ],
    ids=["no-table", "like", "table", "key", "toml", "absent"],
)
def test_a_file_that_is_no_profile_says_why(tmp_path, text, said):
    path = tmp_path / "mine.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DpoKitError, match=said):
        load_profile(str(path))


def test_overrides_reach_their_table_and_nothing_else():
    plain, changed = load_profile("tiny"), load_profile("tiny", dpo={"beta": 0.5})
    assert changed.dpo.beta == 0.5
    assert changed.sft == plain.sft
    assert changed.dpo.learning_rate == plain.dpo.learning_rate


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"dpo": {"bta": 1}}, "unknown key dpo.bta; did you mean 'beta'"),
        ({"dopo": {"beta": 1}}, "unknown table 'dopo'; did you mean 'dpo'"),
        ({"dpo": {"beta": -1}}, "dpo.beta = -1: "),
        ({"sft": {"rambling": 1.5}}, "sft.rambling = 1.5: "),
        ({"model": {"quantize": "int3"}}, "model.quantize = 'int3': "),
    ],
)
def test_a_bad_override_names_key_value_and_way_out(overrides, message):
    with pytest.raises(DpoKitError, match=message):
        load_profile("tiny", **overrides)


def test_the_environment_overrides_the_file_and_keywords_override_the_environment(monkeypatch):
    monkeypatch.setenv("DPO_KIT_DPO__BETA", "0.05")
    monkeypatch.setenv("DPO_KIT_DATA__PAIRS", "own.jsonl")
    monkeypatch.setenv("DPO_KIT_MODEL__CHECKPOINTING", "true")
    assert load_profile("tiny").dpo.beta == 0.05
    assert load_profile("tiny").data.pairs == "own.jsonl"
    assert load_profile("tiny").model.checkpointing is True
    assert load_profile("tiny", dpo={"beta": 0.5}).dpo.beta == 0.5


def test_an_unknown_variable_of_the_environment_names_the_nearest_key(monkeypatch):
    monkeypatch.setenv("DPO_KIT_DPO__BTA", "0.05")
    with pytest.raises(DpoKitError, match=r"unknown key dpo\.bta; did you mean 'beta'"):
        load_profile("tiny")


def test_overrides_are_read_as_toml_where_they_are_toml():
    given = [
        "dpo.beta=0.05",
        "data.pairs=own.jsonl",
        "model.checkpointing=true",
        "pairs.temperatures=[0.7, 1.0]",
        "dpo.epochs=2",
    ]
    assert parse_overrides(given) == {
        "dpo": {"beta": 0.05, "epochs": 2},
        "data": {"pairs": "own.jsonl"},
        "model": {"checkpointing": True},
        "pairs": {"temperatures": [0.7, 1.0]},
    }


@pytest.mark.parametrize("text", ["dpo", "beta=1", "dpo.=1", "=1"])
def test_an_override_of_another_form_is_refused(text):
    with pytest.raises(DpoKitError, match=r"write TABLE\.KEY=VALUE"):
        parse_overrides([text])


@pytest.mark.parametrize(
    ("max_tokens", "rows"), [(None, 32), (1, 1), (4096, 2), (4095, 1), (8192, 4), (12288, 4), (10**9, 32)]
)
def test_rows_at_once_divide_the_batch_and_stay_within_the_tokens(max_tokens, rows):
    """Pairs of two sides of 1,024 tokens: 4,096 tokens are two pairs; three would not divide a batch of 32."""
    profile = load_profile("gpu-8gb", model={"max_length": 1024}, dpo={"max_tokens": max_tokens})
    assert rows_at_once(profile, profile.dpo) == rows


def test_accumulated_rows_learn_what_the_whole_batch_learns(small_run, tmp_path):
    """Two rows at a time, with activations computed again: losses and adapter as of eight at once, to rounding."""
    work, profile, _ = small_run
    pairs = (read_pairs(work / "pairs" / "pairs.jsonl") * 2)[:8]
    ended = []
    for name, changes in (("whole", {}), ("parts", {"max_tokens": 2 * 2 * profile.model.max_length})):
        model = profile.model.model_copy(update={"checkpointing": bool(changes)})
        dpo = profile.dpo.model_copy(update={"batch_size": 8, "epochs": 2, **changes})
        (tmp_path / name).mkdir()
        tried = profile.model_copy(update={"model": model, "dpo": dpo})
        train_dpo(tried, pairs, work / "sft" / "adapter", [], tmp_path / name, 0, log=lambda line: None)
        losses = [row["loss"] for row in read_log(tmp_path / name / "log.jsonl") if "loss" in row]
        ended.append((losses, load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")))
    (whole, weights), (parts, accumulated) = ended
    assert len(whole) == 2
    assert parts == pytest.approx(whole, abs=1e-5)
    for name, weight in weights.items():
        torch.testing.assert_close(accumulated[name], weight, atol=2e-5, rtol=1e-3)


@pytest.fixture(scope="module")
def shallow(tmp_path_factory):
    """The profiles' models by id, two layers of a quarter of their width, with the tiny model's tokenizer."""
    made = {}

    def folder(path):
        if path not in made:
            tokenizer = AutoTokenizer.from_pretrained(load_profile("tiny").model_path)
            widths = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
            settings = {**SHAPES[path], **{name: SHAPES[path][name] // 4 for name in widths}}
            settings |= {"num_hidden_layers": 2, "vocab_size": len(tokenizer)}
            torch.manual_seed(0)
            config = AutoConfig.for_model(settings.pop("model_type"), **settings, eos_token_id=tokenizer.eos_token_id)
            made[path] = tmp_path_factory.mktemp("shallow")
            AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(made[path])
            tokenizer.save_pretrained(made[path])
        return made[path]

    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in profile_names() if name.startswith("gpu-")])
def test_a_gpu_profile_takes_two_dpo_steps_with_its_own_settings(name, shallow, tmp_path):
    own = load_profile(name)
    profile = load_profile(
        name, model={"path": str(shallow(own.model.path))}, dpo={"batch_size": 2}, pairs={"max_new_tokens": 4}
    )
    pairs = [pair_of(f"What is {i} and {i}?", f"It is {2 * i}.", "No idea.") for i in range(4)]
    model, _ = load_base(profile)
    assert len(quantized_layers(model)) == 2 * 7
    save_adapter(get_peft_model(model, lora(profile)), tmp_path / "start")
    (tmp_path / "dpo").mkdir()
    train_dpo(profile, pairs, tmp_path / "start", [], tmp_path / "dpo", 0, log=lambda line: None)
    rows = [row for row in read_log(tmp_path / "dpo" / "log.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5), "the policy starts at its reference, in bf16 too"
    before, after = (load_file(tmp_path / part / "adapter_model.safetensors") for part in ("start", "dpo/adapter"))
    moved = [(after[name].float() - before[name].float()).abs().max().item() for name in before if "lora_B" in name]
    assert all(0 < by < 1e-4 for by in moved), "every B left 0, by no more than the learning rate allows"


def pair_of(question, chosen, rejected):
    prompt = Prompt.from_text(question)
    sides = (Response(prompt_id=prompt.id, text=text) for text in (chosen, rejected))
    return PreferencePair(
        prompt=prompt, **dict(zip(("chosen", "rejected"), sides, strict=True)),
        verdict=Verdict(winner="a", judge="test", reason="is right"),
    )  # fmt: skip


def test_the_page_on_training_names_every_loss_and_only_settings_that_exist():
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:model|sft|dpo)\.[a-z_]+)`", page) + re.findall(
        r"--set '?((?:model|sft|dpo)\.[a-z_]+)=", page
    )
    known = {
        f"{table}.{field.alias or name}"
        for table in ("model", "sft", "dpo")
        for name, field in Profile.model_fields[table].annotation.model_fields.items()
    }
    assert named
    assert set(named) <= known
    assert {name for name in re.findall(r"`([a-z_]+)`", page) if name in get_args(Loss)} == set(get_args(Loss))
