"""The gradient through 4-bit layers, with the guard and without it."""

import bitsandbytes as bnb
import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from dpo_kit.errors import DpoKitError
from dpo_kit.models.loading import load_base, lora
from dpo_kit.models.quantization import assert_gradients_alive, quantized_layers, whole
from dpo_kit.profiles import load_profile


@pytest.fixture
def adapted():
    """The tiny base in NF4 with a fresh LoRA, and a batch of language-model inputs `(2, 12)`."""
    profile = load_profile("tiny")
    torch.manual_seed(0)
    model, _ = load_base(profile)
    ids = torch.randint(5, 1000, (2, 12))
    return get_peft_model(model, lora(profile)).train(), {"input_ids": ids, "labels": ids}


def test_every_linear_layer_but_the_head_is_nf4_with_double_quantisation(adapted):
    model, _ = adapted
    layers = quantized_layers(model)
    assert len(layers) == 4 * 7, "q, k, v, o, gate, up, down in each of four layers"
    assert all(layer.weight.quant_state.quant_type == "nf4" and layer.weight.quant_state.nested for layer in layers)


def test_nf4_stays_close_to_the_shipped_weights(adapted):
    model, _ = adapted
    plain = AutoModelForCausalLM.from_pretrained(load_profile("tiny").model_path, dtype=torch.float32)
    q = plain.model.layers[0].self_attn.q_proj.weight
    error = (whole(quantized_layers(model)[0].weight, torch.float32) - q).norm() / q.norm()
    # NF4 has 16 levels, densest at 0: for normal weights the relative error is near 0.09 (QLoRA, appendix E)
    assert 0.05 < error < 0.15


def test_guarded_gradients_are_alive_even_after_a_forward_in_eval_mode(adapted):
    model, inputs = adapted
    assert assert_gradients_alive(model, inputs) == pytest.approx(1, abs=1e-4)
    assert model.training, "the mode is as it was"
    assert all(p.grad is None for p in model.parameters()), "and no gradient is left behind"


def test_without_the_guard_the_check_fails_where_the_cpu_repacks_weights(adapted):
    model, inputs = adapted
    if not bnb.functional.has_avx512bf16():
        pytest.skip("this CPU has no AVX512-bf16: bitsandbytes repacks nothing here; the next test cuts by hand")
    for layer in quantized_layers(model):
        layer.support_avx512bf16_for_cpu = True
    with pytest.raises(DpoKitError, match="the gradient at the lowest adapter is wrong"):
        assert_gradients_alive(model, inputs)


def test_layers_that_drop_their_gradient_are_found_on_any_machine(adapted, monkeypatch):
    model, inputs = adapted
    whole, seen = bnb.nn.Linear4bit.forward, {"eval": False}

    def cut(self, x):
        seen["eval"] |= not self.training
        result = whole(self, x)
        return result.detach() if seen["eval"] else result

    monkeypatch.setattr(bnb.nn.Linear4bit, "forward", cut)
    with pytest.raises(DpoKitError, match="the gradient at the lowest adapter is wrong"):
        assert_gradients_alive(model, inputs)
