"""Files in the formats that people have: each is read correctly, or refused with one clear line."""

import gzip
import io
import json
import re
from pathlib import Path

import pandas as pd
import pyarrow
import pytest
from datasets import Dataset, DatasetDict

from dpo_kit.errors import DpoKitError
from dpo_kit.preferences.importers import (
    FORMATS,
    import_demonstrations,
    import_pairs,
    import_rows,
    read_answers,
    read_prompts,
)
from dpo_kit.preferences.importers.reprs import messages_in
from dpo_kit.profiles import ROOT

CASES = Path(__file__).parent / "cases"
GOOD, BAD = "Give fern 0 a cup of water every 3 days, and check the soil first.", "Just pour a bucket over fern 0"
ROW = {"prompt": "Why?", "chosen": "good", "rejected": "bad"}


def saved(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def examples():
    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    return [(name, block) for name, block in re.findall(r"### `([\w-]+)`.*?```json\n(.*?)```", page, re.DOTALL)]


def test_the_page_of_formats_has_an_example_of_each():
    assert {name for name, _ in examples()} == set(FORMATS)


@pytest.mark.parametrize(("name", "block"), examples())
def test_every_example_gives_the_good_answer_as_chosen_from_every_container(tmp_path, name, block):
    rows = [json.loads(line) for line in block.splitlines()]
    saved(tmp_path / "x.jsonl", rows)
    (tmp_path / "x.json").write_text(json.dumps({"data": rows}, indent=1))
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress((tmp_path / "x.jsonl").read_bytes()))
    (tmp_path / "y.jsonl").write_text((tmp_path / "x.jsonl").read_text(), encoding="utf-16")
    for kind in ("x.jsonl", "x.json", "x.jsonl.gz", "y.jsonl"):
        imported = import_pairs(tmp_path / kind)
        ((prompt, chosen, rejected),) = [(p.prompt.text, p.chosen.text, p.rejected.text) for p in imported.pairs]
        assert (imported.format, prompt, chosen, rejected) == (name, "Why?", "good", "bad")
    assert [p.to_json() for p in import_rows(rows).pairs] == [p.to_json() for p in imported.pairs]


@pytest.mark.parametrize(("name", "block"), examples())
def test_a_column_is_read_or_reported_or_refuses_the_row(name, block):
    """A further column with a text of its own never goes without a word."""
    rows = [json.loads(line) | {"some_column": "LOST"} for line in block.splitlines()]
    if name == "dpo-kit":
        with pytest.raises(DpoKitError, match="unknown field 'some_column'"):
            import_rows(rows)
        return
    imported = import_rows(rows)
    assert "some_column" in imported.unread_columns
    assert any("some_column" in note for note in imported.notes)


READ = [
    "ab_preference.jsonl", "alpaca_history.jsonl", "arena.jsonl", "capital_context.jsonl", "content_parts.jsonl",
    "developer_role.jsonl", "helpsteer3.jsonl", "hh.jsonl.gz", "json_strings.jsonl", "json_strings_noprompt.jsonl",
    "lists_of_strings.jsonl", "margin_negative.jsonl", "messages_prompt.jsonl", "nectar.jsonl", "nested_data.json",
    "openai_dpo.jsonl", "pandas_repr.csv", "pretty_objects.jsonl", "reasoning.jsonl", "saferlhf.jsonl",
    "scores_reversed.jsonl", "sharegpt_ranking.jsonl", "ultrafeedback_raw.jsonl", "utf16.jsonl",
]  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_common_files_give_their_pairs(name):
    imported = import_pairs(CASES / name)
    first = imported.pairs[0]
    assert "How do I water fern number 0?" in first.prompt.text
    assert first.chosen.messages[-1].content == GOOD
    assert first.rejected.messages[-1].content.startswith(BAD)
    assert len(imported.pairs) + imported.without_pair.get("tie", 0) >= 8


def test_nothing_of_a_conversation_is_lost():
    history = import_pairs(CASES / "alpaca_history.jsonl").pairs[0].prompt
    assert [m.role for m in history.messages] == ["system", "user", "assistant", "user"]
    assert import_pairs(CASES / "capital_context.jsonl").pairs[0].prompt.text.endswith("Fern 0 stands in a dark room.")
    assert import_pairs(CASES / "developer_role.jsonl").pairs[0].prompt.messages[0].role == "developer"
    assert import_pairs(CASES / "reasoning.jsonl").pairs[0].chosen.messages[0].reasoning_content == "hmm"
    call = import_pairs(CASES / "tool_calls.jsonl").pairs[0]
    assert call.chosen.messages[0].tool_calls[0]["function"] == {"name": "get_soil", "arguments": {"fern": 0}}
    assert call.prompt.tools[0]["function"]["name"] == "get_soil"
    assert import_pairs(CASES / "margin_negative.jsonl").pairs[0].scores == (1.0, 5.0)
    assert import_pairs(CASES / "helpsteer3.jsonl").pairs[0].strength == 2


def test_images_and_context_that_would_be_lost_refuse_the_file():
    with pytest.raises(DpoKitError, match="column images: images, audio and video cannot be read"):
        import_pairs(CASES / "images_col.jsonl")
    for column, value in {
        "history": "User: hi", "messages": [{"role": "user", "content": "hi"}], "context": ["a", "b"],
    }.items():  # fmt: skip
        with pytest.raises(DpoKitError, match=column):
            import_rows([ROW | {column: value}])


def test_zero_and_one_are_refused_until_they_are_declared():
    with pytest.raises(DpoKitError, match=r"column preference holds 0 and 1.*--map preference\.0=first"):
        import_pairs(CASES / "preference_01.jsonl")
    for chosen, said in (("Give", ("0=1", "1=2")), ("Just", ("0=second", "1=first"))):
        imported = import_pairs(CASES / "preference_01.jsonl", mapped=[f"preference.{text}" for text in said])
        assert {p.chosen.text.split()[0] for p in imported.pairs} == {chosen}
    rows = [{"prompt": "q", "response_a": "x", "response_b": "y", "winner": value} for value in (0, 1)]
    with pytest.raises(DpoKitError, match="column winner holds 0 and 1"):
        import_rows(rows)


@pytest.mark.parametrize(
    ("names", "label", "values"),
    [(("response_0", "response_1"), "better_response_id", (1, 2)), (("output_1", "output_2"), "label", (0, 1)),
     (("response_a", "response_b"), "winner", (1, 2, 3)), (("response_1", "response_2"), "preference_strength", (1, 5)),
     (("response_a", "response_b"), "label", (True, False))],
)  # fmt: skip
def test_a_file_whose_labels_count_otherwise_is_refused_also_where_bad_rows_may_be_put_aside(
    tmp_path, names, label, values
):
    """Half of its rows would look right and be reversed."""
    rows = [{"prompt": "q", names[0]: "x", names[1]: "y", label: value} for value in values]
    with pytest.raises(DpoKitError, match=rf"column {label} holds .*--map {label}\."):
        import_rows(rows, quarantine=tmp_path / "bad.jsonl")
    said = [f"{label}.{value:d}={('first', 'second', 'tie')[i]}" for i, value in enumerate(values)]
    assert [p.chosen.text for p in import_rows(rows, mapped=said).pairs] == ["x", "y"]


def test_columns_of_other_names_are_mapped():
    row = {"frage": "Why?", "gut": "good", "schlecht": "bad"}
    with pytest.raises(DpoKitError, match="--map prompt=COLUMN"):
        import_rows([row])
    (pair,) = import_rows([row], mapped=["prompt=frage", "chosen=gut", "rejected=schlecht"]).pairs
    assert (pair.prompt.text, pair.chosen.text, pair.rejected.text) == ("Why?", "good", "bad")
    with pytest.raises(DpoKitError, match="'promt' is no role"):
        import_rows([row], mapped=["promt=frage"])


def test_an_implicit_prompt_ends_at_a_word():
    pairs = import_pairs(CASES / "implicit_qa.jsonl").pairs
    assert all(pair.prompt.text.endswith("\nAnswer:") for pair in pairs)
    (pair,) = import_rows([{"chosen": "I like cartoons", "rejected": "I like cars"}]).pairs
    assert (pair.prompt.text, pair.chosen.text, pair.rejected.text) == ("I like", " cartoons", " cars")


MESSAGES = [{"role": "user", "content": "it's {odd} ] \n"}, {"role": "assistant", "content": 'a "b"'}]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(MESSAGES),
        repr(MESSAGES),
        repr(MESSAGES).replace("}, {", "}\n {"),
        f"array({MESSAGES!r}, dtype=object)",
    ],
    ids=["json", "python", "numpy", "array"],
)
def test_messages_as_text_are_messages(text):
    assert messages_in(text) == MESSAGES


@pytest.mark.parametrize(
    "text",
    [
        repr(MESSAGES)[:-9],
        "[{'role': 'user', 'content': __import__('os').getcwd()}]",
        "[{'role': 'user', 'content': " + "[" * 500 + "]" * 500 + "}]",
    ],
    ids=["cut", "a call", "deep"],
)
def test_messages_as_text_that_cannot_be_read_are_refused(text):
    with pytest.raises(DpoKitError, match="chat messages as text"):
        import_rows([ROW | {"chosen": text}])


@pytest.mark.parametrize("text", ['{"role": "manager", "name": "x"}', "[1, 2]", "{not json", "[a](b)", "[{"])
def test_answers_that_look_like_data_stay_texts(text):
    assert import_rows([ROW | {"chosen": text}]).pairs[0].chosen.text == text


def test_containers(tmp_path, monkeypatch):
    rows = [ROW | {"prompt": f"Why {i}?"} for i in range(4)]
    (tmp_path / "columns.json").write_text(json.dumps({name: [row[name] for row in rows] for name in ROW}))
    pd.DataFrame(rows).to_json(tmp_path / "pandas.json")
    pd.DataFrame(rows).to_json(tmp_path / "split.json", orient="split")
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    DatasetDict({"train": Dataset.from_list(rows), "test": Dataset.from_list(rows[:1])}).save_to_disk(tmp_path / "both")
    (tmp_path / "shards").mkdir()
    for i in range(2):
        pd.DataFrame(rows[2 * i :][:2]).to_parquet(tmp_path / "shards" / f"train-0000{i}-of-00002.parquet")
    (tmp_path / "latin.jsonl").write_text(json.dumps(ROW | {"chosen": "é"}, ensure_ascii=False), encoding="latin-1")
    for name in ("columns.json", "pandas.json", "split.json", "saved", "both", "shards"):
        assert [p.prompt.text for p in import_pairs(tmp_path / name).pairs] == [row["prompt"] for row in rows], name
    for table in (rows, pd.DataFrame(rows), Dataset.from_list(rows)):
        assert len(import_rows(table).pairs) == 4
    assert import_pairs(tmp_path / "latin.jsonl", encoding="latin-1").pairs[0].chosen.text == "é"
    stdin = io.TextIOWrapper(io.BytesIO(json.dumps(ROW).encode()))
    monkeypatch.setattr("sys.stdin", stdin)
    assert len(import_pairs(Path("-")).pairs) == 1


def test_packed_files_that_are_cut_or_too_large_and_links_are_one_line(tmp_path):
    packed = gzip.compress(b"".join(json.dumps(ROW | {"n": i}).encode() + b"\n" for i in range(5000)))
    (tmp_path / "cut.jsonl.gz").write_bytes(packed[:-50])
    with pytest.raises(DpoKitError, match=r"cut\.jsonl\.gz: the compressed file is damaged or was cut"):
        import_pairs(tmp_path / "cut.jsonl.gz")
    (tmp_path / "bomb.jsonl.gz").write_bytes(packed)
    with pytest.raises(DpoKitError, match="more than 1000 bytes when unpacked; allow more with --max-bytes"):
        import_pairs(tmp_path / "bomb.jsonl.gz", max_bytes=1000)
    text = b"".join(json.dumps(ROW | {"prompt": str(i)}).encode() + b"\n" for i in range(500))
    (tmp_path / "x.jsonl.zst").write_bytes(pyarrow.compress(text, codec="zstd", asbytes=True))
    assert len(import_pairs(tmp_path / "x.jsonl.zst").pairs) == 500
    (tmp_path / "x.jsonl.zst").write_bytes((tmp_path / "x.jsonl.zst").read_bytes()[:-50])
    with pytest.raises(DpoKitError, match="Truncated"):
        import_pairs(tmp_path / "x.jsonl.zst")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.jsonl").symlink_to(saved(tmp_path / "outside.jsonl", [ROW]))
    with pytest.raises(DpoKitError, match="a link"):
        import_pairs(folder)


def test_prompts_and_answers_of_known_benchmarks():
    said = []
    turns = read_prompts(CASES / "prompts_mtbench.jsonl", log=said.append)
    assert (turns[0].id, turns[0].text) == ("0", "How do I keep a fern alive in the kitchen?")
    assert any("only the first turn is asked" in line for line in said)
    answered = read_prompts(CASES / "prompts_with_answers.jsonl", log=said.append)
    assert [m.role for m in answered[0].messages] == ["user"]
    assert any("answer at the end of the messages is taken off" in line for line in said)
    prompts = read_prompts(CASES / "prompts_alpaca.json")
    answers = read_answers(CASES / "answers_alpaca.json", list(reversed(prompts)))
    assert {a.prompt_id: a.text for a in answers}[prompts[0].id].startswith("Put the fern near a window of the kitchen")


def test_demonstrations(tmp_path):
    chat = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "good"}]
    tree = {"role": "prompter", "text": "Why?", "replies": [
        {"role": "assistant", "text": "bad", "rank": 1}, {"role": "assistant", "text": "good", "rank": 0}]}  # fmt: skip
    share = {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "good"}]}
    for row in ({"messages": chat}, share, {"instruction": "Why?", "input": "", "output": "good"}, {"prompt": tree}):
        prompts, answers = import_demonstrations(saved(tmp_path / "x.jsonl", [row]))
        assert [(p.text, a.text) for p, a in zip(prompts, answers, strict=True)] == [("Why?", "good")]
