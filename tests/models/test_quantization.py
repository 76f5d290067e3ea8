"""4-bit layers: their weights, and their products without bitsandbytes' own kernels."""

import bitsandbytes as bnb
import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from dpo_kit.errors import DpoKitError
from dpo_kit.models.loading import load_base, lora
from dpo_kit.models.quantization import dequantized, plain_products, quantized_layers
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
    error = (dequantized(quantized_layers(model)[0].weight, torch.float32) - q).norm() / q.norm()
    # NF4 has 16 levels, densest at 0: for normal weights the relative error is near 0.09 (QLoRA, appendix E)
    assert 0.05 < error < 0.15


def test_plain_products_are_the_dequantised_layers_and_leave_no_trace(adapted):
    model, _ = adapted
    layer = quantized_layers(model)[0]
    x = torch.randn(2, 5, layer.in_features, requires_grad=True)
    weight = dequantized(layer.weight, torch.float32)
    own = layer(x)
    with plain_products(model):
        assert type(layer.forward).__name__ == "_PlainLinear"
        plain = layer(x)
        (gradient,) = torch.autograd.grad(plain.sum(), x)
    assert "forward" not in vars(layer)
    torch.testing.assert_close(plain, x @ weight.T)
    torch.testing.assert_close(plain, own)
    torch.testing.assert_close(gradient, weight.sum(dim=0).expand_as(x))


def test_repacking_is_forbidden_and_a_repacked_weight_is_refused(adapted):
    """After a forward in eval mode as answers are sampled. Where it was repacked, its bytes mean something else."""
    model, inputs = adapted
    layers = quantized_layers(model)

    def sample():
        with torch.no_grad():
            model.eval()(inputs["input_ids"])

    sample()
    before = dequantized(layers[0].weight, torch.float32)
    if not bnb.functional.has_avx512bf16():
        layers[0].weight.quant_state.packing_format_for_cpu = True  # as it would be set on a CPU that repacks
    for layer in layers:
        layer.support_avx512bf16_for_cpu = True
    sample()
    with pytest.raises(DpoKitError, match=r"repacked for inference.*call keep_gradients\(model\)"):
        dequantized(layers[0].weight, torch.float32)
    assert before.isfinite().all()
