"""Every format is read from rows shaped as its owner writes them; round trips go through TRL's own functions."""

import csv
import json
import re
from contextlib import suppress

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_kit.errors import DpoKitError
from dpo_kit.jsonl import read_jsonl, write_pairs, write_records
from dpo_kit.preferences.importers import FORMATS, import_pairs, read_prompts
from dpo_kit.preferences.importers.columns import meant_by
from dpo_kit.preferences.importers.formats import MOST_PAIRS
from dpo_kit.profiles import ROOT
from dpo_kit.records import Message, PreferencePair, Prompt, Response, Verdict

QUESTIONS = [
    [("system", "Be brief."), ("user", "Why is the sky blue?")],
    [("user", "Hi\r\n"), ("assistant", "Hello, ünïcode \u2028 🙂"), ("user", 'Name a "fruit", please;')],
    [("user", "One, two?\n\nThree.")],
]


def ours() -> list[PreferencePair]:
    pairs = []
    for turns in QUESTIONS:
        prompt = Prompt.of(Message(role=role, content=content) for role, content in turns)
        chosen, rejected = (Response(prompt_id=prompt.id, text=text) for text in ("Good,\n\tyes", ""))
        verdict = Verdict(winner="a", judge="rubric", reason="0.9 against 0.1")
        pairs.append(PreferencePair(prompt=prompt, chosen=chosen, rejected=rejected, verdict=verdict))
    return pairs


def content(pairs):
    return [(p.prompt.id, p.prompt.chat(), p.chosen.text, p.rejected.text) for p in pairs]


def saved(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def one(tmp_path, row, **kwargs):
    """The single pair of a single row."""
    imported = import_pairs(saved(tmp_path / "one.jsonl", [row]), **kwargs)
    (pair,) = imported.pairs
    return imported.format, pair


def implicit(row):
    return {side: row["prompt"] + row[side] for side in ("chosen", "rejected")}


def text_row(pair):
    """Single-turn pairs as TRL's standard format has them: plain texts."""
    return {"prompt": pair.prompt.text, "chosen": pair.chosen.text, "rejected": pair.rejected.text}


@pytest.mark.parametrize("shape", [lambda row: row, implicit], ids=["explicit prompt", "implicit prompt"])
def test_our_pairs_come_back_from_trls_conversational_formats(tmp_path, shape):
    path = saved(tmp_path / "pairs.jsonl", [shape(pair.to_trl()) for pair in ours()])
    imported = import_pairs(path)
    assert imported.format == "trl-conversational"
    assert content(imported.pairs) == content(ours())


def test_our_pairs_come_back_from_trls_standard_formats(tmp_path):
    single = [ours()[2]]
    explicit = import_pairs(saved(tmp_path / "explicit.jsonl", map(text_row, single)))
    assert content(explicit.pairs) == content(single)
    row = implicit(text_row(single[0]) | {"rejected": "Bad, no"})
    _, pair = one(tmp_path, row)
    assert (pair.prompt.text, pair.chosen.text, pair.rejected.text) == (
        single[0].prompt.text,
        "Good,\n\tyes",
        "Bad, no",
    )


def test_our_own_file_comes_back_whole(tmp_path):
    write_pairs(tmp_path / "pairs.jsonl", ours())
    imported = import_pairs(tmp_path / "pairs.jsonl")
    assert (imported.format, imported.pairs) == ("dpo-kit", ours())


def test_unpaired_by_trl_our_pairs_come_back(tmp_path):
    """TRL's `unpair_preference_dataset` makes the KTO rows."""
    from datasets import Dataset
    from trl import unpair_preference_dataset

    rows = unpair_preference_dataset(Dataset.from_list([pair.to_trl() for pair in ours()]))
    imported = import_pairs(saved(tmp_path / "kto.jsonl", rows))
    assert imported.format == "kto"
    assert content(imported.pairs) == content(ours())


@given(prompt=st.text(min_size=1), chosen=st.text(), rejected=st.text())
def test_an_implicit_text_prompt_is_cut_where_trl_cuts_it(tmp_path_factory, prompt, chosen, rejected):
    """TRL's cut is off by one where one text begins with the other; there only the texts themselves can be compared."""
    from trl import extract_prompt

    row = {"chosen": prompt + "+" + chosen, "rejected": prompt + "-" + rejected}
    path = saved(tmp_path_factory.getbasetemp() / "implicit.jsonl", [row])
    theirs = extract_prompt(row)
    if theirs["prompt"] == "":
        return
    (pair,) = import_pairs(path, "trl-standard").pairs
    assert theirs == {"prompt": pair.prompt.text, "chosen": pair.chosen.text, "rejected": pair.rejected.text}


def test_a_text_that_begins_with_the_other_keeps_every_character(tmp_path):
    _, pair = one(tmp_path, {"chosen": "Q: x A: yes", "rejected": "Q: x A: yes and no"})
    assert [pair.prompt.text + side.text for side in (pair.chosen, pair.rejected)] == [
        "Q: x A: yes",
        "Q: x A: yes and no",
    ]


def as_transcript(messages):
    """Messages as an Anthropic HH transcript."""
    return "".join(f"\n\n{'Human' if m.role == 'user' else 'Assistant'}: {m.content}" for m in messages)


def test_all_real_hh_transcripts_are_imported_and_lose_no_text(tmp_path, real_data):
    path = real_data / "hh_rlhf" / "harmless_base_test_filtered.jsonl"
    imported = import_pairs(path)
    assert (imported.format, len(imported.pairs), imported.without_pair) == ("hh", 300, {})
    for row, pair in zip(read_jsonl(path), imported.pairs, strict=True):
        for side in ("chosen", "rejected"):
            answer = Message(role="assistant", content=getattr(pair, side).text)
            assert as_transcript([*pair.prompt.messages, answer]) == row[side]
    assert max(len(pair.prompt.messages) for pair in imported.pairs) > 3, "conversations of several turns"


def test_hh_with_the_shared_part_in_a_column_of_its_own(tmp_path):
    row = {"prompt": "\n\nHuman: q\n\nAssistant: r\n\nHuman: s\n\nAssistant:", "chosen": " a", "rejected": " b"}
    name, pair = one(tmp_path, row)
    assert (name, pair.chosen.text, pair.rejected.text) == ("hh", "a", "b")
    assert [m.content for m in pair.prompt.messages] == ["q", "r", "s"]


def test_hh_conversations_that_part_early_are_answers_of_several_turns(tmp_path):
    a, b = "\n\nHuman: q\n\nAssistant: a", "\n\nHuman: q\n\nAssistant: b\n\nHuman: r\n\nAssistant: c"
    c = "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: c"
    d = c.replace("Human: r", "Human: s")
    path = saved(tmp_path / "hh.jsonl", [{"chosen": a, "rejected": b}, {"chosen": c, "rejected": d}])
    with pytest.raises(DpoKitError, match=r"hh\.jsonl, line 2: .*part at an assistant's turn"):
        import_pairs(path)
    imported = import_pairs(path, quarantine=tmp_path / "bad.jsonl")
    ((chosen, rejected),) = [(p.chosen.messages, p.rejected.messages) for p in imported.pairs]
    assert [(m.role, m.content) for m in rejected] == [("assistant", "b"), ("user", "r"), ("assistant", "c")]
    assert ([m.content for m in chosen], imported.quarantined) == (["a"], 1)


def test_a_few_odd_rows_do_not_turn_transcripts_into_plain_texts(tmp_path):
    """Every transcript is a text too: the more general format fits more rows and would still be the wrong one."""
    row = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}
    odd = {"chosen": "some a", "rejected": "some b"}
    imported = import_pairs(saved(tmp_path / "hh.jsonl", [odd, row, row]), quarantine=tmp_path / "bad.jsonl")
    assert (imported.format, len(imported.pairs), imported.quarantined) == ("hh", 2, 1)


@pytest.mark.parametrize("name", ["natural.json", "adversarial_manual.json"])
def test_real_llmbar_items_follow_the_human_label(real_data, name):
    path = real_data / "llmbar" / name
    imported = import_pairs(path)
    items = json.loads(path.read_text())
    assert (imported.format, len(imported.pairs)) == ("comparison", len(items))
    for item, pair in zip(items, imported.pairs, strict=True):
        assert pair.prompt.text == item["input"]
        assert pair.chosen.text == item[f"output_{item['label']}"]
        assert pair.rejected.text == item[f"output_{3 - item['label']}"]
        assert pair.verdict.winner == ("a", "b")[item["label"] - 1]


def test_a_table_without_texts_is_refused_with_one_reason_a_format(real_data):
    with pytest.raises(DpoKitError) as caught:
        import_pairs(real_data / "alpaca_eval" / "NullModel.csv")
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == list(FORMATS)
    assert "  comparison: no column output_1" in lines


def test_ultrafeedback(tmp_path):
    asked = {"content": "Why?", "role": "user"}
    row = {
        "prompt": "Why?",
        "prompt_id": "3f1a",
        "chosen": [asked, {"content": "Because.", "role": "assistant"}],
        "rejected": [asked, {"content": "No.", "role": "assistant"}],
        "messages": [asked, {"content": "Because.", "role": "assistant"}],
        "score_chosen": 8.5,
        "score_rejected": 6.0,
    }
    imported = import_pairs(saved(tmp_path / "uf.jsonl", [row]))
    (pair,) = imported.pairs
    assert (imported.format, pair.verdict.judge, pair.verdict.reason) == (
        "ultrafeedback", "ultrafeedback", "scores 8.5 against 6",
    )  # fmt: skip
    assert (pair.prompt.chat(), pair.chosen.text, pair.rejected.text) == ([asked], "Because.", "No.")
    assert (pair.chosen.arm, pair.chosen.stopped) == ("imported", None)
    assert imported.unread_columns == ("prompt_id", "messages")
    equal = import_pairs(saved(tmp_path / "uf.jsonl", [row | {"score_rejected": 8.5}]))
    assert (equal.pairs, equal.without_pair) == ([], {"tie": 1}), "with equal scores, who is chosen is an accident"
    with pytest.raises(DpoKitError, match="not the text that the conversations begin with"):
        one(tmp_path, row | {"prompt": "Who?"})


SHP = {"history": "Why?", "human_ref_A": "a", "human_ref_B": "b", "score_A": 52, "score_B": 54}


@pytest.mark.parametrize(
    ("change", "chosen"),
    [({"labels": 0}, "b"), ({"labels": 1}, "a"), ({}, "b"), ({"score_A": "60"}, "a"), ({"labels": 1.0}, "a")],
)
def test_stanford_labels_say_1_for_a_and_without_them_the_score_decides(tmp_path, change, chosen):
    name, pair = one(tmp_path, SHP | change)
    assert (name, pair.chosen.text, pair.verdict.winner, pair.verdict.judge) == ("shp", chosen, chosen, "shp")
    assert {pair.chosen.text, pair.rejected.text} == {"a", "b"}


def test_alpaca_eval_annotations_keep_models_and_annotator(tmp_path):
    row = {"instruction": "Sort", "input": "3 1 2", "output_1": "x", "output_2": "y", "preference": 1.9}
    row |= {"generator_1": "gpt4_turbo", "generator_2": "llama", "annotator": "weighted_gpt4"}
    name, pair = one(tmp_path, row)
    assert (name, pair.prompt.text, pair.chosen.text, pair.chosen.arm) == ("comparison", "Sort\n\n3 1 2", "y", "llama")
    assert (pair.rejected.arm, pair.verdict.judge) == ("gpt4_turbo", "weighted_gpt4")


UNDECIDED = {
    "comparison": [{"input": "q", "output_1": "x", "output_2": "y", "label": label} for label in (1, 1.5, None, 2.0)],
    "shp": [
        SHP,
        SHP | {"score_B": 52},
        SHP | {"score_A": None},
        SHP | {"labels": None, "score_A": "52.0", "score_B": 52},
    ],
    "kto": [
        {"prompt": "q", "completion": "x", "label": True},
        {"prompt": "q", "completion": "y", "label": "false"},
        {"prompt": "lonely", "completion": "z", "label": 1},
        {"prompt": "r", "completion": "z", "label": None},
    ],
}


@pytest.mark.parametrize(
    ("name", "pairs", "without"),
    [
        ("comparison", 2, {"tie": 1, "not annotated": 1}),
        ("shp", 1, {"tie": 2, "not annotated": 1}),
        ("kto", 1, {"no bad answer to the same prompt": 1, "not annotated": 1}),
    ],
)
def test_what_makes_no_pair_is_counted(tmp_path, name, pairs, without):
    imported = import_pairs(saved(tmp_path / "x.jsonl", UNDECIDED[name]))
    assert (imported.format, len(imported.pairs), imported.without_pair) == (name, pairs, without)
    assert any("tie" in note or "not annotated" in note for note in imported.notes)


def test_labels_counted_from_0_are_refused_and_not_taken_for_ties(tmp_path):
    row = {"input": "q", "output_1": "x", "output_2": "y"}
    with pytest.raises(DpoKitError, match=r"line 1: label: between 1 .* found 0"):
        one(tmp_path, row | {"label": 0})
    draws = [row | {"preference": value, "annotator": "gpt"} for value in (0, 1, 2)]
    assert import_pairs(saved(tmp_path / "a.jsonl", draws)).without_pair == {"tie": 1}
    for values in ({0}, {0, 1}, {0, 1, 2}, {-1, 1}):
        with pytest.raises(DpoKitError, match=r"preference.*--map preference\."):
            import_pairs(saved(tmp_path / "a.jsonl", [row | {"preference": value} for value in sorted(values)]))


def test_good_answers_meet_bad_ones_of_the_same_prompt_only(tmp_path):
    rows = [
        {"prompt": p, "completion": f"{p}{i}{good}", "label": good} for p in "pq" for i in range(3) for good in (1, 0)
    ]
    pairs = import_pairs(saved(tmp_path / "kto.jsonl", rows)).pairs
    assert len({(p.chosen.text, p.rejected.text) for p in pairs}) == len(pairs) == 2 * 3 * 3
    assert all(p.chosen.text[0] == p.rejected.text[0] == p.prompt.text for p in pairs)
    assert all(p.chosen.text.endswith("1") and p.rejected.text.endswith("0") for p in pairs)


def test_a_prompt_with_thousands_of_answers_does_not_explode(tmp_path):
    rows = [{"prompt": "p", "completion": str(i), "label": i % 3 > 0} for i in range(3000)]
    pairs = import_pairs(saved(tmp_path / "kto.jsonl", rows)).pairs
    assert len(pairs) == 2000 > MOST_PAIRS
    assert {p.chosen.text for p in pairs} | {p.rejected.text for p in pairs} == {str(i) for i in range(3000)}


FIELDS = {"prompt": "Why?", "response1": "one", "response2": "two", "response3": "three"}
V1 = {
    "fields": FIELDS,
    "responses": [
        {
            "user_id": "ann",
            "values": {
                "preference": {
                    "value": [
                        {"value": "response2", "rank": 1},
                        {"value": "response1", "rank": 2},
                        {"value": "response3", "rank": 2},
                    ]
                },
                "remarks": {"value": "two is shorter"},
            },
            "status": "submitted",
        },
        {"user_id": "bob", "values": {}, "status": "discarded"},
        {"user_id": "cy", "values": {"preference": {"value": [{"value": "response1", "rank": 1}]}}, "status": "draft"},
    ],
    "suggestions": [],
}
V2 = {
    "id": "7",
    "fields": FIELDS,
    "metadata": {},
    "suggestions": {"preference": {"value": ["response3"], "score": None, "agent": "llm"}},
    "responses": {"preference": [{"value": ["response2", "response1", "response3"], "user_id": "ann"}]},
    "vectors": {},
    "_server_id": "1",
}
FLAT = FIELDS | {
    "id": "7",
    "preference.responses": [["response2", "response1", "response3"]],
    "preference.responses.users": ["ann"],
    "preference.responses.status": ["submitted"],
}


def test_argilla_1_rankings_give_all_pairs_with_different_ranks(tmp_path):
    imported = import_pairs(saved(tmp_path / "a.jsonl", [V1]))
    assert [(p.chosen.text, p.rejected.text) for p in imported.pairs] == [("two", "one"), ("two", "three")]
    assert imported.without_pair == {"tie": 1, "draft by the annotator": 1, "discarded by the annotator": 1}
    assert {p.verdict.judge for p in imported.pairs} == {"argilla:ann"}
    assert imported.format == "argilla"


@pytest.mark.parametrize("record", [V2, FLAT], ids=["nested", "flattened"])
def test_argilla_2_rankings_are_lists_from_best_to_worst(tmp_path, record):
    (tmp_path / "a.json").write_text(json.dumps([record], indent=2))
    imported = import_pairs(tmp_path / "a.json")
    assert [(p.chosen.text, p.rejected.text) for p in imported.pairs] == [
        ("two", "one"), ("two", "three"), ("one", "three"),
    ]  # fmt: skip
    assert (imported.format, imported.pairs[0].verdict.judge) == ("argilla", "argilla:ann")


@pytest.mark.parametrize(
    ("label", "chosen", "without"),
    [
        ("response_b", "two", {}),
        ("A is better", "one", {}),
        ("tie", None, {"tie": 1}),
        (None, None, {"not annotated": 1}),
    ],
)
def test_argilla_labels_name_a_side(tmp_path, label, chosen, without):
    answers = [] if label is None else [{"value": label, "user_id": "ann"}]
    record = {
        "fields": {"instruction": "Why?", "response_a": "one", "response_b": "two"},
        "responses": {"choice": answers},
    }
    imported = import_pairs(saved(tmp_path / "a.jsonl", [record]))
    assert [p.chosen.text for p in imported.pairs] == ([chosen] if chosen else [])
    assert imported.without_pair == without


def test_remarks_and_other_questions_are_not_taken_for_the_preference(tmp_path):
    answers = {"better_answer": "B", "why_better": "the first is wrong", "tone": "formal"}
    record = {
        "fields": {"prompt": "Why?", "response_a": "one", "response_b": "two"},
        "responses": {question: [{"value": value, "user_id": "ann"}] for question, value in answers.items()},
    }
    assert one(tmp_path, record)[1].chosen.text == "two"
    del record["responses"]["better_answer"]
    record["responses"]["register"] = record["responses"]["tone"]
    with pytest.raises(DpoKitError, match="which question asks for the preference, among register, tone"):
        one(tmp_path, record)


def task(*annotations, **data):
    data = {"prompt": "Why?", "answer1": "one", "answer2": "two"} | data
    return {"id": 1, "data": data, "annotations": list(annotations), "predictions": [], "project": 3}


def annotation(value, kind="pairwise", **more):
    result = {"id": "x", "from_name": "pw", "to_name": "text1,text2", "type": kind, "value": value}
    return {"id": 9, "completed_by": 4, "was_cancelled": False, "result": [result], "created_at": "2026-01-02"} | more


def test_label_studio_pairwise_and_choices(tmp_path):
    tasks = [
        task(annotation({"selected": "left"}), annotation({"selected": "right"}, completed_by={"id": 5, "email": "e"})),
        task(annotation({"choices": ["Answer 2 is better"]}, "choices")),
        task(annotation({"choices": ["Tie"]}, "choices"), annotation({"selected": "left"}, was_cancelled=True)),
        task(annotation({}, result=[])),
        task(),
        task(annotation({"selected": "right"}), text1="left text", text2="right text"),
    ]
    (tmp_path / "ls.json").write_text(json.dumps(tasks))
    imported = import_pairs(tmp_path / "ls.json")
    assert [(p.chosen.text, p.verdict.winner, p.verdict.judge) for p in imported.pairs] == [
        ("one", "a", "label-studio:4"),
        ("two", "b", "label-studio:5"),
        ("two", "b", "label-studio:4"),
        ("right text", "b", "label-studio:4"),
    ]
    assert imported.without_pair == {"tie": 1, "skipped by the annotator": 1, "not annotated": 2}
    assert imported.pairs[0].verdict.at == "2026-01-02"


def test_a_label_that_says_nothing_is_put_aside_and_not_guessed(tmp_path):
    tasks = [task(annotation({"choices": ["good"]}, "choices")), task(annotation({"selected": "left"}))]
    imported = import_pairs(saved(tmp_path / "ls.jsonl", tasks), quarantine=tmp_path / "bad.jsonl")
    assert (len(imported.pairs), imported.quarantined) == (1, 1)
    assert "does not say which of answer1, answer2" in read_jsonl(tmp_path / "bad.jsonl")[0]["reason"]


@pytest.mark.parametrize(
    ("label", "means"),
    [
        *[(label, 0) for label in ("response1", "Response 1", "1", "A", "left", "first", "response-1 wins")],
        *[(label, 1) for label in ("RESPONSE_2", "2", "b", "right", "the second")],
        *[(label, None) for label in ("tie", "a tie", "both equal", "neither", "Draw")],
    ],
)
def test_what_labels_mean(label, means):
    assert meant_by(label, ["response1", "response2"]) == means


@pytest.mark.parametrize("label", ["", "good", "3", "1 and 2", "left or right", "A and B are the same"])
def test_labels_that_mean_no_single_answer_are_errors(label):
    with pytest.raises(ValueError, match="does not say which"):
        meant_by(label, ["response1", "response2"])


COLUMNS = {
    "Question": ["Why?", "One, two?\r\nThree"],
    "Chosen Response": ['a "quoted" answer', "b;\tc"],
    "rejected": ["", "NA"],
    "system": ["", "Be brief."],
    "chosen_model": ["m1", ""],
    "topic": ["t", "u"],
}


@pytest.mark.parametrize("kind", ["csv", "semicolons.csv", "tsv", "parquet", "jsonl", "json"])
def test_tables_with_recognisable_columns(tmp_path, kind):
    frame, path = pd.DataFrame(COLUMNS), tmp_path / f"table.{kind}"
    if kind == "parquet":
        frame.to_parquet(path)
    elif kind.startswith("json"):
        frame.to_json(path, orient="records", lines=kind == "jsonl")
    else:
        frame.to_csv(path, index=False, sep={"csv": ",", "tsv": "\t"}.get(kind, ";"), encoding="utf-8-sig")
    imported = import_pairs(path)
    assert imported.format == "trl-standard"
    assert [(p.prompt.text, p.chosen.text, p.rejected.text) for p in imported.pairs] == [
        ("Why?", 'a "quoted" answer', ""), ("One, two?\r\nThree", "b;\tc", "NA"),
    ]  # fmt: skip
    assert [len(p.prompt.messages) for p in imported.pairs] == [1, 2]
    assert [p.chosen.arm for p in imported.pairs] == ["m1", "imported"]
    assert imported.unread_columns == ("topic",)


def test_conversations_in_csv_cells_and_in_parquet(tmp_path):
    rows = [pair.to_trl() for pair in ours()]
    with (tmp_path / "chat.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({key: json.dumps(value) for key, value in row.items()} for row in rows)
    pd.DataFrame(rows).to_parquet(tmp_path / "chat.parquet")
    for name in ("chat.csv", "chat.parquet"):
        assert content(import_pairs(tmp_path / name).pairs) == content(ours())


def test_broken_csv_rows_are_put_aside_whole(tmp_path):
    good = b"q,a,b\n"
    broken = [b"q,a\n", b'q,"a"x,b\n', b"q,\xff,b\n", b"q,a,b,c\n", b"q,a\0,b\n"]
    (tmp_path / "t.csv").write_bytes(b"prompt,chosen,rejected\n" + b"".join(good + bad for bad in broken) + good)
    imported = import_pairs(tmp_path / "t.csv", quarantine=tmp_path / "bad.jsonl")
    assert (len(imported.pairs), imported.quarantined) == (6, 5)
    assert [row["line"] for row in read_jsonl(tmp_path / "bad.jsonl")] == [3, 5, 7, 9, 11]
    with pytest.raises(DpoKitError, match=r"t\.csv, line 3: 2 cells under 3 column names"):
        import_pairs(tmp_path / "t.csv")


def test_a_json_list_that_was_cut_gives_what_came_before(tmp_path):
    whole = json.dumps([{"prompt": "q", "chosen": "a", "rejected": "b"}] * 3)
    broken = whole[:-20].replace('"q"', '"q", "prompt": "q"', 1)
    (tmp_path / "t.json").write_text(broken)
    imported = import_pairs(tmp_path / "t.json", quarantine=tmp_path / "bad.jsonl")
    assert len(imported.pairs) == 1
    first, last = read_jsonl(tmp_path / "bad.jsonl")
    assert (first["item"], first["reason"]) == (1, "duplicate key 'prompt'")
    assert (last["item"], last["raw"]) == (3, broken[broken.rindex("{") :])


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("x.jsonl", b"", "it is empty"),
        ("x.csv", b"", "it is empty"),
        ("x.json", b"[]", "it is empty"),
        ("x.jsonl", b"\xff", "line 1: not UTF-8"),
        ("x.csv", b"a,a\n1,2\n", "column names"),
        ("x.parquet", b"PAR1 and no more", "cannot be read as Parquet"),
        ("x.jsonl", b'{"a": 1}', "in no known format"),
    ],
)
def test_a_file_that_holds_nothing_says_so(tmp_path, name, raw, message):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DpoKitError, match=message):
        import_pairs(tmp_path / name, quarantine=tmp_path / "bad.jsonl")


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.parquet"])
def test_a_missing_file_and_an_unknown_format_say_so(tmp_path, name):
    with pytest.raises(DpoKitError, match="no such file"):
        import_pairs(tmp_path / name)
    saved(tmp_path / "there.jsonl", [SHP])
    with pytest.raises(DpoKitError, match="no format 'shq'; there are argilla"):
        import_pairs(tmp_path / "there.jsonl", format="shq")


def test_a_row_of_another_format_is_put_aside(tmp_path):
    rows = [SHP, SHP, {"prompt": "q", "chosen": "a", "rejected": "b"}]
    imported = import_pairs(saved(tmp_path / "x.jsonl", rows), quarantine=tmp_path / "bad.jsonl")
    assert (imported.format, len(imported.pairs), imported.quarantined) == ("shp", 2, 1)
    assert read_jsonl(tmp_path / "bad.jsonl")[0]["reason"] == "not in the format shp: no column human_ref_a"


# Prompts.


def chat(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


PROMPT_ROWS = [
    {"prompt": "Why?"},
    {"prompt": chat("a", "b", "c"), "facts": {"share": 4}},
    {"messages": chat("Where?"), "prompt_id": "w"},
    {"question": "Who?", "system": "Be brief.", "id": 7},
]
PROMPTS = [("1", ["Why?"]), ("2", ["a", "b", "c"]), ("w", ["Where?"]), ("7", ["Be brief.", "Who?"])]


def asked(path):
    return [(prompt.id, [message.content for message in prompt.messages]) for prompt in read_prompts(path)]


def test_prompts_are_read_as_text_or_messages_with_their_ids_and_facts(tmp_path):
    path = saved(tmp_path / "prompts.jsonl", PROMPT_ROWS)
    assert asked(path) == PROMPTS
    assert [prompt.facts for prompt in read_prompts(path)] == [{}, {"share": 4}, {}, {}]
    (tmp_path / "prompts.json").write_text(json.dumps(PROMPT_ROWS))
    assert asked(tmp_path / "prompts.json") == PROMPTS
    (tmp_path / "prompts.csv").write_text("question,id\nWho?,7\nWhy?,\n")
    assert asked(tmp_path / "prompts.csv") == [("7", ["Who?"]), ("2", ["Why?"])]


def test_prompts_of_pairs_are_those_of_ties_and_lonely_answers_too(tmp_path):
    write_pairs(tmp_path / "ours.jsonl", ours() + ours())
    assert read_prompts(tmp_path / "ours.jsonl") == [pair.prompt for pair in ours()]
    labels = [("q", 1), ("q", 0), ("r", 1), ("s", None)]
    rows = [{"prompt": text, "completion": "x", "label": label} for text, label in labels]
    assert [text for _, text in asked(saved(tmp_path / "kto.jsonl", rows))] == [["q"], ["r"], ["s"]]
    tied = [SHP | {"history": "tied", "score_B": 52}, SHP | {"history": "not annotated", "score_A": None}, SHP]
    assert [text for _, text in asked(saved(tmp_path / "shp.jsonl", tied))] == [["tied"], ["not annotated"], ["Why?"]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "?"}, "line 2: no prompt: none of the columns prompt, question"),
        ({"prompt": 3}, "line 2: prompt: a text was expected, found int"),
        ({"messages": ["?"]}, "line 2: prompt: a list of objects with role and content was expected"),
        ({"messages": chat("q", "a", "b", "c", "d")[1:]}, "line 2: prompt: wrong role order"),
        ({"prompt": "q", "facts": "many"}, "line 2: facts"),
        ({"prompt": "another question", "id": 1}, "two prompts have the id '1'"),
    ],
)
def test_what_is_no_prompt_is_named_with_its_line(tmp_path, row, message):
    with pytest.raises(DpoKitError, match=message):
        read_prompts(saved(tmp_path / "prompts.jsonl", [{"prompt": "Why?"}, row]))


SEEDS = [
    *(json.dumps(row) for row in (V1, V2, FLAT, SHP, task(annotation({"selected": "left"})), ours()[1].to_trl())),
    *(json.dumps(row) for row in UNDECIDED["kto"] + UNDECIDED["comparison"]),
    json.dumps(implicit(ours()[0].to_trl())),
    "prompt,chosen,rejected\nq,a,b",
    *re.findall(r"^\{.*\}$", (ROOT / "docs" / "formats.md").read_text(encoding="utf-8"), re.MULTILINE),
]
VALUES = (
    st.none() | st.booleans() | st.floats() | st.text(max_size=4) | st.sampled_from([[], {}, [{}], {"a": 1}, [None]])
)


@st.composite
def disturbed(draw):
    """A valid row with one value, at any depth, replaced or removed; or bytes of it changed."""
    raw = draw(st.sampled_from(SEEDS))
    if draw(st.booleans()) and raw.startswith("{"):
        row = json.loads(raw)
        at = row
        while True:
            key = draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
            if isinstance(at[key], dict | list) and at[key] and draw(st.booleans()):
                at = at[key]
                continue
            at[key] = draw(VALUES)
            return json.dumps(row).encode()
    raw = bytearray(raw.encode())
    at = draw(st.integers(0, len(raw)))
    raw[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(raw)


@settings(max_examples=300)
@given(
    st.lists(disturbed(), min_size=1, max_size=3),
    st.sampled_from(["jsonl", "json", "csv"]),
    st.sampled_from([*FORMATS, None]),
)
def test_no_file_raises_anything_but_the_documented_error(tmp_path_factory, parts, kind, name):
    folder = tmp_path_factory.getbasetemp()
    path, quarantine = folder / f"fuzz.{kind}", folder / "fuzz-bad.jsonl"
    path.write_bytes(b"[" + b",".join(parts) + b"]" if kind == "json" else b"\n".join(parts))
    with suppress(DpoKitError):
        prompts = read_prompts(path)
        write_records(folder / "fuzz-prompts.jsonl", prompts)
        assert read_prompts(folder / "fuzz-prompts.jsonl") == prompts
    try:
        imported = import_pairs(path, name, quarantine)
    except DpoKitError:
        return
    assert len(read_jsonl(quarantine)) == imported.quarantined <= imported.rows
    assert all(isinstance(pair, PreferencePair) for pair in imported.pairs)
    write_pairs(folder / "fuzz-out.jsonl", imported.pairs)
    assert import_pairs(folder / "fuzz-out.jsonl", "dpo-kit").pairs == imported.pairs
