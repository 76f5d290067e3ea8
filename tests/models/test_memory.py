"""The memory estimate is compared with real allocations, where a CPU can count them to the byte."""

import math

import pytest
import torch
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from dpo_kit.errors import DpoKitError
from dpo_kit.models import memory
from dpo_kit.models.loading import lora
from dpo_kit.models.quantization import quantize, quantized_layers
from dpo_kit.profiles import load_profile
from dpo_kit.training import branches, fast, token_scores
from dpo_kit.training.branches import Branches

SMALL = {
    "vocab_size": 512, "hidden_size": 128, "intermediate_size": 336, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 2,
}  # fmt: skip
KINDS = {
    "qwen3": AutoConfig.for_model("qwen3", head_dim=32, tie_word_embeddings=False, **SMALL),
    "qwen3, tied": AutoConfig.for_model("qwen3", head_dim=32, tie_word_embeddings=True, **SMALL),
    "llama": AutoConfig.for_model("llama", **SMALL),
}


def profile(dtype="bfloat16", **model):
    return load_profile("tiny", model={"compute_dtype": dtype, "max_length": 64, "lora_r": 8, **model})


def build(config, dtype=torch.bfloat16, r=8):
    """The model from its configuration, quantised, with fp32 adapters as training has them."""
    model = quantize(AutoModelForCausalLM.from_config(config, dtype=dtype), dtype)
    model = get_peft_model(model, lora(profile(lora_r=r)))
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
    return model


def stored(tensors):
    """Bytes of the tensors' storages, each counted once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def state_tensors(state):
    own = [state.absmax, state.code, *([state.offset] if state.nested else [])]
    return own + (state_tensors(state.state2) if state.nested else [])


@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_quantisation_are_counted_to_the_byte(kind):
    model = quantize(AutoModelForCausalLM.from_config(KINDS[kind], dtype=torch.bfloat16), torch.bfloat16)
    layers = quantized_layers(model)
    packed = stored([t for layer in layers for t in (layer.weight.data, *state_tensors(layer.weight.quant_state))])
    four_bit = {id(layer.weight) for layer in layers}
    rest = stored([t for t in (*model.parameters(), *model.buffers()) if id(t) not in four_bit])
    found = memory.estimate(profile(), config=KINDS[kind])
    assert (found.quantized, found.embeddings) == (packed, rest)


def test_double_quantisation_costs_the_published_bits():
    # QLoRA, section 3: 8/64 + 32/(64 * 256) = 0.127 bits a weight beside the four
    bits = 8 * memory.nf4_bytes(4096 * 12288) / (4096 * 12288)
    assert bits == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-3)


@pytest.mark.parametrize("weights", [1, 63, 65, 64 * 256 + 1, 1000 * 17])
def test_shapes_that_fill_no_block_are_counted_too(weights):
    import bitsandbytes.functional as F

    packed, state = F.quantize_4bit(torch.randn(weights), compress_statistics=True, quant_type="nf4")
    assert stored([packed, *state_tensors(state)]) == memory.nf4_bytes(weights)


def test_adapters_gradients_and_optimizer_are_counted_to_the_byte():
    model = build(KINDS["qwen3"])
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    model(input_ids=torch.randint(5, 500, (1, 8))).logits.sum().backward()
    optimizer.step()
    found = memory.estimate(profile(), config=KINDS["qwen3"])
    assert found.adapters == found.reference == stored(trained)
    assert found.gradients == stored([p.grad for p in trained])
    assert found.optimizer == stored([t for state in optimizer.state.values() for t in state.values()])


def test_a_reference_costs_an_adapter_unless_it_is_precomputed_or_there_is_none():
    config = KINDS["qwen3"]
    assert memory.estimate(profile(), config=config, precomputed=True).reference == 0
    assert memory.estimate(profile(), "sft", config).reference == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_what_autograd_keeps_of_a_layer_is_counted_to_the_byte(kind, dtype):
    """Two layers against one, on the fast path: two sequences of 100 tokens on 150 places, half of each is shared."""
    ids = torch.randint(5, 500, (2, 100))
    ids[1, :50] = ids[0, :50]
    ids[:, 50] = torch.tensor([5, 6])
    kept = []
    for layers in (1, 2):
        options = {**KINDS[kind].to_dict(), "num_hidden_layers": layers, "layer_types": None}
        config = AutoConfig.for_model(options.pop("model_type"), **options)
        model = build(config, getattr(torch, dtype)).get_base_model()
        kept.append(kept_by_autograd(model, ids))
    width = 2 if dtype == "bfloat16" else 4
    copies = sum(map(math.prod, memory.adapter_shapes(memory.skeleton(profile(), KINDS[kind]), 8))) // 2 * width
    expected = memory.layer_bytes(KINDS[kind], 8, width, 150, met=100 * 100 + 50 * 100)
    assert kept[1] - kept[0] == expected + (copies if width == 2 else 0)


def kept_by_autograd(model, ids):
    """Bytes that a forward keeps for its backward, weights not counted."""
    fast.install(model)
    weights = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=model.dtype == torch.bfloat16):
        layout = Branches.of(ids, torch.ones_like(ids))
        result = fast.row_states(model, ids, layout)
    assert result.requires_grad
    assert len(layout.owner) == 150
    return stored([t for t in kept if t.untyped_storage().data_ptr() not in weights])


def test_the_block_of_logits_is_that_of_the_fast_path():
    assert 4 * token_scores.HEAD_BYTES["cuda"] == memory.SCORING, "logits, probabilities, and two temporary copies"
    assert memory.KEPT_KEYS == branches.KEPT


def test_checkpointing_keeps_one_layer_and_the_inputs_of_all():
    config = memory.configuration("Qwen/Qwen3-4B")
    kept, again = (
        memory.estimate(load_profile("gpu-8gb", model={"checkpointing": on}), config=config) for on in (False, True)
    )
    assert again.activations < kept.activations / 5
    assert again.quantized == kept.quantized
    half = memory.estimate(load_profile("gpu-8gb", model={"checkpoint_layers": 18}), config=config)
    assert half.activations == pytest.approx((kept.activations + again.activations) / 2, rel=0.05)


@pytest.mark.parametrize("free", [5, 9, 13])
def test_no_more_layers_are_checkpointed_than_memory_needs(free):
    config, free = memory.configuration("Qwen/Qwen3-4B"), free * memory.GB
    fewest = memory.fewest_checkpoints(load_profile("gpu-8gb"), free, config)
    enough, too_few = (load_profile("gpu-8gb", model={"checkpoint_layers": count}) for count in (fewest, fewest - 1))
    totals = [memory.estimate(tried, config=config, precomputed=True).total for tried in (enough, too_few)]
    assert totals[0] <= memory.USABLE * free < totals[1]


def test_what_a_profile_says_of_checkpointing_stands():
    config = memory.configuration("Qwen/Qwen3-4B")
    chosen, kept, all_of_them = (
        memory.fewest_checkpoints(load_profile("gpu-8gb", model=said), memory.GB, config)
        for said in ({"checkpoint_layers": 3}, {"checkpointing": False}, {})
    )
    assert chosen == 3
    assert kept is None
    assert all_of_them is None, "nothing fits, and `check_fits` has said so before"


@pytest.mark.parametrize(("name", "card"), [("gpu-8gb", 8), ("gpu-12gb", 12), ("gpu-16gb", 16), ("gpu-24gb", 24)])
def test_each_profile_fits_its_card_with_room_for_a_screen_and_no_smaller_one_wastes_it(name, card):
    free = card * 2**30 - 10**9  # a desktop and the CUDA context
    stages = memory.check_fits(load_profile(name), free)
    assert max(part.total for part in stages.values()) > 0.5 * free, "the card is made use of"
    assert name in memory.fitting_profiles(free)


def test_what_does_not_fit_is_refused_with_what_would():
    large = load_profile("gpu-24gb")
    with pytest.raises(DpoKitError, match=r"gpu-24gb needs .* GB for dpo, and 12\.0 GB are free.*it fits with --set"):
        memory.check_fits(large, 12 * memory.GB)
    with pytest.raises(DpoKitError, match="it fits with --profile gpu-8gb"):
        memory.check_fits(large, 7 * memory.GB)
    with pytest.raises(DpoKitError, match="no profile fits: choose a smaller --model"):
        memory.check_fits(large, 1 * memory.GB)


def test_the_stage_that_needs_more_decides(monkeypatch):
    """Of two batches as large as the model allows, DPO's has two sides; with much longer ones SFT needs more."""
    tried = load_profile("gpu-8gb", sft={"max_tokens": 16 * 1024})
    sft, dpo = (memory.estimate(tried, stage).total for stage in ("sft", "dpo"))
    assert dpo < sft
    between = round((sft + dpo) / 2 / memory.USABLE)
    with pytest.raises(DpoKitError, match=rf"gpu-8gb needs {sft / memory.GB:.1f} GB for sft"):
        memory.check_fits(tried, between)
    assert set(memory.check_fits(tried, round(1.01 * sft / memory.USABLE))) == {"sft", "dpo"}


def test_logits_and_allowance_are_those_worked_by_hand():
    # SMALL in bf16, 2 pairs of two sides of 64 tokens: 256 tokens, H = 128, I = 336, 64 weights under one absmax
    tried = load_profile(
        "tiny", model={"compute_dtype": "bfloat16", "max_length": 64}, dpo={"batch_size": 2, "max_tokens": 256}
    )
    found = memory.estimate(tried, config=KINDS["qwen3"])
    # the last hidden states and their gradient in bf16, and one of them in fp32: 8 bytes a number, beside one block
    assert found.logits == (64 << 20) + 8 * 256 * 128
    # the largest matrix, 128 x 336, dequantised to bf16 with the fp32 absmax of each block; and the gradients of the
    # gate, up and their product in bf16, and of two residual streams in fp32
    assert found.allowance == 2 * 128 * 336 + 4 * 128 * 336 // 64 + 256 * (3 * 2 * 336 + 2 * 4 * 128)


def test_the_advice_fits():
    from dpo_kit.profiles import parse_overrides

    with pytest.raises(DpoKitError) as refused:
        memory.check_fits(load_profile("gpu-24gb"), 12 * memory.GB)
    changes = str(refused.value).split("--set ")[1:]
    memory.check_fits(load_profile("gpu-24gb", **parse_overrides(c.strip() for c in changes)), 12 * memory.GB)


def test_a_model_that_is_not_there_is_one_clear_error():
    with pytest.raises(DpoKitError, match="nobody/none: no model configuration there"):
        memory.configuration("nobody/none")


def test_time_is_tokens_times_what_the_stage_does_with_each():
    speed = memory.Speed(forward=1e-3, both=3e-3)
    tiny = load_profile("tiny", dpo={"epochs": 2})
    assert speed.seconds(tiny, "sft", 1000) == pytest.approx(3.0)
    assert speed.seconds(tiny, "dpo", 1000) == pytest.approx(2 * 3.0 + 1.0), "and the reference's forward, once"
    again = load_profile("tiny", model={"checkpointing": True})
    assert speed.seconds(again, "sft", 1000) == pytest.approx(3.0 + 1.0), "and each activation once more"


def test_a_calibration_measures_this_machine():
    speed = memory.calibrate(load_profile("tiny"), tokens=64)
    assert 0 < speed.forward < 1
    assert 0 < speed.both < 1


def test_noise_that_hides_a_layers_time_gives_too_much_and_not_nothing(monkeypatch):
    """A busy machine may take longer for one layer than for two."""
    monkeypatch.setattr(memory, "_times", lambda model, ids: (3.0, 3.0) if len(model.layers) == 1 else (2.0, 2.0))
    assert memory.calibrate(load_profile("tiny"), tokens=64).forward > 0
