"""Do the readers behave as documented for arbitrary bytes? Coverage-guided fuzzing with atheris.

    python -m benchmarks.fuzz_readers [pairs|import|prompts|reply|score] [--minutes 1] [--corpus runs/fuzz]

Targets: our own pairs file, other people's files in every format, their prompts, and the two parsers of what an LLM
judge replies. The properties are those of the unit tests: only the documented exception is raised; every line is read
or in quarantine; what was read can be written and read again. Inputs are kept in the corpus folder, so that the next
run continues from there. An input that breaks a property is kept there as `crash-...`, and the exit code is not 0.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["dpo_kit", "json", "csv"]):
    from dpo_kit.errors import DpoKitError
    from dpo_kit.jsonl import raw_lines, read_jsonl, read_pairs, write_pairs, write_records
    from dpo_kit.preferences.importers import FORMATS, import_pairs, read_prompts
    from dpo_kit.preferences.judges import prompt as judge_prompt
    from dpo_kit.profiles import ROOT
    from dpo_kit.records import Message, PreferencePair, Prompt, Response, Verdict

KINDS = ("jsonl", "json", "csv", "parquet")
WORDS = r"""role content user assistant prompt chosen rejected completion label fields responses annotations data
result value selected choices rank NaN \ud800 Human: Assistant:"""


def example_pair() -> PreferencePair:
    """A pair that is in order."""
    prompt = Prompt.of([Message(role="user", content="why?")], facts={"share": 4})
    chosen, rejected = (Response(prompt_id=prompt.id, text=text) for text in ("good", "bad"))
    return PreferencePair(
        prompt=prompt, chosen=chosen, rejected=rejected, verdict=Verdict(winner="a", judge="j", reason="r")
    )


def seeds() -> dict[str, list[bytes]]:
    """Inputs that are in order, by target; the first byte of an import input chooses file kind and format."""
    pair = example_pair()
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = [
        pair.to_json(),
        pair.to_trl(),
        {"chosen": turns, "rejected": [*turns[:1], {"role": "assistant", "content": "b"}], "score_chosen": 1.0},
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        {"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 1, "score_A": 2, "score_B": 1},
        {"input": "q", "output_1": "a", "output_2": "b", "label": 2},
        {"prompt": "q", "completion": "a", "label": True},
        {
            "fields": {"prompt": "q", "response1": "a", "response2": "b"},
            "responses": [{"user_id": "u", "values": {"p": {"value": [{"value": "response1", "rank": 1}]}}}],
        },
        {"prompt": "q", "response1": "a", "response2": "b", "p.responses": [["2", "1"]], "p.responses.users": ["u"]},
        {
            "data": {"prompt": "q", "answer1": "a", "answer2": "b"},
            "annotations": [{"result": [{"type": "pairwise", "value": {"selected": "left"}}], "completed_by": 1}],
        },
    ]
    lines = [json.dumps(row).encode() for row in rows]
    return {
        "pairs": [lines[0], lines[0] + b"\n" + lines[0][:-9] + b"\n"],
        "import": [
            *(bytes([0]) + line for line in lines),
            *(bytes([1]) + b"[" + line + b"," + line + b"]" for line in lines),
            bytes([0]) + lines[6] + b"\n" + lines[6].replace(b"true", b"false"),  # KTO needs two rows for a pair
            bytes([2]) + b'prompt,chosen,rejected,system\n"q,r",a,b,\n',
        ],
        "prompts": [
            *(bytes([0]) + json.dumps(row).encode() for row in ({"prompt": "q", "id": 1}, {"messages": turns[:1]})),
            *(bytes([0]) + line for line in lines),
        ],
        "reply": [b'{"reason": "shorter", "winner": "A"}'],
        "score": [b'{"reason": "shorter", "score": 4}'],
    }


def fuzz_pairs(folder: Path, data: bytes) -> None:
    """Our own file: every line is good or in quarantine, and the good ones come back."""
    path, aside, again = folder / "x.jsonl", folder / "aside.jsonl", folder / "again.jsonl"
    path.write_bytes(data)
    good = read_pairs(path, aside, log=lambda said: None)
    assert len(good) + len(read_jsonl(aside)) == sum(1 for _ in raw_lines(path)), "a line is lost"
    write_pairs(again, good)
    assert read_pairs(again) == good, "a pair changed on the way to disk"


def fuzz_import(folder: Path, data: bytes) -> None:
    """Others' files, the format found or named: pairs that can be written, or the documented error."""
    choice = data[0] if data else 0
    names = [None, *FORMATS]
    path, aside, again = folder / f"x.{KINDS[choice % 4]}", folder / "aside.jsonl", folder / "again.jsonl"
    path.write_bytes(data[1:])
    try:
        imported = import_pairs(path, names[choice // 4 % len(names)], aside)
    except DpoKitError:
        return
    assert len(read_jsonl(aside)) == imported.quarantined, "a row is lost"
    write_pairs(again, imported.pairs)
    assert import_pairs(again, "dpo-kit").pairs == imported.pairs, "a pair changed on the way to disk"


def fuzz_prompts(folder: Path, data: bytes) -> None:
    """Others' files of prompts, or of pairs: prompts that can be written, or the documented error."""
    path, again = folder / f"x.{KINDS[data[0] % 4 if data else 0]}", folder / "again.jsonl"
    path.write_bytes(data[1:])
    try:
        prompts = read_prompts(path)
    except DpoKitError:
        return
    write_records(again, prompts)
    assert read_prompts(again) == prompts, "a prompt changed on the way to disk"


def fuzz_reply(folder: Path, data: bytes) -> None:
    """A judge's reply: a verdict, or the documented refusal."""
    _parsed(judge_prompt.parse_reply, data)


def fuzz_score(folder: Path, data: bytes) -> None:
    """A judge's score: a number, or the documented refusal."""
    _parsed(judge_prompt.parse_score, data)


def _parsed(parse: Callable[[str], object], data: bytes) -> None:
    with contextlib.suppress(judge_prompt.BadReply):
        parse(data.decode("utf-8", errors="surrogateescape"))


TARGETS = {
    "pairs": fuzz_pairs, "import": fuzz_import, "prompts": fuzz_prompts, "reply": fuzz_reply, "score": fuzz_score,
}  # fmt: skip


def main() -> None:
    """Fuzz one target for some minutes; libFuzzer prints what it saw and sets the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?", choices=TARGETS, default="import")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--corpus", type=Path, default=ROOT / "runs" / "fuzz")
    arguments = parser.parse_args()
    corpus = arguments.corpus / arguments.target
    corpus.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(seeds()[arguments.target]):
        (corpus / f"seed-{i}").write_bytes(seed)
    words = corpus.parent / "words.txt"
    words.write_text("".join(f"{json.dumps(word)}\n" for word in WORDS.split()))
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    options = [f"-max_total_time={60 * arguments.minutes:.0f}", "-print_final_stats=1", "-max_len=4096",
               f"-dict={words}", f"-artifact_prefix={corpus}/"]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(corpus)], lambda data: TARGETS[arguments.target](folder, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
