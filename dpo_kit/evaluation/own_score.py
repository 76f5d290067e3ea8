"""A score of the user's own: a Python function in a file, named on the command line as `file.py:function`.

The file is executed with all rights of the user, so its path comes from what was typed and from nowhere else: not from
a record, a profile or a data set.
"""

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from types import ModuleType

from dpo_kit.errors import DpoKitError
from dpo_kit.evaluation.scoring import Score, checked
from dpo_kit.preferences.judges import Judge, by_score
from dpo_kit.records import Prompt


def load_score(named: str) -> Score:
    """The function that `file.py:function` names: it takes a Prompt and an answer, and gives a number in [0, 1] or a
    dict of several.

    What it gives is checked where it is used (`scoring.checked`). Raises DpoKitError where the text has another form,
    the file cannot be executed, or it holds no such function.
    """
    file, _, function = named.rpartition(":")
    path = Path(file).expanduser()
    if path.suffix != ".py" or not function.isidentifier():
        raise DpoKitError(f"--score {named}: write file.py:function, the path of a Python file and a function in it")
    if not path.is_file():
        raise DpoKitError(f"--score {named}: there is no file {path}")
    module = ModuleType(f"own_score_{path.stem}")
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except Exception as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise DpoKitError(f"{path}{line}: executing it failed: {type(error).__name__}: {error}; repair it") from error
    score = getattr(module, function, None)
    if not callable(score):
        raise DpoKitError(f"{path}: it holds no function {function!r}; define it, or name another one")
    return score


def mean_score(score: Score) -> Callable[[Prompt, str], float]:
    """The score as one number, checked: the mean where it gives several metrics."""
    check = checked(score)
    return lambda prompt, text: fmean(check(prompt, text).values())


def score_judge(score: Score) -> Judge:
    """The judge that prefers the answer of higher score, where a score of several metrics counts as their mean."""
    return by_score(mean_score(score), f"score {getattr(score, '__name__', 'function')}")
