"""Models that are odd in a way of real ones are trained, released and compared, or refused in one line before that."""

import json

import pytest

from dpo_kit.cli import main
from dpo_kit.jsonl import write_jsonl
from tests.odd_models import ARCHITECTURES, ODD, make

REFUSED = {
    "notemplate": "no chat template",
    "noeos_tmpl": "no EOS after templating, in 48 of 48 rows",
    "bigvocab": "2 tokens that the model has no weights for",
}
PLACES = ("kitchen", "hall", "bath", "study", "attic", "cellar", "porch", "garage")
PLANTS = ("fern", "palm", "ivy", "cactus", "orchid", "moss")
SMALL = ("pairs.max_new_tokens=8", "dpo.kl_prompts=2", "data.heldout=0.1", "dpo.any_learning_rate=true",
         "sft.any_learning_rate=true", "evaluation.max_new_tokens=8")  # fmt: skip


def tried(name, tmp_path, capsys, *options):
    """Train on 48 pairs and compare the arms; the error line, or None where all of it worked."""
    folder, work, pairs = make(name, tmp_path / name), tmp_path / "work", tmp_path / "pairs.jsonl"
    rows = [
        {
            "prompt": f"How do I keep a {plant} alive in the {place}?",
            "chosen": f"Put the {plant} near a window of the {place} and water it when the soil is dry.",
            "rejected": f"Leave the {plant} in the {place}. It will be fine, or it will not.",
        }
        for place in PLACES
        for plant in PLANTS
    ]
    write_jsonl(pairs, rows)
    asked = tmp_path / "prompts.jsonl"
    write_jsonl(asked, [{"prompt": f"How do I keep a tree alive in the {place}?"} for place in PLACES])
    given = ["--model", str(folder), "--pairs", str(pairs), "--workdir", str(work), *options, "--set", *SMALL]
    if main(["train", *given]):
        assert not (work / "sft").exists()
        return capsys.readouterr().err
    adapters = [f"sft={work / 'sft' / 'adapter'}", f"dpo={work / 'release' / 'adapter'}"]
    compared = [
        "--model",
        str(folder),
        "--arms",
        *adapters,
        "--prompts",
        str(asked),
        "--judge",
        "none",
        "--out",
        str(tmp_path / "out"),
        "--json",
    ]
    capsys.readouterr()
    code = main(["evaluate", *compared])
    report = json.loads(capsys.readouterr().out)
    assert report["html"]
    # a model this small may end every answer at once, and then the controls refuse to compare them
    assert code == int(report["refusal"] is not None)
    return None


def check(name, tmp_path, capsys):
    error = tried(name, tmp_path, capsys)
    if name in REFUSED:
        assert REFUSED[name] in error
    else:
        assert error is None


@pytest.mark.parametrize("name", ["nopad", "bigvocab"])
def test_a_model_without_padding_trains_and_one_without_weights_for_its_tokens_is_refused(name, tmp_path, capsys):
    check(name, tmp_path, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in (*ODD, *ARCHITECTURES) if name not in ("nopad", "bigvocab")])
def test_every_odd_model_trains_and_is_compared_or_is_refused_before(name, tmp_path, capsys):
    check(name, tmp_path, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("template", ["chatml", "none"])
def test_a_base_model_trains_with_a_template_that_is_named(template, tmp_path, capsys):
    assert tried("notemplate", tmp_path, capsys, "--chat-template", template) is None
