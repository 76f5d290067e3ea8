"""The checks of notebook 05: merging an adapter, choosing a checkpoint, counting what sharing saves."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dpo_kit.workbook.exercises import CheckResult, verdict_on

Checkpoint = tuple[int, dict[str, str], dict[str, str]]


def check_merge(answer: Callable) -> CheckResult:
    """`answer(weight, a, b, alpha)`: W (out, in), A (r, in), B (out, r) and alpha in; the merged weight out."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(6, 4, 2, 8.0), (5, 5, 3, 3.0), (5, 5, 5, 16.0)]
    cases = [
        (*(torch.randn(shape, generator=draw) for shape in ((out, into), (r, into), (out, r))), alpha)
        for out, into, r, alpha in shapes
    ]
    return verdict_on(answer, _merge, _MERGE, cases)


def check_newest(answer: Callable) -> CheckResult:
    """`answer(checkpoints)`: a list of (step, promised, found) in, where both map a file's name to its hash.

    Out comes the step to go on from: the highest of those that are whole, else 0.
    """
    whole, changed = {"weights": "a", "optimizer": "b"}, {"weights": "a", "optimizer": "x"}
    missing, added = {"weights": "a"}, {**whole, "more": "c"}
    cases = [
        ([(20, whole, whole), (40, whole, whole)],),
        ([(40, whole, changed), (20, whole, whole)],),
        ([(20, whole, whole), (40, whole, missing), (60, whole, changed)],),
        ([(5, whole, whole), (10, whole, added)],),
        ([(100, whole, whole), (20, whole, whole), (30, whole, missing)],),
        ([(20, whole, missing)],),
        ([],),
    ]
    return verdict_on(answer, _newest, _NEWEST, cases)


def check_saving(answer: Callable) -> CheckResult:
    """`answer(lengths)`: a batch of (prompt, chosen, rejected) in tokens; positions padded over positions shared."""
    cases = [([(10, 5, 5)],), ([(30, 10, 10), (30, 10, 10)],), ([(8, 4, 20), (60, 9, 3), (5, 2, 2)],)]
    return verdict_on(answer, _saving, _SAVING, cases)


def _merge(weight: Tensor, a: Tensor, b: Tensor, alpha: float) -> Tensor:
    return weight + alpha / len(a) * b @ a


def _best(checkpoints: Sequence[Checkpoint], whole: Callable[[dict, dict], bool]) -> int:
    return max((step for step, promised, found in checkpoints if whole(promised, found)), default=0)


def _newest(checkpoints: Sequence[Checkpoint]) -> int:
    return _best(checkpoints, lambda promised, found: promised == found)


def _last_listed(checkpoints: Sequence[Checkpoint]) -> int:
    return next((step for step, promised, found in reversed(checkpoints) if promised == found), 0)


def _only_the_highest(checkpoints: Sequence[Checkpoint]) -> int:
    step, promised, found = max(checkpoints, key=lambda c: c[0], default=(0, {}, {}))
    return step if promised == found else 0


def _padded(lengths: Sequence[tuple[int, int, int]]) -> int:
    return 2 * len(lengths) * max(p + max(c, r) for p, c, r in lengths)


def _saving(lengths: Sequence[tuple[int, int, int]]) -> float:
    return _padded(lengths) / sum(p + c + r for p, c, r in lengths)


_MERGE = {
    "alpha / r scales the product; alpha alone does not": lambda w, a, b, alpha: w + alpha * b @ a,
    "the scale alpha / r is missing": lambda w, a, b, alpha: w + b @ a,
    "r is the inner size of the product, len(a); the outer size was taken": lambda w, a, b, alpha: (
        w + alpha / len(b) * b @ a
    ),
    "this is only the change; the merged weight is W plus it": lambda w, a, b, alpha: alpha / len(a) * b @ a,
    "the sign: the adapter's product is added": lambda w, a, b, alpha: w - alpha / len(a) * b @ a,
}
_NEWEST = {
    "the highest number is not enough: one that is not whole must be passed over": lambda c: _best(
        c, lambda promised, found: True
    ),
    "the last in the list need not be the newest: compare the steps": _last_listed,
    "where the newest is damaged, an older one that is whole must do": _only_the_highest,
    "a missing file is damage, too: an optimizer that begins anew is another run": lambda c: _best(
        c, lambda promised, found: all(promised.get(name) == digest for name, digest in found.items())
    ),
    "a file that nobody promised is damage, too": lambda c: _best(
        c, lambda promised, found: all(found.get(name) == digest for name, digest in promised.items())
    ),
    "names are not enough: compare the hashes": lambda c: _best(
        c, lambda promised, found: promised.keys() == found.keys()
    ),
}
_SAVING = {
    "padding is missing: every row of the batch is as long as the longest": lambda rows: (
        sum(2 * p + c + r for p, c, r in rows) / sum(p + c + r for p, c, r in rows)
    ),
    "each pair has two rows": lambda rows: _saving(rows) / 2,
    "the other way round: padded over shared": lambda rows: 1 / _saving(rows),
    "where the prompt is shared it stands once: P + C + R": lambda rows: (
        _padded(rows) / sum(2 * p + c + r for p, c, r in rows)
    ),
    "a row is as long as its prompt and ONE answer": lambda rows: (
        2 * len(rows) * max(p + c + r for p, c, r in rows) / sum(p + c + r for p, c, r in rows)
    ),
}
