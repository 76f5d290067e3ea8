"""What is saved is what was trained: rewards reproduced from the files alone, merges measured, the card complete."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dpo_kit import pipeline
from dpo_kit.errors import DpoKitError
from dpo_kit.files import hashes
from dpo_kit.jsonl import read_pairs
from dpo_kit.models.loading import load_arms, load_base
from dpo_kit.models.quantization import dequantized, quantized_layers
from dpo_kit.profiles import load_profile
from dpo_kit.training.merging import write_merged
from dpo_kit.training.release import Proof, answer_logps, card, merge_adapter, prove, release_adapter
from dpo_kit.workspace import Workspace


@pytest.fixture(scope="module")
def run(small_run, tmp_path_factory):
    """A copy of a finished run that may be added to, its profile and its pairs."""
    work, profile, _ = small_run
    root = shutil.copytree(work, tmp_path_factory.mktemp("released") / "run")
    return root, profile, read_pairs(root / "pairs" / "pairs.jsonl")


@pytest.fixture(scope="module")
def released(run):
    root, profile, _ = run
    return pipeline.release(Workspace(root, profile.name, lambda line: None), profile, 0, merge=True)


def spoilt(run, tmp_path, factor):
    """The trained folder with every weight of its adapter multiplied."""
    trained = shutil.copytree(run[0] / "dpo", tmp_path / "dpo")
    path = trained / "adapter" / "adapter_model.safetensors"
    save_file({name: weight * factor for name, weight in load_file(path).items()}, path)
    return trained


def test_the_reloaded_adapter_gives_the_rewards_that_training_ended_with(run):
    root, profile, pairs = run
    proof = prove(profile, pairs, root / "sft" / "adapter", root / "dpo")
    ended = json.loads((root / "dpo" / "end.json").read_text())
    assert proof.pairs == len(ended["chosen"]) > 0
    moved = max(map(abs, ended["chosen"] + ended["rejected"]))
    assert proof.distance < 1e-5 < 1e-3 < moved, "training moved the rewards by far more than they differ"


def test_an_adapter_that_is_not_the_trained_one_is_refused(run, tmp_path):
    root, profile, pairs = run
    with pytest.raises(DpoKitError, match=r"its rewards differ by .* build the dpo stage again"):
        prove(profile, pairs, root / "sft" / "adapter", spoilt(run, tmp_path, 1.05))


def test_a_reference_that_is_not_the_trained_ones_start_is_refused(run):
    root, profile, pairs = run
    with pytest.raises(DpoKitError, match="its rewards differ by"):
        prove(profile, pairs, root / "dpo" / "adapter", root / "dpo")


def test_a_nan_is_no_agreement(run, tmp_path):
    root, profile, pairs = run
    with pytest.raises(DpoKitError, match="differ by nan"):
        prove(profile, pairs, root / "sft" / "adapter", spoilt(run, tmp_path, float("nan")))


def test_nothing_is_released_that_is_not_proved(run, tmp_path):
    root, profile, _ = run
    for part in ("pairs", "sft"):
        shutil.copytree(root / part, tmp_path / part)
    spoilt(run, tmp_path, 1.05)
    with pytest.raises(DpoKitError, match="its rewards differ by"):
        release_adapter(profile, tmp_path, tmp_path / "release", log=lambda line: None)
    assert not (tmp_path / "release").exists()


def test_the_released_adapter_is_the_trained_one_with_a_card_and_safetensors_only(run, released):
    kept = hashes(run[0] / "dpo" / "adapter", skip=("README.md",))
    assert hashes(released / "adapter", skip=("README.md", "dpo_kit.json")) == kept
    assert set(kept) == {"adapter_config.json", "adapter_model.safetensors", "base.json", "chat_template.jinja"}
    assert not [path for path in released.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")]


def test_the_card_says_base_data_settings_curves_and_evaluation(run, released):
    root, profile, pairs = run
    text = (released / "adapter" / "README.md").read_text()
    for hashed in json.loads((root / "dpo" / "adapter" / "base.json").read_text()).values():
        assert hashed in text
    last = [json.loads(line) for line in (root / "dpo" / "log.jsonl").read_text().splitlines()]
    margin = [row["rewards/margins"] for row in last if "rewards/margins" in row][-1]
    assert f"{margin:.4g} at step" in text
    assert f"| pairs | {len(pairs)} from `triage` |" in text
    assert f"| dpo.beta | {profile.dpo.beta} |" in text
    gain = json.loads((root / "report.json").read_text())["metrics"]["severity_match"]["difference"]["interval"]
    assert f"difference {gain['mean']:+.3f}" in text
    assert str(root) not in text, "a path of this machine is of no use to others"


def test_of_a_local_path_the_card_shows_the_last_part_only(tmp_path):
    """Where a model or a file of pairs lies on the trainer's machine may tell a user's or a customer's name."""
    private = tmp_path / "customers" / "a-bank"
    own = {"model": {"path": str(private / "our-base")}, "data": {"pairs": str(private / "complaints.jsonl")}}
    (tmp_path / "dpo" / "adapter").mkdir(parents=True)
    (tmp_path / "dpo" / "adapter" / "base.json").write_text("{}")
    (tmp_path / "dpo" / "log.jsonl").touch()
    text = card(load_profile("tiny", **own), tmp_path, 7, Proof(pairs=7, distance=0.0, allowed=1e-3))
    assert "LoRA on `our-base`" in text
    assert "| pairs | 7 from `complaints.jsonl` |" in text
    assert "a-bank" not in text


def test_a_merge_is_the_base_plus_the_adapters_product(run, released):
    """W + (alpha / r) B A, taken from the files, for one layer of either base."""
    root, profile, _ = run
    weights = load_file(root / "dpo" / "adapter" / "adapter_model.safetensors")
    a, b = (
        weights[f"base_model.model.model.layers.0.self_attn.q_proj.lora_{side}.weight"].double() for side in ("A", "B")
    )
    change = profile.model.lora_alpha / profile.model.lora_r * b @ a
    nf4 = dequantized(quantized_layers(load_base(profile)[0])[0].weight, torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(profile.model_path, dtype=torch.float32)
    stored = plain.model.layers[0].self_attn.q_proj.weight.detach()
    for base, before in (("dequantised", nf4), ("unquantised", stored)):
        merged = load_file(released / "merged" / base / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
        torch.testing.assert_close(merged.double(), before.double() + change, atol=1e-6, rtol=1e-5)


def test_merged_models_load_alone_and_differ_as_far_as_is_said(run, released):
    root, profile, pairs = run
    rows = {row["base"]: row for row in json.loads((released / "merged.json").read_text())}
    assert rows["dequantised"]["largest_difference"] < 1e-3, "the same weights, so the same log-probs up to rounding"
    assert rows["unquantised"]["mean_difference"] > 1e-2, "the adapter learnt on other weights than these"
    arms = load_arms(profile, {"dpo": root / "dpo" / "adapter"})
    again = {}
    for base in rows:
        plain = {"path": str(released / "merged" / base), "quantize": "none"}
        alone = profile.model_copy(update={"model": profile.model.model_copy(update=plain)})
        merged = answer_logps(load_arms(alone, {}), "base", pairs[:8])
        again[base] = (merged - answer_logps(arms, "dpo", pairs[:8])).abs()
    for base, row in rows.items():
        assert again[base].mean().item() == pytest.approx(row["mean_difference"], abs=1e-4)


def test_an_unquantised_profile_has_one_merge_and_it_is_exact(run, tmp_path):
    root, profile, pairs = run
    model = profile.model.model_copy(update={"quantize": "none"})
    (only,) = merge_adapter(profile.model_copy(update={"model": model}), root / "dpo" / "adapter", pairs[:2], tmp_path)
    assert only.base == "unquantised"
    assert only.largest_difference < 1e-3


def test_a_file_of_weights_at_a_time_gives_what_peft_gives(run, tmp_path):
    """The reference is PEFT's own merge, of the whole model in memory."""
    root, profile, _ = run
    adapter = root / "dpo" / "adapter"
    write_merged(Path(profile.model_path), adapter, tmp_path / "ours", torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(profile.model_path, dtype=torch.float32)
    expected = PeftModel.from_pretrained(plain, adapter).merge_and_unload().state_dict()
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).state_dict()
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-6)


def test_a_base_in_several_files_is_merged_file_by_file(run, tmp_path):
    root, profile, _ = run
    plain = AutoModelForCausalLM.from_pretrained(profile.model_path, dtype=torch.float32)
    plain.save_pretrained(tmp_path / "base", max_shard_size="2MB")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1
    for folder, base in (("one", Path(profile.model_path)), ("many", tmp_path / "base")):
        write_merged(base, root / "dpo" / "adapter", tmp_path / folder, torch.float32)
    one, many = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("one", "many"))
    assert all(torch.equal(one[name], many[name]) for name in one)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"use_dora": True}, "has DoRA, which is not merged here"),
        ({"modules_to_save": ["lm_head"]}, "has modules that are trained whole"),
    ],
    ids=["dora", "whole"],
)
def test_an_adapter_that_is_no_plain_lora_is_not_merged(run, tmp_path, changed, said):
    root, profile, _ = run
    adapter = shutil.copytree(root / "dpo" / "adapter", tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | changed))
    with pytest.raises(DpoKitError, match=said):
        write_merged(Path(profile.model_path), adapter, tmp_path / "merged", torch.float32)


def test_a_layer_that_the_base_stores_under_another_name_is_said_and_nothing_is_left(run, tmp_path):
    root, profile, _ = run
    base = shutil.copytree(profile.model_path, tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    renamed = {name.replace("layers.0.", "blocks.0."): weight for name, weight in weights.items()}
    save_file(renamed, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DpoKitError, match=r"7 of its layers, such as model.layers.0.mlp.down_proj.weight, are stored"):
        write_merged(base, root / "dpo" / "adapter", tmp_path / "merged", torch.float32)
    assert not (tmp_path / "merged").exists()
