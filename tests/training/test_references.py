"""The reference cache is used where the log-probs would be the same, and only there."""

import copy

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from dpo_kit.models.identity import model_identity
from dpo_kit.models.store import Store
from dpo_kit.training.references import PairLogProbs, add_reference_logps, pair_keys

SHAPE = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip


@pytest.fixture
def model():
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE))


def lora(**changes):
    return LoraConfig(**{"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "init_lora_weights": False, **changes})


def with_adapters(model, seed=0, **changes):
    torch.manual_seed(seed)
    made = get_peft_model(copy.deepcopy(model), lora())
    torch.manual_seed(99)
    made.add_adapter("ref", lora(**changes))
    return made


def identity(model, **context):
    """The identity of the reference as the trainer asks for it."""
    return model_identity(model, "ref" if "ref" in getattr(model, "peft_config", {}) else None, **context)


def test_what_is_trained_does_not_enter_the_identity(model):
    assert identity(with_adapters(model, seed=0)) == identity(with_adapters(model, seed=1))
    assert identity(get_peft_model(copy.deepcopy(model), lora())) == identity(
        get_peft_model(copy.deepcopy(model), lora(r=8))
    ), "with no `ref` adapter the reference is the base, whatever the rank of what is trained"


def test_whatever_changes_the_references_numbers_changes_the_identity(model):
    def nudged(made, name):
        made.get_parameter(name).data[0, 0] += 1e-3
        return made

    start = with_adapters(model)
    other = [
        nudged(with_adapters(model), "base_model.model.model.layers.1.mlp.up_proj.weight"),
        nudged(with_adapters(model), "base_model.model.model.layers.0.self_attn.q_proj.lora_A.ref.weight"),
        with_adapters(model, lora_alpha=8),
        with_adapters(model, use_rslora=True),
        with_adapters(copy.deepcopy(model).bfloat16()),
    ]
    rotary = copy.deepcopy(start)
    rotary.config.rope_parameters = {**rotary.config.rope_parameters, "rope_theta": 500.0}
    identities = [identity(made) for made in (start, *other, rotary)]
    identities.append(identity(start, autocast="bfloat16"))
    assert len(set(identities)) == len(identities)


def test_quantisation_enters_the_identity():
    import bitsandbytes as bnb

    torch.manual_seed(0)
    weight = torch.randn(64, 64)

    def holder(kind, scale=1.0):
        made = torch.nn.Module()
        made.config = LlamaConfig(**SHAPE)
        made.layer = bnb.nn.Linear4bit(64, 64, bias=False, quant_type=kind, compute_dtype=torch.float32)
        made.layer.weight = bnb.nn.Params4bit(weight * scale, requires_grad=False, quant_type=kind).to("cpu")
        return made

    kinds = [holder("nf4"), holder("fp4"), holder("nf4", 2.0)]
    assert torch.equal(kinds[0].layer.weight.data, kinds[2].layer.weight.data), "same codes under another scale"
    assert len({identity(made) for made in kinds}) == 3


def batch(chosen=(5, 6, 7), rejected=(5, 6, 8), prompt=2):
    ids = torch.tensor([[*chosen, 0], [*rejected, 0]])
    mask = (torch.arange(4) >= prompt) & (ids > 0)
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "completion_mask": mask.long()}


def test_every_field_of_a_pair_is_in_its_key():
    keys = [
        *pair_keys([batch(), batch(chosen=(5, 6, 9)), batch(rejected=(5, 6, 9)), batch(prompt=1)], "model", None),
        *pair_keys([batch()], "another model", None),
        *pair_keys([batch()], "model", 0.5),
    ]
    assert len(set(keys)) == len(keys)


def test_padding_is_not():
    padded = {name: torch.nn.functional.pad(tensor, (0, 3)) for name, tensor in batch().items()}
    assert pair_keys([padded], "model", None) == pair_keys([batch()], "model", None)


class Counting:
    """Stands for the reference's forward: counts the rows it is asked for."""

    def __init__(self):
        self.rows = []

    def __call__(self, rows):
        self.rows += [row["n"] for row in rows]
        values = torch.tensor([float(row["n"]) for row in rows])
        return -values, -values - 0.5


def filled(count, path, compute):
    dataset = Dataset.from_list([{"n": n} for n in range(count)])
    return add_reference_logps(dataset, [f"key-{n}" for n in range(count)], Store(path, PairLogProbs), compute, block=4)


def test_a_second_sweep_computes_nothing_a_superset_only_what_is_new(tmp_path):
    first, again, more = Counting(), Counting(), Counting()
    made = filled(6, tmp_path / "cache.sqlite", first)
    assert filled(6, tmp_path / "cache.sqlite", again).to_list() == made.to_list()
    filled(9, tmp_path / "cache.sqlite", more)
    assert (first.rows, again.rows, more.rows) == ([0, 1, 2, 3, 4, 5], [], [6, 7, 8])
    assert made[5] == {"n": 5, "ref_chosen_logps": -5.0, "ref_rejected_logps": -5.5}


def test_a_subset_in_another_order_hits(tmp_path):
    filled(6, tmp_path / "cache.sqlite", Counting())
    kept = Store(tmp_path / "cache.sqlite", PairLogProbs).find(["key-3", "key-1", "key-77"])
    assert kept == [(-3.0, -3.5), (-1.0, -1.5), None]


def test_an_interrupted_sweep_goes_on_at_its_block(tmp_path):
    class Killed(Counting):
        def __call__(self, rows):
            if len(self.rows) >= 4:
                raise KeyboardInterrupt
            return super().__call__(rows)

    with pytest.raises(KeyboardInterrupt):
        filled(10, tmp_path / "cache.sqlite", Killed())
    rest = Counting()
    filled(10, tmp_path / "cache.sqlite", rest)
    assert rest.rows == [4, 5, 6, 7, 8, 9]
