import json
from itertools import islice

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpo_kit.files import hashes
from dpo_kit.profiles import ROOT
from dpo_kit.triage import base_model
from dpo_kit.triage.base_model import Recipe, build, encode, new_model, packed_rows, train_tokenizer
from dpo_kit.triage.corpus import documents

SHIPPED = ROOT / "data" / "tiny-base"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(SHIPPED)


def test_what_is_shipped_is_what_the_manifest_says():
    manifest = json.loads((SHIPPED / "manifest.json").read_text())
    assert manifest["files"] == hashes(SHIPPED, skip=("manifest.json", "README.md"))
    assert Recipe(**manifest["recipe"]) == Recipe(), "the shipped model was made by the recipe in the code"
    assert sum(p.stat().st_size for p in SHIPPED.iterdir()) < 10_000_000
    assert not list(SHIPPED.glob("*.bin")), "safetensors only"


def test_the_card_states_what_the_manifest_states():
    manifest, card = json.loads((SHIPPED / "manifest.json").read_text()), (SHIPPED / "README.md").read_text()
    assert manifest["files"]["model.safetensors"] in card
    assert f"{manifest['parameters']:,}" in card
    assert f"{manifest['loss_curve'][-1][1]}" in card
    assert "python -m dpo_kit pretrain" in card


def test_the_shipped_model_is_small_and_has_learnt_to_copy(tokenizer):
    model = AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32)
    assert 1_500_000 < model.num_parameters() < 5_000_000
    question = "Report: checkout is slow in eu-west for 45% of users since 14:05. Which region?"
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "It is eu-west.<|end|>"


def test_the_chat_template_ends_completions_in_eos_and_keeps_the_prompt_a_prefix(tokenizer):
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    head = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    whole = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": "a"}], return_dict=True)
    assert whole["input_ids"][: len(head)] == head
    assert whole["input_ids"][-1] == tokenizer.eos_token_id != tokenizer.pad_token_id


@pytest.mark.parametrize("text", ["45% since 14:05", "ünïcode 漢字 🙂", "\x00\n\t", "<b>&amp;</b>"])
def test_any_text_survives_tokens_and_every_digit_is_one(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert sum(tokenizer.decode([i]).strip().isdigit() for i in ids) == sum(c.isdigit() and c.isascii() for c in text)


def test_the_tokenizer_is_rebuilt_byte_for_byte(tmp_path):
    train_tokenizer(Recipe()).save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (SHIPPED / "tokenizer.json").read_bytes()


def test_rows_hold_whole_documents_in_order_and_no_document_sees_another(tokenizer):
    recipe = Recipe()
    rows = list(islice(packed_rows(tokenizer, recipe), 20))
    assert all(sum(map(len, row)) <= recipe.row_tokens for row in rows)
    flat = [document for row in rows for document in row]
    assert flat == [encode(d, tokenizer)[:256] for d in islice(documents(0), len(flat))]
    row = next(row for row in rows if len(row) > 1)
    model = new_model(recipe, tokenizer).eval()
    batch = base_model._collate([row], tokenizer)
    together = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits[0, len(row[0]) :]
    alone = model(input_ids=torch.tensor([row[1]])).logits[0]
    assert torch.allclose(together[: len(row[1])], alone, atol=1e-4)


def test_the_recipe_still_runs(tmp_path):
    recipe = Recipe(steps=3, hidden=32, heads=2, layers=1, intermediate=64, warmup_steps=0)
    manifest = build(tmp_path, recipe)
    losses = [loss for _, loss in manifest["loss_curve"]]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert manifest["files"] == hashes(tmp_path, skip=("manifest.json", "README.md"))
    AutoModelForCausalLM.from_pretrained(tmp_path)
