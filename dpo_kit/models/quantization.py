"""NF4 weights through which gradients pass, and plain matrix products to compare them with.

On CPUs with AVX512-bf16, bitsandbytes 0.50 repacks a `Linear4bit` weight for inference at its first forward in eval
mode. The kernel for repacked weights has no backward pass: from then on no layer below is trained, and there is no
error. `keep_gradients` switches the repacking off. `training.guards.check_gradients` proves that gradients pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import bitsandbytes as bnb
import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from dpo_kit.errors import DpoKitError


def nf4(compute_dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4 with double quantisation, as in QLoRA (arXiv 2305.14314, section 3)."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def quantize(model: PreTrainedModel, compute_dtype: torch.dtype) -> PreTrainedModel:
    """Turn every linear layer of a model in memory into NF4, except the output head, as loading a checkpoint would.

    This is for models built from a configuration, whose weights no file holds. Returns the same model.
    """
    head = model.get_output_embeddings()
    targets = [(name, layer) for name, layer in model.named_modules() if type(layer) is nn.Linear and layer is not head]
    for name, layer in targets:
        made = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, layer.bias is not None, compute_dtype, quant_type="nf4"
        )
        made.weight = bnb.nn.Params4bit(layer.weight.data.cpu(), requires_grad=False, quant_type="nf4")
        made.bias = layer.bias
        model.set_submodule(name, made.to(layer.weight.device))  # bitsandbytes quantises a weight when it is moved
    model.is_loaded_in_4bit = True
    keep_gradients(model)
    return model.requires_grad_(False)


def quantized_layers(model: nn.Module) -> list[bnb.nn.Linear4bit]:
    """The model's 4-bit linear layers, in order."""
    return [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]


def keep_gradients(model: nn.Module) -> None:
    """Forbid the inference-only repacking of 4-bit weights, which would cut off their gradient."""
    for layer in quantized_layers(model):
        layer.support_avx512bf16_for_cpu = False


def dequantized(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight `(out, in)` in `dtype`, whether it is held in 4 bits or not.

    Raises DpoKitError where it was repacked for inference, because its bytes are then in an order that is unknown here.
    """
    state = getattr(weight, "quant_state", None)
    if getattr(state, "packing_format_for_cpu", False):
        raise DpoKitError(
            "a 4-bit weight was repacked for inference, and gradients do not get through it; load the model again "
            "and call keep_gradients(model) before its first forward"
        )
    return (weight if state is None else bnb.functional.dequantize_4bit(weight.data, state)).to(dtype)


@contextmanager
def plain_products(model: nn.Module) -> Iterator[None]:
    """Let every 4-bit layer compute x W^T + b with its dequantised weight, without bitsandbytes' own kernels.

    Only one layer at a time is held dequantised, so a large model needs little more memory than in training.
    """
    layers = quantized_layers(model)
    for layer in layers:
        layer.forward = _PlainLinear(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


class _PlainLinear:
    """The forward of a linear layer with a dequantised weight."""

    def __init__(self, layer: bnb.nn.Linear4bit):
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        product = _DequantizedProduct.apply(x, self.layer.weight)
        return product if self.layer.bias is None else product + self.layer.bias.to(product.dtype)


class _DequantizedProduct(torch.autograd.Function):
    """x W^T. W is dequantised again in the backward pass, because autograd would keep that of every layer in memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        return x @ dequantized(weight, x.dtype).T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ dequantized(ctx.weight, gradient.dtype), None
