"""Does the audit find planted faults, flag few clean rows, and run fast enough on a large data set?

    python -m benchmarks.audit_faults [--pairs 10000] [--seed 0]     seeded faults: recall by check, clean rows flagged
    python -m benchmarks.audit_faults --speed 60000                  seconds and peak memory at UltraFeedback's size

Half of the clean pairs are incidents of the workbook's world, which are similar by construction, and half are
recombined sentences of real Anthropic HH conversations (`DPO_KIT_REAL_DATA`). Each fault is planted in 1% of the rows,
and no row has two faults. A near-duplicate is a copy with one word and 2% of the other words changed, none of them with
a digit, and with case and punctuation altered. `looks cut off` is a heuristic: its recall is reported, not required.
"""

import argparse
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from dpo_kit.jsonl import write_pairs
from dpo_kit.preferences.audit import AuditReport, audit_pairs
from dpo_kit.profiles import ROOT
from dpo_kit.records import Message, PreferencePair, Prompt, Response, Verdict
from dpo_kit.triage.demonstrations import Noise, hurried_answer
from dpo_kit.triage.incidents import Incident
from dpo_kit.triage.reports import draw_prompts

MAX_LENGTH = 700  # tokens of the tiny tokenizer, about two characters each in English
REAL = Path(os.environ.get("DPO_KIT_REAL_DATA", ROOT.parent / "shared" / "data"))
HEURISTIC = {"looks cut off"}
FOREIGN = (
    "Der Zug nach Hamburg fährt heute leider mit großer Verspätung ab. Bitte achten Sie auf Durchsagen.",
    "La bibliothèque ferme plus tôt pendant les vacances. Vous pouvez rendre vos livres dans la boîte à l'entrée.",
    "El mercado abre todos los días por la mañana. Los vendedores ofrecen fruta fresca y pan recién hecho.",
    "Поезд отправляется завтра рано утром с третьего пути. Пожалуйста, не забудьте взять с собой документы и билеты.",
    "Il museo resta chiuso il lunedì per lavori di restauro. I visitatori possono comunque passeggiare nel giardino.",
    "市立图书馆周末开放时间有所调整，请各位读者提前查询并合理安排自己的借阅计划，感谢大家的理解与支持。如有疑问，请联系一楼服务台的工作人员，他们会为您提供帮助。",
)
SECRETS = (
    "AKIA7Q2MZX4PLT5WNB3C", "sk-proj-9aF3kQ7LmZ2xWv8TbR4nYc6H", "ghp_a8Jd72KfLq03MzXw91PvBt56RsYn4EgHu7Ci",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA7\n-----END RSA PRIVATE KEY-----", "4539 1488 0343 6467",
    "GB82 WEST 1234 5698 7654 32", "DE89370400440532013000",
)  # fmt: skip
TURN = r"\n\n(Human|Assistant): ([^\0]*?)(?=\n\n(?:Human|Assistant):|\Z)"
PERSONAL = ("jane.miller@example-mail.org", "+49 30 901820 44", "(415) 555-0142", "1-415-555-0188", "93.184.216.34")


def sentences() -> tuple[list[str], list[str]]:
    """Human and assistant sentences of the real conversations, whole ones only, without addresses or long numbers."""
    found: dict[str, dict[str, None]] = {"Human": {}, "Assistant": {}}
    for line in (REAL / "hh_rlhf" / "harmless_base_test_filtered.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for speaker, turn in re.findall(TURN, row["chosen"] + row["rejected"]):
            for sentence in re.split(r"(?<=[.!?])\s+", turn):
                whole = len(sentence.split()) >= 4 and sentence[-1] in ".!?" and sentence.count('"') % 2 == 0
                if whole and not re.search(r"@|[0-9][0-9 ().-]{5}", sentence):
                    found[speaker][sentence] = None
    return list(found["Human"]), list(found["Assistant"])


def pair(name: str, messages: list[Message], chosen: str, rejected: str, stopped: bool | None = True) -> PreferencePair:
    """A pair with the verdict of a judge."""
    sides = (Response(prompt_id=name, text=text, arm="sampled", stopped=stopped) for text in (chosen, rejected))
    prompt = Prompt(id=name, messages=tuple(messages))
    return PreferencePair(
        prompt=prompt, chosen=next(sides), rejected=next(sides), verdict=Verdict(winner="a", judge="judge", reason="")
    )


def clean_pairs(n: int, rng: random.Random, words: tuple[int, int, int] = (25, 45, 45)) -> list[PreferencePair]:
    """`n` pairs without a fault, half from each source. `words` are about those of prompt, chosen and rejected."""
    incidents = draw_prompts(n // 2, "train", "clean", rng.randrange(10**6))
    pairs = [incident_pair(prompt, rng) for prompt in incidents]
    human, assistant = sentences()
    while len(pairs) < n:
        pairs.append(recombined(f"hh-{len(pairs)}", human, assistant, words, rng))
    rng.shuffle(pairs)
    return pairs


def incident_pair(prompt: Prompt, rng: random.Random) -> PreferencePair:
    """Two hurried answers to one incident that differ, either of them preferred."""
    incident = Incident.from_facts(prompt.facts)
    chosen = rejected = hurried_answer(incident, Noise(), rng)
    while rejected == chosen:
        rejected = hurried_answer(incident, Noise(), rng)
    return pair(prompt.id, list(prompt.messages), chosen, rejected)


def recombined(
    name: str, human: list[str], assistant: list[str], words: tuple[int, int, int], rng: random.Random
) -> PreferencePair:
    """A question and two answers put together from whole sentences; one in four has an earlier exchange."""

    def some(pool: list[str], about: int) -> str:
        drawn, wanted = [], rng.uniform(0.5, 1.5) * about
        while sum(len(sentence.split()) for sentence in drawn) < wanted:
            drawn.append(rng.choice(pool))
        return " ".join(drawn)

    messages = [Message(role="user", content=some(human, words[0]))]
    if rng.random() < 0.25:
        messages = [messages[0], Message(role="assistant", content=some(assistant, 12)),
                    Message(role="user", content=some(human, 12))]  # fmt: skip
    return pair(name, messages, some(assistant, words[1]), some(assistant, words[2]))


def with_texts(base: PreferencePair, edit: Callable[[str], str], where: tuple[str, ...]) -> PreferencePair:
    """The pair with `edit` applied to some of "prompt" (every message), "chosen" and "rejected"."""
    data = base.model_dump()
    for side in where:
        for message in data["prompt"]["messages"] if side == "prompt" else ():
            message["content"] = edit(message["content"])
        if side != "prompt":
            data[side]["text"] = edit(data[side]["text"])
    return PreferencePair.model_validate(data)


def near_copy(text: str, rng: random.Random, words: list[str], edits: int) -> str:
    """The text with `edits` words without digits replaced, doubled or left out, another case, and no commas."""
    parts = text.split(" ")
    for at in rng.sample(range(len(parts)), min(edits, len(parts))):
        if not re.search("[0-9]", parts[at]):
            parts[at] = rng.choice((rng.choice(words), f"{parts[at]} {parts[at]}", ""))
    return " ".join(parts).replace(",", "").capitalize()


def near_pair(base: PreferencePair, rng: random.Random, words: list[str]) -> PreferencePair:
    """A near-duplicate: one word and 2% of the rest changed over prompt and answers together."""
    sides = ["prompt", "chosen", "rejected"]
    texts = [base.prompt.text, base.chosen.text, base.rejected.text]
    edits = [0, 0, 0]
    for _ in range(1 + sum(len(text.split()) for text in texts) // 50):
        edits[rng.choices(range(3), [len(text) for text in texts])[0]] += 1
    for side, n in zip(sides, edits, strict=True):
        base = with_texts(base, lambda text, n=n: near_copy(text, rng, words, n), (side,))
    return base


def plant(pairs: list[PreferencePair], rate: float, rng: random.Random):
    """Plant every fault in `rate` of the rows. Returns the pairs, the faulty rows by check, the holdout, and for each
    near-duplicate the row that it was made from: the audit may drop either of the two.
    """
    rows, free = list(pairs), list(range(len(pairs)))
    rng.shuffle(free)
    truth: dict[str, set[int]] = {}
    words = " ".join(p.chosen.text for p in pairs[:500] if p.prompt.id.startswith("hh")).split()
    each = max(round(rate * len(pairs)), 1)

    def some_rows(check: str) -> list[int]:
        taken = [free.pop() for _ in range(each)]
        truth.setdefault(check, set()).update(taken)
        return taken

    def spoil(check: str, how: Callable[[PreferencePair], PreferencePair]) -> None:
        for row in some_rows(check):
            rows[row] = how(rows[row])

    def both(edit: Callable[[str], str]) -> Callable[[PreferencePair], PreferencePair]:
        return lambda p: with_texts(p, edit, ("chosen", "rejected"))

    def one(edit: Callable[[str], str], among: tuple[str, ...] = ("chosen", "rejected")):
        return lambda p: with_texts(p, edit, (rng.choice(among),))

    anywhere = ("prompt", "chosen", "rejected")
    invisible = ("", "  \n", "\u200b", "\ufeff \t")
    long = " ".join(["This goes on and on for a good while and says little that is new."] * 40)
    spoil("identical answers", lambda p: p.model_copy(update={"rejected": p.chosen}))
    spoil("empty or blank", one(lambda text: rng.choice(invisible), anywhere))
    spoil("wrong role order", lambda p: disordered(p, rng))
    spoil("cut off", lambda p: stopped(one(cut_midway)(p), False))
    spoil("looks cut off", lambda p: stopped(one(lambda t: cut_midway(f"{long[:195]} {t}"))(p), None))
    spoil("no EOS after templating", one(lambda text: f"{text}<|end|> So much for that."))
    spoil("prompt not a prefix", one(lambda text: "\n" + text))
    spoil("EOS cut off", one(lambda text: f"{text} {long}"))
    spoil("identical after truncation", both(lambda text: f"{long} {text}"))
    truth["EOS cut off"] |= truth["identical after truncation"]  # these are cut too
    spoil("secrets", one(lambda text: f"{text} Use {rng.choice(SECRETS)} for it.", anywhere))
    spoil("personal data", one(lambda text: f"{text} Ask {rng.choice(PERSONAL)} about it.", anywhere))
    spoil("languages", one(lambda text: f"{rng.choice(FOREIGN)} {text[:10]}"))
    holdout = [with_texts(rows[row], str.upper, ("prompt",)).prompt for row in some_rows("exact evaluation prompts")]
    holdout += [
        with_texts(rows[row], lambda text: near_copy(text, rng, words, 1), ("prompt",)).prompt
        for row in some_rows("near evaluation prompts")
    ]

    def add(check: str, new: PreferencePair) -> None:
        truth.setdefault(check, set()).add(len(rows))
        rows.append(new)

    originals = [free.pop() for _ in range(2 * each)]
    for row in originals[:each]:
        add(
            "duplicates",
            with_texts(rows[row], lambda text: f" {text.upper()}\n".replace(" ", "  "), ("chosen", "prompt")),
        )
    twins = {}
    for row in originals[each:]:
        twins[len(rows)] = row
        add("near-duplicates", near_pair(rows[row], rng, words))
    for row in some_rows("opposite labels"):
        p = rows[row]
        add("opposite labels", p.model_copy(update={"chosen": p.rejected, "rejected": p.chosen}))
    for row in some_rows("preference cycles"):
        p = rows[row]
        third = p.chosen.model_copy(update={"text": " ".join(rng.choices(words, k=40)) + "."})
        add("preference cycles", p.model_copy(update={"chosen": p.rejected, "rejected": third}))
        add("preference cycles", p.model_copy(update={"chosen": third, "rejected": p.chosen}))
    return rows, truth, holdout, twins


def disordered(p: PreferencePair, rng: random.Random) -> PreferencePair:
    """The pair with its turns out of order, or two turns in one message."""
    asked, answer = p.prompt.messages[-1], Message(role="assistant", content="Let me see.")
    wrong = rng.choice((
        [asked, answer], [answer, asked], [asked, asked], [asked, Message(role="system", content="Be brief."), asked],
    ))  # fmt: skip
    if rng.random() < 0.2:
        return with_texts(p, lambda text: f"{text}\n\nHuman: And then?", ("chosen",))
    return p.model_copy(update={"prompt": p.prompt.model_copy(update={"messages": tuple(wrong)})})


def cut_midway(text: str) -> str:
    """About the first two thirds of the text, to the end of a word."""
    words = text.split(" ")
    return " ".join(words[: max(2 * len(words) // 3, 1)])


def stopped(p: PreferencePair, value: bool | None) -> PreferencePair:
    """The pair with both answers known to have stopped, to have been cut, or neither."""
    sides = {side: getattr(p, side).model_copy(update={"stopped": value}) for side in ("chosen", "rejected")}
    return p.model_copy(update=sides)


def faulty_tokenizer() -> PreTrainedTokenizerBase:
    """The tiny tokenizer with two properties of real ones: a token for an empty line, and a template that adds no EOS
    where the answer already contains one. A line break after `<|assistant|>` then merges with one at the start of
    the answer.
    """
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data" / "tiny-base")
    tokenizer.add_tokens(["\n\n"])
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{% if '<|end|>' not in m['content'] %}<|end|>"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    return tokenizer


def scores(
    report: AuditReport, truth: dict[str, set[int]], twins: dict[int, int]
) -> tuple[dict[str, tuple[int, int]], set[int]]:
    """By check how many planted rows it found of how many, and the clean rows that any check of rows flagged."""
    found = {}
    for check, rows in truth.items():
        flagged = set(report[check].rows)
        found[check] = (sum(row in flagged or twins.get(row) in flagged for row in rows), len(rows))
    faulty = set().union(*truth.values(), twins.values())
    return found, {row for finding in report.findings for row in finding.rows} - faulty


def seeded(n: int, seed: int, rate: float = 0.01) -> tuple[AuditReport, dict[str, set[int]], dict[int, int]]:
    """Audit `n` clean pairs in which every fault was planted."""
    rng = random.Random(seed)
    rows, truth, holdout, twins = plant(clean_pairs(n, rng), rate, rng)
    return audit_pairs(rows, faulty_tokenizer(), holdout, MAX_LENGTH), truth, twins


def speed(n: int, seed: int) -> None:
    """Write `n` pairs of 150 + 250 + 250 words, and audit the file in a fresh process, tokenizer included."""
    with tempfile.TemporaryDirectory() as folder:
        file, rng = Path(folder) / "pairs.jsonl", random.Random(seed)
        human, assistant = sentences()
        write_pairs(file, [recombined(f"{i}", human, assistant, (150, 250, 250), rng) for i in range(n)])
        print(f"{n} pairs, {file.stat().st_size / 1e6:.0f} MB", flush=True)
        subprocess.run([sys.executable, "-m", "benchmarks.audit_faults", "--audit", str(file)], check=True)


def timed(file: Path) -> None:
    """Read and audit one file; print seconds of each and the peak memory of the process."""
    from dpo_kit.preferences.importers import import_pairs

    started = time.perf_counter()
    pairs = import_pairs(file).pairs
    read = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data" / "tiny-base")
    report = audit_pairs(pairs, tokenizer, max_length=2048, workers=2)
    done = time.perf_counter()
    # Not ru_maxrss: through exec it keeps the peak of the process that started this one.
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
    worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"read {read - started:.0f} s, audit {done - read:.0f} s, kept {len(report.kept)} of {len(pairs)}")
    print(f"peak {peak:.0f} MB; a worker, pages shared with its parent included, {worker:.0f} MB")


def main() -> None:
    """Run one of the two, print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--speed", type=int, metavar="PAIRS")
    parser.add_argument("--audit", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.audit:
        timed(arguments.audit)
    elif arguments.speed:
        speed(arguments.speed, arguments.seed)
    else:
        report, truth, twins = seeded(arguments.pairs, arguments.seed)
        found, false = scores(report, truth, twins)
        print("| fault | planted | found | recall |\n| --- | ---: | ---: | ---: |")
        for check, (hits, planted) in found.items():
            print(f"| {check} | {planted} | {hits} | {hits / planted:.1%} |")
        clean = len(report.pairs) - len(set().union(*truth.values()))
        print(f"\nclean rows flagged: {len(false)} of {clean} ({len(false) / clean:.2%})")
        by = {f.name: sorted(false & set(f.rows))[:5] for f in report.findings if false & set(f.rows)}
        print(json.dumps(by))


if __name__ == "__main__":
    main()
