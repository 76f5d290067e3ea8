"""NF4 weights whose gradients are alive, and the proof that they are.

On CPUs with AVX512-bf16, bitsandbytes 0.50 repacks a `Linear4bit` weight for inference at its first forward in eval
mode, and the repacked kernel has no backward: from then on nothing below that layer learns, without an error.
`keep_gradients` switches the repacking off; `assert_gradients_alive` checks a model as it is about to be trained.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import bitsandbytes as bnb
import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from dpo_kit.errors import DpoKitError


def nf4(compute_dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4 with double quantisation, as in QLoRA (arXiv 2305.14314, section 3)."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def quantize(model: nn.Module, compute_dtype: torch.dtype) -> nn.Module:
    """Turn every linear layer but the output head of a model in memory into NF4, as loading a checkpoint would.

    For models built from a configuration, whose weights no file holds. Returns the same model.
    """
    head = model.get_output_embeddings()
    targets = [(name, layer) for name, layer in model.named_modules() if type(layer) is nn.Linear and layer is not head]
    for name, layer in targets:
        made = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, layer.bias is not None, compute_dtype, quant_type="nf4"
        )
        made.weight = bnb.nn.Params4bit(layer.weight.data.cpu(), requires_grad=False, quant_type="nf4")
        made.bias = layer.bias
        model.set_submodule(name, made.to(layer.weight.device))
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


PROBED = 256  # tokens on which the gradient is compared: a large model must not need more memory for it than to train


def assert_gradients_alive(model: nn.Module, inputs: dict[str, Tensor]) -> float:
    """Check that the gradient reaches the lowest adapter as it would through unquantised layers.

    The gradient of the language-model loss on `inputs` (`input_ids` and `labels`, each `(B, T)`) is taken twice:
    through plain matrix products with the dequantised weights, and through the 4-bit layers after a forward in eval
    mode, which is when it dies where it dies. Gradients are left cleared and the mode as it was.

    Returns the cosine between the two, which is 1 up to rounding.
    Raises DpoKitError where the cosine is below 0.99 or the norms differ by more than a tenth.
    """
    inputs = _few(inputs)
    with _dequantized(model):
        expected = _lowest_adapter_gradient(model, inputs)
    was_training = model.training
    with torch.no_grad():
        model.eval()(**inputs)
    model.train(was_training)
    found = _lowest_adapter_gradient(model, inputs)
    cosine = nn.functional.cosine_similarity(expected, found, dim=0).item()
    ratio = (found.norm() / expected.norm()).item()
    if not (cosine > 0.99 and math.isclose(ratio, 1, abs_tol=0.1)):
        raise DpoKitError(
            f"the gradient at the lowest adapter is wrong: cosine {cosine:.3f} and relative norm {ratio:.3f} against "
            "dequantised weights, both should be 1; the 4-bit layers drop it, call keep_gradients(model) after loading"
        )
    return cosine


def _few(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The first rows, or the start of the first row; its whole text bears loss where no label was left."""
    rows = max(1, PROBED // inputs["input_ids"].shape[1])
    few = {name: tensor[:rows, :PROBED] for name, tensor in inputs.items()}
    return few if (few["labels"][:, 1:] != -100).any() else {**few, "labels": few["input_ids"]}


def _lowest_adapter_gradient(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """The loss gradient at the adapter weights of the first layer that has any, flat and in fp32."""
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    lowest = trainable[0][0].split(".lora_")[0]
    model.zero_grad()
    model(**inputs).loss.backward()
    gradient = torch.cat([p.grad.flatten().float() for name, p in trainable if name.startswith(lowest)])
    model.zero_grad()
    return gradient


@contextmanager
def _dequantized(model: nn.Module) -> Iterator[None]:
    """Let every 4-bit layer compute with plain matrix products; one layer at a time is held unquantised."""
    layers = quantized_layers(model)
    for layer in layers:
        layer.forward = _PlainLinear(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


class _PlainLinear:
    """`x W^T + b` with the layer's dequantised weight."""

    def __init__(self, layer: bnb.nn.Linear4bit):
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        bias = None if self.layer.bias is None else self.layer.bias.to(x.dtype)
        return _DequantizedProduct.apply(x, self.layer.weight) + (0 if bias is None else bias)


class _DequantizedProduct(torch.autograd.Function):
    """Dequantises again for the backward rather than keep every layer's weight alive."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: bnb.nn.Params4bit) -> Tensor:
        ctx.weight = weight
        return x @ whole(weight, x.dtype).T

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ whole(ctx.weight, gradient.dtype), None


def whole(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight `(out, in)`, whether it is held in 4 bits or not."""
    state = getattr(weight, "quant_state", None)
    return (weight if state is None else bnb.functional.dequantize_4bit(weight.data, state)).to(dtype)
