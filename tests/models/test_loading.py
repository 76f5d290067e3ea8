import shutil

import pytest
import torch
from safetensors.torch import load_file

from dpo_kit.errors import DpoKitError
from dpo_kit.models.identity import check_shipped_model
from dpo_kit.models.loading import load_base
from dpo_kit.profiles import load_profile


@pytest.fixture
def copy(tmp_path):
    """A copy of the shipped model that may be spoilt."""
    return shutil.copytree(load_profile("tiny").model_path, tmp_path / "tiny-base")


def test_the_shipped_model_passes(copy):
    check_shipped_model(copy)
    load_base(load_profile("tiny", model={"path": str(copy)}))


def test_a_changed_byte_of_the_weights_is_refused_with_the_way_out(copy):
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    with pytest.raises(DpoKitError, match=r"model\.safetensors: missing or changed; .*python -m dpo_kit pretrain"):
        load_base(load_profile("tiny", model={"path": str(copy)}))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "chat_template.jinja", "manifest.json"])
def test_a_missing_file_is_refused(copy, name):
    (copy / name).unlink()
    with pytest.raises(DpoKitError, match="pretrain"):
        load_base(load_profile("tiny", model={"path": str(copy)}))


def test_a_folder_that_is_no_model_is_one_clear_error(tmp_path):
    with pytest.raises(DpoKitError, match="the model cannot be loaded"):
        load_base(load_profile("tiny", model={"path": str(tmp_path)}))


def test_a_pickled_model_is_not_loaded(copy):
    """Unpickling runs whatever code the file holds."""
    weights = load_file(copy / "model.safetensors")
    for name in ("model.safetensors", "manifest.json"):
        (copy / name).unlink()
    elsewhere = copy.rename(copy.with_name("pickled"))
    torch.save(weights, elsewhere / "pytorch_model.bin")
    with pytest.raises(DpoKitError, match=r"only pytorch_model.bin there, and pickled weights are not loaded"):
        load_base(load_profile("tiny", model={"path": str(elsewhere)}))


def test_a_hub_id_that_cannot_be_reached_is_one_clear_error():
    with pytest.raises(DpoKitError, match="nobody/no-such-model: the model cannot be loaded"):
        load_base(load_profile("tiny", model={"path": "nobody/no-such-model"}))


def test_without_quantisation_the_weights_are_the_shipped_ones():
    model, _ = load_base(load_profile("tiny", model={"quantize": "none"}))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
