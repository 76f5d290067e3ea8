"""What a training will need, in memory and in time, before any weight is loaded.

The model is built from its configuration on the `meta` device, where tensors have shapes but take no memory. Weights,
adapters, gradients and optimiser are then counted to the byte, as bitsandbytes, PEFT and torch allocate them. What
autograd keeps of each token is a sum over one layer's operations. Temporary copies in the backward pass and the
allocator's rounding cannot be computed beforehand; the field `allowance` stands for them.
"""

import math
import statistics
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dpo_kit.errors import DpoKitError
from dpo_kit.models.quantization import quantize
from dpo_kit.models.tokens import first_line
from dpo_kit.profiles import Profile, load_profile, profile_names

GB = 10**9
USABLE = 0.92  # of a card's free memory: the allocator cannot use all of it
SCORING = 64 << 20  # bytes: logits, probabilities and their products for one block of scored tokens
KEPT_KEYS = 512  # without CUDA, a tile of queries with at most so many keys keeps its probabilities
BLOCK, NESTED_BLOCK = 64, 256  # weights under one absmax, and absmax under one nested absmax (QLoRA, section 3)

# The models that the gpu-* profiles use, so that `--plan` works for them without a network.
QWEN3 = {"model_type": "qwen3", "vocab_size": 151936, "head_dim": 128, "num_key_value_heads": 8}
SHAPES: dict[str, dict[str, Any]] = {
    f"Qwen/Qwen3-{size}": {
        **QWEN3, "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "tie_word_embeddings": tied,
    }
    for size, hidden, inner, layers, heads, tied in (
        ("0.6B", 1024, 3072, 28, 16, True), ("1.7B", 2048, 6144, 28, 16, True),
        ("4B", 2560, 9728, 36, 32, True), ("8B", 4096, 12288, 36, 32, False),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a training step, by part.

    `embeddings` holds every weight that stays unquantised: embeddings, head, norms, and the rotary tables.
    `reference` is the frozen second adapter, none where reference log-probs are precomputed.
    """

    quantized: int
    embeddings: int
    adapters: int
    reference: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    allowance: int

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(asdict(self).values())


def configuration(path: str) -> PretrainedConfig:
    """The configuration of a folder or Hub id. The models listed above need no network.

    Raises DpoKitError where there is none.
    """
    if path in SHAPES:
        shape = dict(SHAPES[path])
        return AutoConfig.for_model(shape.pop("model_type"), **shape)
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DpoKitError(f"{path}: no model configuration there ({first_line(error)})") from None


def estimate(
    profile: Profile,
    stage: Literal["sft", "dpo"] = "dpo",
    config: PretrainedConfig | None = None,
    *,
    precomputed: bool = False,
    device: Literal["cuda", "cpu"] = "cuda",
) -> Memory:
    """The peak of one stage. DPO's reference is a frozen adapter or `precomputed` log-probs; SFT has no reference.

    Raises DpoKitError where the model's configuration cannot be read.
    """
    model = skeleton(profile, config)
    text = model.config.get_text_config()
    settings, two = getattr(profile, stage), stage == "dpo"
    longest = (1 + two) * profile.model.max_length  # one row of the data, whose sides are computed together
    tokens = max(settings.max_tokens or settings.batch_size * longest, longest)
    quantized, plain = weight_bytes(model, profile.model.quantize == "nf4")
    shapes = adapter_shapes(model, profile.model.lora_r)
    adapters = 4 * sum(map(math.prod, shapes))
    width = torch.empty((), dtype=_dtype(profile)).itemsize
    layers = text.num_hidden_layers
    met = tokens * min(profile.model.max_length, KEPT_KEYS) if device == "cpu" else None
    layer = layer_bytes(model.config, profile.model.lora_r, width, tokens, met)
    copies = adapters // 4 * width if width == 2 else 0  # autocast keeps each adapter in bf16 too
    again = ((two and profile.model.checkpoint_layers) or layers) if profile.model.checkpointing else 0
    checkpoints = again * tokens * text.hidden_size * width  # of such a layer only its input is kept
    return Memory(
        quantized=quantized,
        embeddings=plain,
        adapters=adapters,
        reference=adapters if two and not precomputed else 0,
        gradients=adapters,
        optimizer=2 * adapters + 4 * len(shapes),  # two moments, and a step count for each tensor
        activations=copies + checkpoints + max(1, layers - again) * layer,  # at least the layer being recomputed
        # beside one block of logits: the last hidden states (tokens, H), their gradient, and a copy in fp32
        logits=SCORING + (2 * width + 4) * tokens * text.hidden_size,
        allowance=_allowance(model, width, tokens),
    )


def skeleton(profile: Profile, config: PretrainedConfig | None = None) -> PreTrainedModel:
    """The profile's model on the `meta` device: its tensors have shapes but no memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config or configuration(profile.model_path), dtype=_dtype(profile))


def weight_bytes(model: PreTrainedModel, nf4: bool) -> tuple[int, int]:
    """Bytes of the linear layers without the head in NF4 (0 where `nf4` is false), and of all other weights."""
    targets = [layer.weight for layer in _linears(model)] if nf4 else []
    tied = {id(weight) for weight in targets}
    rest = [tensor for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in tied]
    return sum(nf4_bytes(weight.numel()) for weight in targets), sum(tensor.nbytes for tensor in rest)


def nf4_bytes(weights: int) -> int:
    """Bytes of one tensor in NF4 with double quantisation: half a byte a weight; an 8-bit absmax for every 64 weights;
    for every 256 of these an fp32 absmax; their mean; and two code books of 16 and 256 fp32 values.
    """
    blocks = math.ceil(weights / BLOCK)
    return math.ceil(weights / 2) + blocks + 4 * math.ceil(blocks / NESTED_BLOCK) + 4 * (1 + 16 + 256)


def adapter_shapes(model: PreTrainedModel, r: int) -> list[tuple[int, int]]:
    """The shapes of the LoRA matrices A and B on every linear layer except the head."""
    sizes = [layer.weight.shape[:: -1 if isinstance(layer, Conv1D) else 1] for layer in _linears(model)]  # (out, in)
    pairs = [((r, inputs), (outputs, r)) for outputs, inputs in sizes]
    return [shape for pair in pairs for shape in pair]


def layer_bytes(config: PretrainedConfig, r: int, width: int, tokens: int, met: int | None = None) -> int:
    """What autograd keeps of one Llama- or Qwen3-shaped layer with LoRA, for `tokens` of `width` bytes a number.

    The widths are H (hidden), I (inner), A (queries) and K (keys). The two norms of the layer keep their input in fp32,
    and so do the norms of queries and keys. Each LoRA keeps its input and its r-wide middle; q, k and v share one
    input, and so do gate and up. SiLU and the product keep three I-wide tensors. Attention keeps q, k, v and its
    result. On a GPU it also keeps the result by sequence and one fp32 a head; elsewhere, for every head, the
    probability of each of the `met` pairs of a query and a key.
    """
    text = config.get_text_config()
    hidden, inner, heads = text.hidden_size, inner_size(text), text.num_attention_heads
    groups = getattr(text, "num_key_value_heads", None) or heads
    head = getattr(text, "head_dim", None) or hidden // heads
    queries, keys = heads * head, groups * head
    normed = 4 * (queries + keys + heads + groups) if text.model_type.startswith("qwen3") else 0
    each = 2 * 4 * (hidden + 1) + normed + width * (2 * hidden + 2 * queries + 2 * keys + 4 * inner + 7 * r)
    return tokens * each + (tokens * (width * queries + 4 * heads) if met is None else heads * width * met)


def inner_size(text: PretrainedConfig) -> int:
    """The width inside a layer's MLP; of experts those that a token goes through. Families name it differently."""
    named = (getattr(text, name, None) for name in ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner"))
    plain = next((width for width in named if width), 4 * text.hidden_size)
    experts = (getattr(text, "moe_intermediate_size", None) or plain) * (
        getattr(text, "num_experts_per_tok", None) or 0
    )
    return max(plain, experts)


def check_fits(profile: Profile, free: int | None = None, config: PretrainedConfig | None = None) -> dict[str, Memory]:
    """The estimate of both stages, where they fit into `free` bytes (default: the free memory of this GPU).

    Without a GPU nothing is refused. Raises DpoKitError with what was found, what is needed, and what to set.
    """
    if free is None and torch.cuda.is_available():
        free = torch.cuda.mem_get_info()[0]
    config = config or configuration(profile.model_path)
    stages = {stage: estimate(profile, stage, config) for stage in ("sft", "dpo")}
    stage, most = max(stages.items(), key=lambda item: item[1].total)
    if free is not None and most.total > USABLE * free:
        raise DpoKitError(
            f"profile {profile.name} needs {most.total / GB:.1f} GB for {stage}, and {free / GB:.1f} GB are free, of "
            f"which {USABLE:.0%} can be used; {_advice(profile, free, config)}"
        )
    return stages


def fewest_checkpoints(profile: Profile, free: int | None = None, config: PretrainedConfig | None = None) -> int | None:
    """The smallest number of layers that must recompute their activations for DPO to fit into `free` bytes.

    A number in the profile is used as it is. By default `free` is the GPU's free memory and what this process holds of
    it. None, which means all layers, where there is no GPU. Only with precomputed references.
    """
    said = profile.model
    if not said.checkpointing or said.checkpoint_layers or (free is None and not torch.cuda.is_available()):
        return said.checkpoint_layers
    if free is None:
        free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
    config = config or configuration(profile.model_path)

    def fits(count: int) -> bool:
        tried = profile.model_copy(update={"model": said.model_copy(update={"checkpoint_layers": count})})
        return estimate(tried, "dpo", config, precomputed=True).total <= USABLE * free

    counts = range(1, config.get_text_config().num_hidden_layers)
    # each further layer lowers the memory, so over the counts `fits` is False, ..., False, True, ..., True
    return next(iter(counts[bisect_left(counts, True, key=fits) :]), None)


def fitting_profiles(free: int) -> list[str]:
    """The gpu-* profiles whose model and settings fit into `free` bytes, the largest last."""
    profiles = [load_profile(name) for name in profile_names() if name.startswith("gpu-")]
    peaks = {profile.name: _peak(profile) for profile in profiles if profile.model_path in SHAPES}
    return sorted((name for name, peak in peaks.items() if peak <= USABLE * free), key=peaks.__getitem__)


def _advice(profile: Profile, free: int, config: PretrainedConfig) -> str:
    """The smallest change of the profile with which it fits, or else the name of a profile that fits."""
    lengths = [n for n in (4096, 2048, 1024, 512) if n <= profile.model.max_length] or [profile.model.max_length]
    for length in lengths:
        for checkpointing in dict.fromkeys((profile.model.checkpointing, True)):
            model = profile.model.model_copy(update={"max_length": length, "checkpointing": checkpointing})
            less = {"max_tokens": 2 * length}
            tables = {stage: getattr(profile, stage).model_copy(update=less) for stage in ("sft", "dpo")}
            tried = profile.model_copy(update={"model": model, **tables})
            if _peak(tried, config) <= USABLE * free:
                said = f"model.max_length={length}", f"model.checkpointing={str(checkpointing).lower()}"
                both = (f"{stage}.max_tokens={2 * length}" for stage in ("sft", "dpo"))
                return "it fits with " + " ".join(f"--set {change}" for change in (*said, *both))
    others = fitting_profiles(free)
    return f"it fits with --profile {others[-1]}" if others else "no profile fits: choose a smaller --model"


def _peak(profile: Profile, config: PretrainedConfig | None = None) -> int:
    """Bytes at the peak of SFT or of DPO, whichever is larger."""
    return max(estimate(profile, stage, config).total for stage in ("sft", "dpo"))


def _allowance(model: PreTrainedModel, width: int, tokens: int) -> int:
    """Bytes for the backward pass: one dequantised weight with its absmax, and the gradients held within a layer."""
    text = model.config.get_text_config()
    largest = max(layer.weight.numel() for layer in _linears(model))
    return largest * width + 4 * largest // BLOCK + tokens * (3 * width * inner_size(text) + 8 * text.hidden_size)


def _linears(model: PreTrainedModel) -> list[nn.Module]:
    head = model.get_output_embeddings()
    return [layer for layer in model.modules() if isinstance(layer, (nn.Linear, Conv1D)) and layer is not head]


def _dtype(profile: Profile) -> torch.dtype:
    return getattr(torch, profile.model.compute_dtype)


# ---- time -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speed:
    """Seconds that the whole model takes for one token: in a forward pass alone, and in forward and backward."""

    forward: float
    both: float

    def seconds(self, profile: Profile, stage: Literal["sft", "dpo"], tokens: int) -> float:
        """Seconds for `tokens` tokens an epoch. Checkpointing adds a forward pass; DPO adds the reference's, once."""
        each = self.both + profile.model.checkpointing * self.forward
        return tokens * (getattr(profile, stage).epochs * each + (stage == "dpo") * self.forward)


def calibrate(profile: Profile, config: PretrainedConfig | None = None, tokens: int = 512) -> Speed:
    """Measure the time of one layer with random weights, and multiply it by the number of layers.

    The time of one layer is the difference between a model of two layers and one of one layer, so that work outside
    the layers is not counted. The head, which scores about half of the tokens, is added by its share of the
    multiplications. On a busy machine noise can hide the difference. Then half the time of two layers is taken, because
    an estimate that is too long is better than an estimate of zero.
    """
    config = config or configuration(profile.model_path)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ids = torch.randint(5, 500, (1, tokens), device=device)
    (forward1, both1), (forward2, both2) = (_times(_shallow(profile, config, layers, device), ids) for layers in (1, 2))
    text = config.get_text_config()
    weights = sum(layer.weight.numel() for layer in _linears(skeleton(profile, config))) / text.num_hidden_layers
    layers = text.num_hidden_layers + 0.5 * text.vocab_size * text.hidden_size / weights  # as if the head were layers
    measured = ((forward1, forward2), (both1, both2))
    return Speed(*((two - one if two > one else two / 2) * layers / tokens for one, two in measured))


def _shallow(profile: Profile, config: PretrainedConfig, layers: int, device: str) -> nn.Module:
    """The model with `layers` layers, a small vocabulary and no head, with the profile's quantisation and adapters."""
    from peft import get_peft_model

    from dpo_kit.models.loading import lora

    settings = {**config.to_dict(), "num_hidden_layers": layers, "vocab_size": 512, "layer_types": None}
    settings.pop("model_type")
    small = AutoConfig.for_model(config.model_type, **settings)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(small, dtype=_dtype(profile))
    model = quantize(model, _dtype(profile)) if profile.model.quantize == "nf4" else model
    return get_peft_model(model, lora(profile)).get_base_model().base_model


def _times(model: nn.Module, ids: torch.Tensor, repeats: int = 3) -> tuple[float, float]:
    """Seconds of a forward pass alone and with backward: the median of `repeats`, after one that is not counted."""

    def forward() -> torch.Tensor:
        return model(input_ids=ids, use_cache=False).last_hidden_state

    def alone() -> None:
        with torch.no_grad():
            forward()

    return tuple(statistics.median([_seconds(step) for _ in range(repeats + 1)][1:])
                 for step in (alone, lambda: forward().float().sum().backward()))  # fmt: skip


def _seconds(step: Callable[[], None]) -> float:
    started = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started
