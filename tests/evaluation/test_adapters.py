"""What an adapter's record may decide, and what it may not: which base is loaded is the user's word."""

import json
import shutil
from pathlib import Path

import pytest

from dpo_kit.errors import DpoKitError
from dpo_kit.evaluation.adapters import OF_TRAINING, beta_of, profile_of_adapters
from dpo_kit.models.identity import base_fingerprint, read_record
from dpo_kit.profiles import ModelSettings, load_profile

TINY = load_profile("tiny")


@pytest.fixture(autouse=True)
def no_profile_is_set(monkeypatch):
    monkeypatch.delenv("DPO_KIT_PROFILE", raising=False)


@pytest.fixture
def adapter(tmp_path):
    """Makes adapter folders with a record: `adapter("a", profile="tiny", **changes of the table model)`."""

    def make(name, profile="tiny", beta=0.3, base=None, evaluation=None, **model):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{}")
        tables = {"model": {**TINY.model.model_dump(), **model}, "dpo": {"beta": beta}}
        tables["evaluation"] = {**TINY.evaluation.model_dump(), **(evaluation or {})}
        (folder / "dpo_kit.json").write_text(json.dumps({"profile": profile, **tables, "data": {}}))
        if base is not None:
            (folder / "base.json").write_text(json.dumps(base))
        return folder

    return make


def test_quantisation_lengths_and_profile_come_from_the_record(adapter):
    folder = adapter("a", profile="gpu-8gb", path="Qwen/Qwen3-4B", quantize="none", max_length=777)
    profile = profile_of_adapters([folder], None, {})
    assert (profile.name, profile.model.path) == ("gpu-8gb", "Qwen/Qwen3-4B")
    assert (profile.model.quantize, profile.model.max_length) == ("none", 777)


def test_what_was_typed_and_what_the_environment_says_stand_above_the_record(adapter, monkeypatch):
    folder = adapter("a", quantize="none", max_length=777)
    typed = {"model": {"quantize": "nf4"}, "evaluation": {"max_new_tokens": 9}}
    monkeypatch.setenv("DPO_KIT_MODEL__MAX_LENGTH", "99")
    profile = profile_of_adapters([folder], "tiny", typed)
    assert (profile.model.quantize, profile.model.max_length) == ("nf4", 99)
    assert profile.evaluation.max_new_tokens == 9


def test_an_adapter_without_a_record_changes_nothing(tmp_path):
    assert profile_of_adapters([tmp_path], None, {}) == load_profile("tiny")
    assert read_record(tmp_path) is None


def test_a_profile_that_is_not_shipped_is_not_taken_from_a_record(adapter, tmp_path):
    (tmp_path / "evil.toml").write_text("")
    assert profile_of_adapters([adapter("a", profile=str(tmp_path / "evil.toml"))], None, {}).name == "tiny"
    assert profile_of_adapters([adapter("b", profile=["tiny"])], None, {}).name == "tiny"


def test_records_must_agree_in_what_decides_an_answer_and_only_in_that(adapter):
    first, second = adapter("a", lora_r=4, beta=0.1), adapter("b", lora_r=8, beta=0.5)
    profile_of_adapters([first, second], None, {})
    assert set(ModelSettings.model_fields) >= OF_TRAINING
    third = adapter("c", quantize="none")
    with pytest.raises(DpoKitError) as refused:
        profile_of_adapters([first, third], None, {})
    assert f"{first} and {third} were trained with model.quantize = 'nf4' and 'none'" in str(refused.value)
    assert "--set model.quantize=VALUE" in str(refused.value)
    assert profile_of_adapters([first, third], None, {"model": {"quantize": "nf4"}}).model.quantize == "nf4"


def test_another_base_is_named_and_not_loaded(adapter):
    folder = adapter("a", path="someone/else")
    with pytest.raises(DpoKitError, match=r"dpo_kit\.json: the adapter was trained on 'someone/else'.*--model"):
        profile_of_adapters([folder], None, {})
    assert profile_of_adapters([folder], None, {"model": {"path": "someone/else"}}).model.path == "someone/else"


def test_lengths_of_answers_come_from_the_record_unless_a_profile_was_named(adapter):
    folder = adapter("a", profile="my own", evaluation={"max_new_tokens": 7})
    assert profile_of_adapters([folder], None, {}).evaluation.max_new_tokens == 7
    assert profile_of_adapters([folder], "tiny", {}).evaluation.max_new_tokens == TINY.evaluation.max_new_tokens
    typed = {"evaluation": {"max_new_tokens": 9}}
    assert profile_of_adapters([folder], None, typed).evaluation.max_new_tokens == 9


def test_the_profiles_own_base_is_known_by_its_files_wherever_it_lay(adapter):
    folder = adapter("a", path="/elsewhere/tiny-base", base=base_fingerprint(TINY.model_path))
    assert profile_of_adapters([folder], None, {}).model.path == TINY.model.path
    same = adapter("b", path=TINY.model_path)
    assert profile_of_adapters([folder, same], None, {}).model.path == TINY.model.path


def test_two_bases_are_two_evaluations(adapter, tmp_path):
    copy = shutil.copytree(TINY.model_path, tmp_path / "copy")
    (Path(copy) / "model.safetensors").write_bytes(b"other")
    folders = [adapter("a"), adapter("b", path=str(copy), base=base_fingerprint(str(copy)))]
    with pytest.raises(DpoKitError, match=r"were trained on two bases, .* evaluate them in two runs"):
        profile_of_adapters(folders, None, {})


def test_a_folder_is_the_base_where_its_files_are_those_that_the_adapter_lists(adapter, tmp_path):
    copy = shutil.copytree(TINY.model_path, tmp_path / "copy")
    (Path(copy) / "model.safetensors").write_bytes(b"another model")
    right, wrong = base_fingerprint(str(copy)), {"weights": "0"}
    folder = adapter("a", path=str(copy), base=right)
    assert profile_of_adapters([folder], None, {}).model.path == str(copy)
    for name, base in (("b", wrong), ("c", None)):
        with pytest.raises(DpoKitError, match=r"not those that base\.json lists; .*--model"):
            profile_of_adapters([adapter(name, path=str(copy), base=base)], None, {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a JSON object"),
        ("[1]", "not a JSON object"),
        ('{"model": 3}', "'model' is no table"),
        ('{"model": {"quantize": "int3"}}', "model.quantize = 'int3'"),
        ('{"model": {"quantise": "nf4"}}', "unknown key model.quantise"),
        ('{"model": {"path": 3}}', "the adapter was trained on 3"),
    ],
)
def test_a_broken_record_is_one_line_that_names_it(tmp_path, content, message):
    (tmp_path / "dpo_kit.json").write_text(content)
    with pytest.raises(DpoKitError) as refused:
        profile_of_adapters([tmp_path], None, {})
    assert message in str(refused.value)
    assert "dpo_kit.json" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_beta_is_the_adapters_own(adapter):
    assert beta_of(adapter("a", beta=0.25), 0.1) == 0.25
    for name, beta in (("b", "0.2"), ("c", -1), ("d", True)):
        assert beta_of(adapter(name, beta=beta), 0.1) == 0.1
    assert beta_of(None, 0.1) == 0.1
