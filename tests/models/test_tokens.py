"""Chats become ids and masks: several turns, tools, thinking, templates with dates, tokens that end an answer."""

import json
import re

import pytest
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from dpo_kit.errors import DpoKitError
from dpo_kit.models.loading import check_trainable_kind, load_base
from dpo_kit.models.tokens import Scoring, encode, load_tokenizer, must_stop, prompt_ids, stop_ids
from dpo_kit.profiles import DATA, load_profile
from dpo_kit.records import Message, Prompt, Response
from tests.odd_models import PLAIN, make

BASE = str(DATA / "tiny-base")
CALL = {"type": "function", "function": {"name": "soil", "arguments": {"fern": 0}}}
PROMPT = Prompt.from_text("Is fern 0 dry?")
AGENT = Response.of("p", [
    Message(role="assistant", content="I look."), Message(role="tool", content="dry", name="soil"),
    Message(role="assistant", content="Yes. Shall I water it?"), Message(role="user", content="Please."),
    Message(role="assistant", content="Done."),
])  # fmt: skip
# Written as a template for training: what stands in a generation block is the assistant's.
MARKED = (
    "{% for m in messages %}<|{{ 'user' if m['role'] == 'tool' else m['role'] }}|>{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|end|>{% endgeneration %}{% else %}{{ m['content'] }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# As Qwen3 does: an answer without a thought gets an empty one, unless the caller switches thinking off.
THINKS = PLAIN.replace(
    "{{ message['content'] }}",
    "{% if message['role'] == 'assistant' and enable_thinking is not defined and '<think>' not in message['content'] %}"
    "<think>\n\n</think>\n\n{% endif %}{{ message['content'] }}",
)


@pytest.fixture
def tokenizer():
    return load_tokenizer(BASE)


def scored(tokenizer, answer, scoring=None, prompt=PROMPT):
    """The texts that are scored, each run of tokens by itself."""
    ids, mask = encode(tokenizer, prompt, answer, scoring)
    runs, before = [], 0
    for token, selected in zip(ids, mask, strict=True):
        if selected:
            runs = [*runs, []] if not before else runs
            runs[-1].append(token)
        before = selected
    return [tokenizer.decode(run) for run in runs]


def test_every_assistant_turn_is_scored_or_only_the_last_and_no_other(tokenizer):
    tokenizer.chat_template = MARKED
    turns = ["I look.<|end|>", "Yes. Shall I water it?<|end|>", "Done.<|end|>"]
    assert scored(tokenizer, AGENT) == turns
    assert scored(tokenizer, AGENT, Scoring("last")) == turns[-1:]
    ids, _ = encode(tokenizer, PROMPT, AGENT)
    assert ids[: len(prompt_ids(tokenizer, PROMPT))] == prompt_ids(tokenizer, PROMPT)


def test_the_mask_is_trls_own_where_the_template_marks_the_assistant(tokenizer, tmp_path):
    from datasets import Dataset

    tokenizer.chat_template = MARKED
    ids, mask = encode(tokenizer, PROMPT, AGENT)
    whole = {"messages": [*PROMPT.chat(), *AGENT.chat()]}
    arguments = {"output_dir": str(tmp_path), "assistant_only_loss": True, "use_cpu": True, "bf16": False}
    model = load_base(load_profile("tiny", model={"quantize": "none"}))[0]
    trainer = SFTTrainer(model, args=SFTConfig(**arguments), train_dataset=Dataset.from_list([whole]),
                         processing_class=tokenizer)  # fmt: skip
    batch = trainer.data_collator([trainer.train_dataset[0]])
    assert batch["input_ids"][0].tolist() == ids
    assert (batch["labels"][0] != -100).int().tolist() == mask


def test_a_template_that_changes_an_earlier_turn_is_refused_unless_only_the_last_is_scored(tokenizer):
    tokenizer.chat_template = PLAIN.replace("{{ message['content'] }}", (
        "{{ message['content'] if loop.last or message['role'] != 'assistant' else message['content'][:3] }}"
    ))  # fmt: skip
    plain = Response.of("p", AGENT.messages[2:])
    with pytest.raises(DpoKitError, match="turn 1 of an answer in another way"):
        encode(tokenizer, PROMPT, plain)
    assert scored(tokenizer, plain, Scoring("last")) == ["Done.<|end|>"]


def test_thinking_is_scored_or_masked_and_an_empty_span_of_the_template_must_be_decided(tokenizer):
    tokenizer.chat_template = THINKS
    plain = Response(prompt_id="p", text="Yes.")
    thought = Response(prompt_id="p", text="<think>Dry soil.</think>Yes.")
    assert scored(tokenizer, thought) == ["<think>Dry soil.</think>Yes.<|end|>"]
    assert scored(tokenizer, thought, Scoring(thinking="masked")) == ["Yes.<|end|>"]
    assert scored(tokenizer, plain, Scoring(thinking="scored")) == ["<think>\n\n</think>\n\nYes.<|end|>"]
    assert scored(tokenizer, plain, Scoring(thinking="masked")) == ["Yes.<|end|>"]
    with pytest.raises(DpoKitError, match=r"model\.thinking"):
        encode(tokenizer, PROMPT, plain)


def test_arguments_of_the_template_hold_for_every_rendering(tmp_path):
    folder = make("date", tmp_path / "thinks")
    (folder / "chat_template.jinja").write_text(THINKS)
    settings = load_profile("tiny", model={"template_kwargs": {"enable_thinking": False}}).model
    tokenizer = load_tokenizer(str(folder), settings)
    assert scored(tokenizer, Response(prompt_id="p", text="Yes.")) == ["Yes.<|end|>"]


def test_tools_reach_the_template(tokenizer):
    tokenizer.chat_template = "{% for tool in tools or [] %}{{ tool['function']['name'] }}{% endfor %}" + PLAIN
    asked = Prompt.of(PROMPT.messages, tools=[{"type": "function", "function": {"name": "get_soil"}}])
    assert "get_soil" in tokenizer.decode(prompt_ids(tokenizer, asked))


def test_a_date_is_fixed_when_the_tokenizer_is_loaded_and_read_from_the_adapter_afterwards(tmp_path):
    folder, adapter = make("date", tmp_path / "date"), tmp_path / "adapter"
    template = load_tokenizer(str(folder)).chat_template
    assert re.search(r'Now \{\{ "\d\d:\d\d" \}\}', template)
    adapter.mkdir()
    (adapter / "chat_template.jinja").write_text(template.replace('"', '"1'))
    assert load_tokenizer(str(folder), adapter=adapter).chat_template == template.replace('"', '"1')
    (folder / "chat_template.jinja").write_text("{{ strftime_now(messages[0]['content']) }}")
    with pytest.raises(DpoKitError, match="writes the time in a format that is computed"):
        load_tokenizer(str(folder))


def test_all_tokens_that_end_an_answer_count(tmp_path):
    tokenizer = load_tokenizer(str(make("gemma_eos", tmp_path / "gemma")))
    assert tokenizer.eos_token_id == 2
    assert stop_ids(tokenizer) == [2, 1]
    assert load_tokenizer(BASE).pad_token == "<|pad|>"
    assert load_tokenizer(str(make("nopad", tmp_path / "nopad"))).pad_token == "<|end|>"


@pytest.mark.parametrize(("chosen", "text"), [
    ("chatml", "<|im_start|>user\nIs fern 0 dry?<|end|>\n<|im_start|>assistant\nYes.<|end|>\n"),
    ("none", "Is fern 0 dry?Yes.<|end|>"),
])  # fmt: skip
def test_a_base_model_gets_the_template_that_is_named(chosen, text, tmp_path):
    folder = str(make("notemplate", tmp_path / "base"))
    with pytest.raises(DpoKitError, match="--chat-template"):
        load_tokenizer(folder)
    model = {"chat_template": chosen}
    tokenizer = load_tokenizer(folder, load_profile("tiny", model=model).model)
    ids, _ = encode(tokenizer, PROMPT, Response(prompt_id="p", text="Yes."))
    assert tokenizer.decode(ids) == text
    assert must_stop(tokenizer)
    endless = load_tokenizer(folder, load_profile("tiny", model={**model, "eos_after_answer": False}).model)
    assert must_stop(endless) == (chosen == "chatml")


def test_weights_that_cannot_be_loaded_are_refused_in_one_line_before_loading(tmp_path):
    folder = make("gencfg", tmp_path / "model")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(DpoKitError, match="so it was cut off; download it again"):
        check_trainable_kind(str(folder))
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(DpoKitError, match=r"only pytorch_model\.bin there.*save_pretrained"):
        check_trainable_kind(str(folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "vision_config": {}, "text_config": {}}))
    with pytest.raises(DpoKitError, match="gemma3 model has a vision tower"):
        check_trainable_kind(str(folder))
    assert config["model_type"] == "llama"


def test_a_plain_tokenizer_still_renders_as_transformers_does(tokenizer):
    plain = AutoTokenizer.from_pretrained(BASE)
    assert tokenizer.chat_template == plain.chat_template
    expected = plain.apply_chat_template(PROMPT.chat(), add_generation_prompt=True, return_dict=True)["input_ids"]
    assert prompt_ids(tokenizer, PROMPT) == expected
