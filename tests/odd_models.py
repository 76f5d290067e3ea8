"""Small models whose tokenizer, template or configuration is odd in ways that real models are.

`make(name, folder)` writes one: a plain copy of the shipped model with one thing changed, or a two-layer model of
another architecture with arbitrary weights. What each is for stands in ODD.
"""

import json
import shutil
from pathlib import Path

import torch
import transformers as hf
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpo_kit.profiles import DATA

BASE = DATA / "tiny-base"
ODD = {
    "nopad": "the tokenizer has no pad token (Llama, Mistral)",
    "gemma_eos": "the turn ends with a token that is not the tokenizer's EOS; generation_config lists both (Gemma)",
    "r1think": "the template drops everything up to </think> from answers (reasoning models)",
    "sysdrop": "the template leaves the system message out without a word",
    "sysraise": "the template refuses a system message (Gemma 2)",
    "date": "the template writes the time of day into the system turn (Llama 3.x writes the date)",
    "noeos_tmpl": "the template writes no EOS after an answer",
    "notemplate": "there is no chat template (a base model)",
    "gencfg": "generation_config holds sampling values without do_sample",
    "bigvocab": "the tokenizer has more tokens than the embedding has rows",
}
PLAIN = (BASE / "chat_template.jinja").read_text()
TURN = "<|{{ message['role'] }}|>{{ message['content'] }}"
ASK = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
EACH = "{% for message in messages %}"
ANSWER = "(message['content'].split('</think>')[-1] if message['role'] == 'assistant' else message['content'])"
TEMPLATES = {
    "r1think": PLAIN.replace("message['content']", ANSWER),
    "sysdrop": f"{EACH}{{% if message['role'] != 'system' %}}{TURN}<|end|>{{% endif %}}{{% endfor %}}{ASK}",
    "sysraise": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + PLAIN,
    "date": "<|system|>Now {{ strftime_now('%H:%M') }}<|end|>" + PLAIN,
    "noeos_tmpl": f"{EACH}{TURN}{{% if message['role'] != 'assistant' %}}<|end|>{{% endif %}}{{% endfor %}}{ASK}",
}
SHAPES = {
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
    "max_position_embeddings": 512,
}
NO_GQA = {k: v for k, v in SHAPES.items() if k != "num_key_value_heads"}
ARCHITECTURES = {
    "qwen3": hf.Qwen3Config(**SHAPES, head_dim=16),
    "mistral_sw": hf.MistralConfig(**SHAPES, sliding_window=32, head_dim=16),
    "gemma2": hf.Gemma2Config(**SHAPES, head_dim=16, sliding_window=32),
    "gemma3": hf.Gemma3TextConfig(**SHAPES, head_dim=16, sliding_window=32),
    "gptneox": hf.GPTNeoXConfig(**NO_GQA),
    "mixtral": hf.MixtralConfig(**SHAPES, num_local_experts=4, head_dim=16),
    "qwen3moe": hf.Qwen3MoeConfig(
        **SHAPES, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, decoder_sparse_step=1
    ),
    "gpt2": hf.GPT2Config(
        vocab_size=1024, n_embd=64, n_layer=2, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=1
    ),
    "opt": hf.OPTConfig(
        vocab_size=1024,
        hidden_size=64,
        word_embed_proj_dim=64,
        ffn_dim=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
    ),
}


def make(name: str, folder: Path) -> Path:
    """Write the odd model `name` into `folder`, which must not be there; returns it."""
    if name in ARCHITECTURES:
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(ARCHITECTURES[name]).save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(BASE / file, folder / file)
        return folder
    shutil.copytree(BASE, folder, ignore=shutil.ignore_patterns("manifest.json", "README.md"))
    if name in TEMPLATES:
        (folder / "chat_template.jinja").write_text(TEMPLATES[name])
    elif name == "notemplate":
        (folder / "chat_template.jinja").unlink()
    elif name == "nopad":
        _edit(folder / "tokenizer_config.json", pad_token=None)
        for file in ("config.json", "generation_config.json"):
            _edit(folder / file, pad_token_id=None)
    elif name == "gemma_eos":
        _edit(folder / "tokenizer_config.json", eos_token="<|system|>")
        for file in ("config.json", "generation_config.json"):
            _edit(folder / file, eos_token_id=[2, 1])
    elif name == "gencfg":
        _edit(folder / "generation_config.json", temperature=0.9, top_p=0.6)
    elif name == "bigvocab":
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|stop|>"]})
        turned = PLAIN.replace("<|{{ message['role'] }}|>", "<|turn|><|{{ message['role'] }}|>")
        tokenizer.chat_template = turned.replace("%}<|assistant|>", "%}<|turn|><|assistant|>")
        tokenizer.save_pretrained(folder)
    return folder


def _edit(path: Path, **values) -> None:
    """Put the values into a JSON file; None removes one."""
    data = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}, indent=1) + "\n")
