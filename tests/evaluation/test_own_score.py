"""A score from a file that the user named."""

import pytest

from dpo_kit.errors import DpoKitError
from dpo_kit.evaluation.own_score import load_score, score_judge
from dpo_kit.records import Prompt

PROMPT = Prompt.from_text("?")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "def brief(prompt, answer):\n    return 1 / (1 + len(answer))\n\n"
        "def several(prompt, answer):\n    return {'a': 1.0, 'b': 0.0 if answer else 1.0}\n\n"
        "def wide(prompt, answer):\n    return 7\n\nNUMBER = 3\n"
    )
    return path


def test_the_function_is_loaded_by_its_name(file):
    assert load_score(f"{file}:brief")(PROMPT, "abc") == 0.25
    verdict = score_judge(load_score(f"{file}:brief"))(PROMPT, "abc", "abcd")
    assert (verdict.winner, verdict.judge) == ("a", "score brief")
    assert score_judge(load_score(f"{file}:several"))(PROMPT, "x", "").winner == "b"


def test_a_score_out_of_range_is_refused_where_it_is_used(file):
    with pytest.raises(DpoKitError, match=r"metric wide gave 7 .* a number in \[0, 1\] is needed"):
        score_judge(load_score(f"{file}:wide"))(PROMPT, "a", "b")


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("mine.txt:brief", "write file.py:function"),
        ("mine.py", "write file.py:function"),
        ("absent.py:brief", "there is no file"),
        ("mine.py:absent", "it holds no function 'absent'"),
        ("mine.py:NUMBER", "it holds no function 'NUMBER'"),
        ("broken.py:f", "broken.py, line 1: executing it failed: SyntaxError"),
        ("raises.py:f", "raises.py: executing it failed: ZeroDivisionError"),
    ],
)
def test_what_cannot_be_loaded_is_named(file, tmp_path, named, message):
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "raises.py").write_text("1 / 0\n")
    with pytest.raises(DpoKitError) as refused:
        load_score(str(tmp_path / named))
    assert message in str(refused.value)
