import base64
import json

import pytest
from datasets import load_dataset
from hypothesis import given
from hypothesis import strategies as st

from dpo_kit.errors import DpoKitError
from dpo_kit.jsonl import read_jsonl, read_pairs, read_records, write_pairs, write_records
from dpo_kit.records import (
    Message,
    PreferencePair,
    Prompt,
    Response,
    Verdict,
    role_fault,
    side_fault,
    split_by_prompt,
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


CALL = {"type": "function", "function": {"name": "soil", "arguments": {"fern": 0, "note": None}}}
TOOLS = [{"type": "function", "function": {"name": "soil", "parameters": {"type": "object", "properties": {}}}}]


def agent_pair() -> PreferencePair:
    """All that a pair may hold: a developer's turn, a tool's result in the prompt, an answer in several turns."""
    call = Message(role="assistant", content="", reasoning_content="dry?", tool_calls=(CALL,))
    result = Message(role="tool", content="wet", tool_call_id="c1", name="soil")
    asked = [Message(role="developer", content="Be kind."), Message(role="user", content="Water it?"), call, result]
    prompt = Prompt.of(asked, tools=TOOLS)
    chosen = Response.of(prompt.id, [call, result, Message(role="assistant", content="No.")], arm="agent")
    rejected = Response.of(prompt.id, [Message(role="assistant", content="Yes.")])
    known = {"weight": 0.5, "strength": 2.0, "scores": (4.0, 2.0), "annotator": "ann"}
    return PreferencePair(prompt=prompt, chosen=chosen, rejected=rejected, verdict=pair().verdict, **known)


def test_tools_reasoning_and_several_turns_survive_and_reach_the_template_as_they_are(tmp_path):
    made = agent_pair()
    write_pairs(tmp_path / "pairs.jsonl", [made])
    assert read_pairs(tmp_path / "pairs.jsonl") == [made]
    row = made.to_trl()
    assert row["tools"] == TOOLS
    assert row["chosen"] == [
        {"role": "assistant", "content": "", "reasoning_content": "dry?", "tool_calls": (CALL,)},
        {"role": "tool", "content": "wet", "tool_call_id": "c1", "name": "soil"},
        {"role": "assistant", "content": "No."},
    ]
    assert row["rejected"] == [{"role": "assistant", "content": "Yes."}]
    for said in ("dry?", '"fern": 0', "tool: wet", "No."):
        assert said in made.chosen.text, "what people and checks read lacks nothing"


def test_what_a_record_does_not_use_leaves_no_trace_in_files_and_hashes():
    """The file and the ids are those that were written before these fields were there."""
    row = pair().to_json()
    assert list(row) == [
        "prompt", "chosen", "rejected", "prompt_id", "facts", "verdict", "chosen_made", "rejected_made",
    ]  # fmt: skip
    assert list(row["chosen_made"]) == ["arm", "temperature", "seed", "stopped"]
    assert list(pair().chosen.model_dump()) == ["prompt_id", "text", "arm", "temperature", "seed", "stopped"]
    assert list(pair().prompt.model_dump()) == ["id", "messages", "facts"]
    assert Prompt.from_text("why?", system="Be brief.").id == "f1d96830722061b8"
    other = [Message(role="user", content="why?", name="ann")]
    assert len({Prompt.of(other).id, Prompt.of(other, tools=TOOLS).id, Prompt.from_text("why?").id}) == 3


@pytest.mark.parametrize(
    ("prompt", "answer", "right"),
    [
        ("u", "a", True), ("sdu", "a", True), ("uau", "ata", True), ("uat", "a", True), ("uattatau", "aua", True),
        ("ut", "a", False), ("tu", "a", False), ("uaat", "a", False), ("u", "at", False), ("u", "au", False),
        ("u", "aa", False), ("u", "ua", False), ("usu", "a", False), ("ua", "a", False), ("u", "", False),
    ],
)  # fmt: skip
def test_who_may_speak_when(prompt, answer, right):
    roles = {"s": "system", "d": "developer", "u": "user", "a": "assistant", "t": "tool"}
    faults = (
        fault([Message(role=roles[letter], content="x") for letter in letters])
        for fault, letters in ((role_fault, prompt), (side_fault, answer))
    )
    assert (not any(faults)) == right


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
    with pytest.raises(DpoKitError, match=r"line 1: missing field 'rejected'"):
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


def line(**changes) -> bytes:
    return json.dumps(pair().to_json() | changes).encode()


def system(role: str, *others: str) -> list[dict[str, str]]:
    return [{"role": r, "content": "x"} for r in (role, *others)]


BAD_LINES = {
    "cut": (line()[:-20], "not JSON"),
    "a raw NUL": (line().replace(b"why", b"w\0y"), "not JSON"),
    "an escaped lone surrogate": (line().replace(b"why", rb"w\ud800y"), "lone surrogate"),
    "a raw lone surrogate": (line().replace(b"why", b"w\xed\xa0\x80y"), "lone surrogate at byte"),
    "a surrogate in a key": (line(facts={"x": 1}).replace(b'"x"', rb'"\udfff"'), "lone surrogate"),
    "not UTF-8": (line().replace(b"why", b"w\xffy"), "not UTF-8 at byte"),
    "a duplicate key": (line().replace(b'"share": 4', b'"share": 4, "share": 5'), "duplicate key 'share'"),
    "NaN": (line().replace(b'"share": 4', b'"share": NaN'), "not a finite number"),
    "infinite": (line().replace(b'"share": 4', b'"share": 1e999'), "not a finite number"),
    "an endless integer": (line().replace(b'"share": 4', b'"share": ' + b"9" * 5000), "not a finite number"),
    "deep": (line().replace(b'"share": 4', b'"share": ' + b"[" * 200 + b"]" * 200), "nested deeper"),
    "very deep": (line().replace(b'"share": 4', b'"share": ' + b"[" * 20000 + b"]" * 20000), "nested deeper"),
    "no object": (b"[1]", "a JSON object was expected"),
    "no verdict": (json.dumps({k: v for k, v in pair().to_json().items() if k != "verdict"}).encode(), "'verdict'"),
    "one field too many": (line(wimner="a"), "unknown field 'wimner'"),
    "an unknown role": (line(prompt=system("boss")), "role"),
    "an answer by the user": (line(chosen=system("user")), "chosen: wrong role order"),
    "two answers": (line(chosen=system("assistant", "assistant")), "chosen: wrong role order"),
    "no prompt": (line(prompt=[]), "at least 1"),
    "no user": (line(prompt=system("system")), "wrong role order"),
    "two users": (line(prompt=system("user", "user")), "wrong role order"),
    "the assistant last": (line(prompt=system("user", "assistant")), "wrong role order"),
    "a late system turn": (line(prompt=system("user", "assistant", "system", "user")), "wrong role order"),
}


def kept(quarantined: dict) -> bytes:
    return quarantined["raw"].encode() if "raw" in quarantined else base64.b64decode(quarantined["raw_base64"])


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_an_error_that_names_it_or_goes_to_quarantine_whole(tmp_path, name):
    bad, why = BAD_LINES[name]
    path, quarantine = tmp_path / "pairs.jsonl", tmp_path / "bad.jsonl"
    path.write_bytes(b"\n".join([line(), b"", bad, line(), b""]))
    with pytest.raises(DpoKitError, match=rf"pairs\.jsonl, line 3: .*{why}"):
        read_pairs(path)
    said = []
    assert read_pairs(path, quarantine, said.append) == [pair(), pair()]
    (aside,) = read_jsonl(quarantine)
    assert (aside["file"], aside["line"], kept(aside)) == ("pairs.jsonl", 3, bad)
    assert why in aside["reason"]
    assert "1 of 3 lines put aside" in said[0]


def test_a_good_file_leaves_an_empty_quarantine_and_says_nothing(tmp_path):
    write_pairs(tmp_path / "pairs.jsonl", [pair()])
    (tmp_path / "bad.jsonl").write_text("from another day")
    said = []
    read_pairs(tmp_path / "pairs.jsonl", tmp_path / "bad.jsonl", said.append)
    assert said == read_jsonl(tmp_path / "bad.jsonl") == []


def test_the_quarantine_may_not_be_the_file_itself(tmp_path):
    (tmp_path / "pairs.jsonl").write_bytes(b"broken")
    with pytest.raises(DpoKitError, match="must not be the file"):
        read_pairs(tmp_path / "pairs.jsonl", tmp_path / "." / "pairs.jsonl")
    assert (tmp_path / "pairs.jsonl").read_bytes() == b"broken"


def test_windows_line_ends_and_a_byte_order_mark_are_no_faults(tmp_path):
    (tmp_path / "pairs.jsonl").write_bytes(b"\xef\xbb\xbf" + line() + b"\r\n" + line() + b"\r\n")
    assert read_pairs(tmp_path / "pairs.jsonl") == [pair(), pair()]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(text=TEXT, other=TEXT, facts=st.dictionaries(st.text(), JSON, max_size=3))
def test_whatever_text_a_pair_holds_it_comes_back_as_it_was(tmp_path_factory, text, other, facts):
    path = tmp_path_factory.getbasetemp() / "round.jsonl"
    before = pair(text, other)
    before = before.model_copy(update={"prompt": before.prompt.model_copy(update={"facts": facts})})
    write_pairs(path, [before])
    assert read_pairs(path) == [before]


@st.composite
def mutated(draw):
    """A valid line with bytes cut out, put in, or changed; or any bytes at all."""
    raw = bytearray(line())
    for _ in range(draw(st.integers(0, 3))):
        at, length = draw(st.integers(0, len(raw))), draw(st.integers(0, 8))
        raw[at : at + length] = draw(
            st.binary(max_size=6) | st.sampled_from([b"NaN", rb"\udc00", b'"x":1,', b"[[", b"\0"])
        )
    return bytes(raw)


@given(st.lists(mutated() | st.binary(max_size=40) | JSON.map(lambda v: json.dumps(v).encode()), max_size=4))
def test_every_line_is_good_or_in_quarantine_and_none_is_lost(tmp_path_factory, lines):
    folder = tmp_path_factory.getbasetemp()
    path, quarantine, again = folder / "fuzz.jsonl", folder / "fuzz-bad.jsonl", folder / "fuzz-again.jsonl"
    path.write_bytes(b"\n".join(lines))
    good = read_pairs(path, quarantine, log=lambda said: None)
    written = [part.removesuffix(b"\r") for part in path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    aside = {row["line"]: kept(row) for row in read_jsonl(quarantine)}
    assert all(written[number - 1] == raw for number, raw in aside.items())
    assert len(good) + len(aside) == sum(bool(raw.strip()) for raw in written)
    write_pairs(again, good)
    assert read_pairs(again) == good


def test_a_split_keeps_every_prompt_on_one_side_also_under_two_ids():
    def asked(i: int, name: str) -> PreferencePair:
        prompt = Prompt(id=name, messages=(Message(role="user", content=f"question {i}"),))
        return pair(f"chosen by {name}", f"rejected by {name}").model_copy(update={"prompt": prompt})

    pairs = [asked(i, f"{source}-{i}") for i in range(2000) for source in ("first", "second")]
    train, held_out = split_by_prompt(pairs, 0.2, seed=1)
    texts = [{p.prompt.text for p in side} for side in (train, held_out)]
    assert not texts[0] & texts[1]
    assert sorted(p.prompt.id for p in [*train, *held_out]) == sorted(p.prompt.id for p in pairs)
    assert abs(len(texts[1]) - 400) < 4 * (2000 * 0.2 * 0.8) ** 0.5, "four standard deviations of a binomial"
    fewer = split_by_prompt(pairs[::3], 0.2, seed=1)[1]
    assert {p.prompt.text for p in fewer} <= texts[1], "no prompt changes sides when the file grows"
    assert split_by_prompt(pairs, 0.2, seed=2)[1] != held_out
    assert split_by_prompt(pairs, 0.0)[1] == []


@pytest.mark.parametrize("holdout", [-0.1, 1.0, float("nan")])
def test_a_share_that_is_none_is_refused(holdout):
    with pytest.raises(DpoKitError, match="holdout must lie"):
        split_by_prompt([pair()], holdout)


def test_a_prompt_from_text_is_named_by_what_it_asks():
    plain, same, other = (
        Prompt.from_text("why?"),
        Prompt.from_text("why?"),
        Prompt.from_text("why?", system="Be brief."),
    )
    assert plain == same
    assert plain.id != other.id
    assert other.chat() == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "why?"}]
