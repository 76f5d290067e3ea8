"""Write the small tasks of the regression suite.

    python -m tools.make_regression_tasks        writes data/regression/tasks.jsonl

The tasks follow from the seed, byte for byte; a test makes them again and compares. Each has a prompt, and an answer or
a rule that a program can check (`dpo_kit/evaluation/regression.py`).
"""

import random
from pathlib import Path

from dpo_kit.jsonl import write_jsonl

PATH = Path(__file__).parents[1] / "data" / "regression" / "tasks.jsonl"
EACH = 24  # tasks of each kind
WORDS = (
    "basket bridge candle carpet cloud coat desk door feather field flower forest garden glass hammer harbour "
    "jacket kettle kitchen ladder lamp letter market meadow mirror mountain needle pencil pillow "
    "plate river road roof rope scarf shelf shoe shovel spoon stone street table teapot tower train valley "
    "violin wagon wall wheel window winter"
)
PEOPLE = "Alma Bruno Clara David Elena Farid Greta Hugo Ines Jonas Karim Lena Marta Nils Olga Pavel Rosa Samir"
PLACES = "Athens Bergen Cairo Dakar Geneva Hanoi Lima Lisbon Madrid Nairobi Oslo Porto Quito Riga Turin Vienna"
NOUNS, NAMES, CITIES = WORDS.split(), PEOPLE.split(), PLACES.split()


def make_tasks(seed: int = 0) -> list[dict]:
    """All tasks, kind by kind: rows with `id`, `kind`, `prompt`, `check` and `expected`."""
    draw, rows = random.Random(seed), []
    for kind, make in MAKERS.items():
        seen: set[str] = set()
        while len(seen) < EACH:
            prompt, check, expected = make(draw, len(seen))
            if prompt not in seen:
                seen.add(prompt)
                name = f"{kind}-{len(seen):02d}"
                rows.append({"id": name, "kind": kind, "prompt": prompt, "check": check, "expected": expected})
    return rows


def copying(draw, i):
    words = draw.sample(NOUNS, 3 + i % 6)
    text = " ".join(words) if i % 2 else f"The {words[0]} is near the {words[1]}, and the {words[2]} is not."
    return f"Repeat the following text exactly, and write nothing else:\n{text}", "equals", text


def counting(draw, i):
    if i % 2:
        words = draw.sample(NOUNS, 3 + i % 7)
        return (
            f"How many words are in this list? Answer with the number alone.\n{', '.join(words)}",
            "number",
            len(words),
        )
    word = draw.choice(NOUNS)
    count = draw.randint(2, 7)
    words = [word] * count + draw.sample([noun for noun in NOUNS if noun != word], 3)
    draw.shuffle(words)
    asked = f"How often does the word {word} occur in this list? Answer with the number alone."
    return f"{asked}\n{', '.join(words)}", "number", count


def arithmetic(draw, i):
    a, b = draw.randint(3, 60), draw.randint(3, 40)
    asked, result = [
        (f"What is {a} + {b}?", a + b),
        (f"What is {a + b} - {b}?", a),
        (f"What is {a % 10 + 2} times {b % 10 + 2}?", (a % 10 + 2) * (b % 10 + 2)),
        (f"{draw.choice(NAMES)} has {a} coins and gets {b} more. How many coins are that in all?", a + b),
    ][i % 4]
    return f"{asked} Answer with the number alone.", "number", result


def formatting(draw, i):
    name, city, age = draw.choice(NAMES), draw.choice(CITIES), draw.randint(18, 80)
    words = draw.sample(NOUNS, 4)
    asked = "Write it as a JSON object with the keys name, age and city, and write nothing else."
    return [
        (f"{name} is {age} years old and lives in {city}. {asked}", "json", {"name": name, "age": age, "city": city}),
        (f"Write these words in alphabetical order, one on each line, and nothing else: {', '.join(words)}", "equals",
         "\n".join(sorted(words))),
        (f"Write these words separated by semicolons, with no spaces, and nothing else: {', '.join(words)}", "equals",
         ";".join(words)),
        (f"Write this in capital letters, and nothing else: {' '.join(words)}", "equals", " ".join(words).upper()),
    ][i % 4]  # fmt: skip


def instruction(draw, i):
    word, other = draw.sample(NOUNS, 2)
    return [
        (f"Write one sentence about a {other} that contains the word {word}.", "pattern", rf"(?is)(?=.*\b{word}).+"),
        (f"Say something about a {word} in at most ten words.", "pattern", r"\s*\S+(?:\s+\S+){0,9}\s*"),
        (f"Is a {word} heavier than a city? Answer with yes or no alone, in small letters.", "equals", "no"),
        (f"Write one sentence about a {word}, and end with the word END.", "pattern", r"(?s).+\bEND\W{0,3}"),
        (f"Name two things that are found near a {word}. Begin each with a hyphen, on a line of its own.", "pattern",
         r"\s*(?:[^-\n][^\n]*\n+)?- ?\S[^\n]*\n+- ?\S[^\n]*\s*"),
        (f"Write a short sentence about a {word} without using any comma.", "pattern", r"[^,]{8,}"),
    ][i % 6]  # fmt: skip


MAKERS = {
    "copying": copying, "counting": counting, "arithmetic": arithmetic, "format": formatting,
    "instruction": instruction,
}  # fmt: skip

if __name__ == "__main__":
    write_jsonl(PATH, make_tasks())
