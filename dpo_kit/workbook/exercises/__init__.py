"""Checks for the notebooks' exercises, with a hint that says what is wrong.

A check calls the reader's function on a few inputs and compares the results with the right ones, then with those of
common mistakes. An exercise that is not done yet raises no error, so that the whole notebook can run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CheckResult:
    """What a check found; shown as one line."""

    passed: bool
    message: str

    def __repr__(self) -> str:
        return self.message


def verdict_on(
    answer: Callable, right: Callable, mistakes: dict[str, Callable], cases: Sequence[tuple], tolerance: float = 1e-5
) -> CheckResult:
    """Compare `answer` with `right` on every case, and name the first of `mistakes` that explains a difference.

    All are functions of the same arguments; `mistakes` maps a hint to the function that makes that mistake. A hint is
    given only where the mistake explains the answer on every case.
    """
    name = answer.__name__
    try:
        given = [answer(*case) for case in cases]
    except NotImplementedError:
        return CheckResult(False, f"not yet: {name} is still to be written")
    except Exception as error:  # the reader's code may raise anything, and the notebook runs on
        return CheckResult(False, f"not right: {name} raised {type(error).__name__}: {error}")
    if any(value is None or value is ... for value in given):
        return CheckResult(False, f"not yet: {name} returns nothing")
    expected = [right(*case) for case in cases]
    if _agree(given, expected, tolerance):
        return CheckResult(True, f"right: {name} agrees on all {len(cases)} cases")
    for hint, mistake in mistakes.items():
        if _agree(given, [mistake(*case) for case in cases], tolerance):
            return CheckResult(False, f"not right: {hint}")
    return CheckResult(False, _first_difference(name, given, expected, tolerance))


def _agree(given: list, expected: list, tolerance: float) -> bool:
    return all(_same(a, b, tolerance) for a, b in zip(given, expected, strict=True))


def _same(a, b, tolerance: float) -> bool:
    try:
        a, b = (torch.as_tensor(value, dtype=torch.float64) for value in (a, b))
    except (TypeError, ValueError, RuntimeError):
        return isinstance(b, str) and a == b  # words, and not numbers
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


def _first_difference(name: str, given: list, expected: list, tolerance: float) -> str:
    case, a, b = next(
        (i, a, b) for i, (a, b) in enumerate(zip(given, expected, strict=True), 1) if not _same(a, b, tolerance)
    )
    shapes = [tuple(getattr(value, "shape", ())) for value in (a, b)]
    if shapes[0] != shapes[1]:
        return f"not right: {name} returns shape {shapes[0]} on case {case}, and {shapes[1]} is wanted"
    where = ""
    if shapes[1]:
        a, b = torch.as_tensor(a).detach(), torch.as_tensor(b)
        place = tuple((~torch.isclose(a.double(), b.double(), tolerance, tolerance)).nonzero()[0].tolist())
        where, a, b = f", at index {list(place)},", a[place].item(), b[place].item()
    return f"not right: on case {case}{where} {name} returns {_short(a)}, and {_short(b)} is wanted"


def _short(value) -> str:
    try:
        return str(torch.as_tensor(value).detach().round(decimals=4).tolist())
    except (TypeError, ValueError, RuntimeError):
        return repr(value)
