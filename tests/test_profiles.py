import pytest

from dpo_kit.errors import DpoKitError
from dpo_kit.profiles import load_profile, profile_names


def test_every_profile_loads():
    assert profile_names()
    for name in profile_names():
        assert load_profile(name).name == name


def test_the_environment_sets_the_dial(monkeypatch):
    monkeypatch.setenv("DPO_KIT_PROFILE", "tinny")
    with pytest.raises(DpoKitError, match="unknown profile 'tinny'; did you mean 'tiny'"):
        load_profile()
    monkeypatch.setenv("DPO_KIT_PROFILE", "tiny")
    assert load_profile().name == "tiny"


def test_overrides_reach_their_table_and_nothing_else():
    plain, changed = load_profile("tiny"), load_profile("tiny", dpo={"beta": 0.5})
    assert changed.dpo.beta == 0.5
    assert changed.sft == plain.sft
    assert changed.dpo.learning_rate == plain.dpo.learning_rate


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"dpo": {"bta": 1}}, "unknown key dpo.bta; did you mean 'beta'"),
        ({"dopo": {"beta": 1}}, "unknown table 'dopo'; did you mean 'dpo'"),
        ({"dpo": {"beta": -1}}, "dpo.beta = -1: "),
        ({"sft": {"rambling": 1.5}}, "sft.rambling = 1.5: "),
        ({"model": {"quantize": "int3"}}, "model.quantize = 'int3': "),
    ],
)
def test_a_bad_override_names_key_value_and_way_out(overrides, message):
    with pytest.raises(DpoKitError, match=message):
        load_profile("tiny", **overrides)
