"""A reward-model judge, on tiny sequence classifiers built from a config and saved like any other."""

import shutil

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from dpo_kit.errors import DpoKitError
from dpo_kit.preferences.judges import both_orders, load_reward, reward_judge
from dpo_kit.profiles import ROOT
from dpo_kit.records import Message, Prompt

PROMPT = Prompt(id="p", messages=(Message(role="user", content="checkout-api is down"),))


def save_model(folder, num_labels=1, positions=64):
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data" / "tiny-base")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"pad_token_id": tokenizer.pad_token_id, "max_position_embeddings": positions, "num_labels": num_labels}
    model = LlamaForSequenceClassification(LlamaConfig(vocab_size=len(tokenizer), **shape, **ids))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval(), tokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward")
    return folder, *save_model(folder)


def test_the_reward_is_the_models_output_on_the_chat_as_its_template_writes_it(saved):
    folder, model, tokenizer = saved
    text = "<|user|>checkout-api is down<|end|><|assistant|>SEVERITY: SEV1<|end|>"
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    expected = model(input_ids=ids).logits.item()
    assert load_reward(str(folder))(PROMPT, "SEVERITY: SEV1") == pytest.approx(expected, abs=1e-6)


def test_the_higher_reward_wins_in_both_orders_and_within_the_margin_it_is_a_tie(saved):
    folder = saved[0]
    reward = load_reward(str(folder))
    better, worse = sorted(("SEVERITY: SEV1", "no idea"), key=lambda text: -reward(PROMPT, text))
    gap = reward(PROMPT, better) - reward(PROMPT, worse)
    assert both_orders(reward_judge(str(folder)))(PROMPT, better, worse).in_orders == ("a", "a")
    assert reward_judge(str(folder), margin=gap * 0.99)(PROMPT, worse, better).winner == "b"
    assert reward_judge(str(folder), margin=gap * 1.01)(PROMPT, worse, better).winner == "tie"
    assert reward_judge(str(folder))(PROMPT, better, better).winner == "tie"


def test_an_answer_that_does_not_fit_is_unjudged_rather_than_cut(saved):
    found = reward_judge(str(saved[0]))(PROMPT, "fine", "word " * 200)
    assert found.winner == "unjudged"
    assert found.reason.endswith("the reward model reads 64")


def test_a_model_with_two_outputs_no_template_only_a_pickle_or_nowhere_is_refused(saved, tmp_path):
    save_model(tmp_path / "two", num_labels=2)
    with pytest.raises(DpoKitError, match="one output, this one has 2"):
        load_reward(str(tmp_path / "two"))
    shutil.copytree(saved[0], tmp_path / "mute")
    (tmp_path / "mute" / "chat_template.jinja").unlink()
    with pytest.raises(DpoKitError, match="no chat template"):
        load_reward(str(tmp_path / "mute"))
    shutil.copytree(saved[0], tmp_path / "pickle")
    (tmp_path / "pickle" / "model.safetensors").unlink()
    torch.save(saved[1].state_dict(), tmp_path / "pickle" / "pytorch_model.bin")
    for absent in ("pickle", "nowhere"):
        with pytest.raises(DpoKitError, match="cannot be loaded"):
            load_reward(str(tmp_path / absent))
