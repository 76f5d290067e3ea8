import json

import pytest
from datasets import load_dataset

from dpo_kit.errors import DpoKitError
from dpo_kit.records import (
    Message,
    PreferencePair,
    Prompt,
    Response,
    Verdict,
    read_jsonl,
    read_pairs,
    read_records,
    write_pairs,
    write_records,
)


def pair(text: str = "good ünïcode\n", other: str = "bad") -> PreferencePair:
    prompt = Prompt(id="p-1", messages=(Message(role="user", content="why?"),), facts={"share": 4})
    made = {"prompt_id": "p-1", "arm": "sft", "temperature": 1.0, "seed": 3, "stopped": True}
    verdict = Verdict(winner="a", judge="rubric", reason="0.9 against 0.1")
    return PreferencePair(
        prompt=prompt, chosen=Response(text=text, **made), rejected=Response(text=other, **made), verdict=verdict
    )


def test_a_pair_survives_the_way_to_disk_and_back(tmp_path):
    pairs = [pair(), pair(text="", other="<script>\u2028</script>")]
    write_pairs(tmp_path / "pairs.jsonl", pairs)
    assert read_pairs(tmp_path / "pairs.jsonl") == pairs


def test_a_pairs_file_is_a_dataset_in_trls_conversational_format(tmp_path):
    from trl import is_conversational

    write_pairs(tmp_path / "pairs.jsonl", [pair()])
    row = load_dataset(
        "json", data_files=str(tmp_path / "pairs.jsonl"), split="train", cache_dir=str(tmp_path / "cache")
    )[0]
    assert is_conversational(row)
    assert row["prompt"] == [{"role": "user", "content": "why?"}]
    assert row["chosen"] == [{"role": "assistant", "content": "good ünïcode\n"}]


def test_records_of_one_kind_survive_too(tmp_path):
    prompts = [pair().prompt]
    write_records(tmp_path / "prompts.jsonl", prompts)
    assert read_records(tmp_path / "prompts.jsonl", Prompt) == prompts


def test_a_cut_line_is_named_with_file_and_line(tmp_path):
    write_pairs(tmp_path / "pairs.jsonl", [pair(), pair()])
    whole = (tmp_path / "pairs.jsonl").read_text()
    (tmp_path / "pairs.jsonl").write_text(whole[:-20])
    with pytest.raises(DpoKitError, match=r"pairs\.jsonl, line 2: not JSON"):
        read_pairs(tmp_path / "pairs.jsonl")


def test_a_missing_rejected_is_an_error_and_not_none(tmp_path):
    row = pair().to_json()
    del row["rejected"]
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row))
    with pytest.raises(DpoKitError, match=r"record 1: .*rejected"):
        read_pairs(tmp_path / "pairs.jsonl")


def test_an_unknown_field_is_an_error(tmp_path):
    (tmp_path / "r.jsonl").write_text('{"winner": "a", "judge": "j", "reason": "r", "wimner": "b"}')
    with pytest.raises(DpoKitError, match="wimner"):
        read_records(tmp_path / "r.jsonl", Verdict)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe{}", "not UTF-8 at byte 0"), (b"[1]\n", "line 1: a JSON object"), (b'{"a": 1}\n\x00\n', "line 2")],
)
def test_a_file_that_is_no_jsonl_says_so(tmp_path, content, message):
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(DpoKitError, match=message):
        read_jsonl(tmp_path / "x.jsonl")


def test_a_file_that_is_not_there_says_so(tmp_path):
    with pytest.raises(DpoKitError, match="no such file"):
        read_jsonl(tmp_path / "x.jsonl")
