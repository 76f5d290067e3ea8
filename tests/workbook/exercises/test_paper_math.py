"""The checks of notebook 01: each plausible mistake gets its own hint."""

import math

import pytest
import torch
import torch.nn.functional as F

from dpo_kit.workbook.exercises import paper_math


def gap(a):
    return (a[0] - a[2]) - (a[1] - a[3])


# (check, a wrong answer, a word of its hint)
MISTAKES = [
    (paper_math.check_optimal_policy, lambda ref, r, beta: ref * torch.exp(r / beta), "divide by Z"),
    (paper_math.check_optimal_policy, lambda ref, r, beta: torch.softmax(ref.log() + r * beta, -1), "wrong side"),
    (paper_math.check_optimal_policy, lambda ref, r, beta: torch.softmax(ref.log() + r, -1), "beta is missing"),
    (paper_math.check_optimal_policy, lambda ref, r, beta: torch.softmax(r / beta, -1), "reference is missing"),
    (paper_math.check_optimal_policy, lambda ref, r, beta: torch.softmax(ref.log() + r / beta, 0), "over the prompts"),
    (paper_math.check_optimal_policy, lambda ref, r, beta: torch.softmax(ref.log() - r / beta, -1), "sign"),
    (paper_math.check_optimal_policy, lambda ref, r, beta: torch.log_softmax(ref.log() + r / beta, -1), "log pi"),
    (paper_math.check_optimal_policy, lambda ref, r, beta: one_global_z(ref * torch.exp(r / beta)), "whole table"),
    (paper_math.check_dpo_loss, lambda *a: F.logsigmoid(a[4] * gap(a)), "the sign"),
    (paper_math.check_dpo_loss, lambda *a: -F.logsigmoid(a[4] * gap(a)).mean(), "the mean"),
    (paper_math.check_dpo_loss, lambda *a: -F.logsigmoid(a[4] * gap(a)).sum(), "the sum"),
    (paper_math.check_dpo_loss, lambda *a: -F.logsigmoid(gap(a) / a[4]), "wrong side"),
    (paper_math.check_dpo_loss, lambda *a: -a[4] * F.logsigmoid(gap(a)), "outside"),
    (paper_math.check_dpo_loss, lambda *a: -F.logsigmoid(gap(a)), "beta is missing"),
    (paper_math.check_dpo_loss, lambda *a: -F.logsigmoid(a[4] * (a[0] - a[1])), "reference is missing"),
    (paper_math.check_dpo_loss, lambda *a: -F.logsigmoid(-a[4] * gap(a)), "turned round"),
    (paper_math.check_dpo_loss, lambda *a: -torch.sigmoid(a[4] * gap(a)), "logarithm is missing"),
    (paper_math.check_dpo_loss, lambda *a: -F.logsigmoid(a[4] * (a[0] - a[1] + a[2] - a[3])), "subtracted"),
    (paper_math.check_dpo_loss, lambda *a: -torch.sigmoid(a[4] * gap(a)).log(), "overflows"),
    (paper_math.check_sequence_kl, lambda p, q, m: token_kls(q, p, m).sum(1), "direction"),
    (paper_math.check_sequence_kl, lambda p, q, m: -token_kls(p, q, m).sum(1), "the sign"),
    (paper_math.check_sequence_kl, lambda p, q, m: (ratios(p, q) * m[..., None]).sum((1, 2)), "without weights"),
    (paper_math.check_sequence_kl, lambda p, q, m: token_kls(p, q, m).sum(1) / 5, "mean over the vocabulary"),
    (paper_math.check_sequence_kl, lambda p, q, m: token_kls(p, q, m).sum(1) / m.sum(1), "mean over the positions"),
    (paper_math.check_sequence_kl, lambda p, q, m: token_kls(p, q, m).mean(1), "all positions"),
    (paper_math.check_sequence_kl, lambda p, q, m: token_kls(p, q, torch.ones_like(m)).sum(1), "mask is not applied"),
    (paper_math.check_sequence_kl, lambda p, q, m: token_kls(p, q, m), "single tokens"),
    (
        paper_math.check_sequence_kl,
        lambda p, q, m: (p.softmax(-1) * (p - q) * m[..., None]).sum((1, 2)),
        "as if they were log-probs",
    ),
    (paper_math.check_gap_at_optimum, lambda p, beta: beta * math.log(p / (1 - p)), "wrong side"),
    (paper_math.check_gap_at_optimum, lambda p, beta: math.log(p / (1 - p)), "beta is missing"),
    (paper_math.check_gap_at_optimum, lambda p, beta: math.log((1 - p) / p) / beta, "the sign"),
    (paper_math.check_gap_at_optimum, lambda p, beta: math.log(p) / beta, "this is log p"),
    (paper_math.check_sequence_kl, lambda p, q, m: plain_ratios(p, q, m).sum((1, 2)), "not by the ratio"),
    (paper_math.check_gap_at_optimum, lambda p, beta: p / beta, "this is p / beta"),
    (paper_math.check_gap_at_optimum, lambda p, beta: p / (1 - p) / beta, "logarithm is missing"),
    (paper_math.check_gap_at_optimum, lambda p, beta: beta * (p - 0.5), "first gradient step"),
]


def one_global_z(weights):
    return weights / weights.sum()


def plain_ratios(p, q, m):
    return p.softmax(-1) * (p.softmax(-1) / q.softmax(-1)) * m[..., None]


def ratios(p, q):
    return p.log_softmax(-1) - q.log_softmax(-1)


def token_kls(p, q, mask):
    return (p.softmax(-1) * ratios(p, q)).sum(-1) * mask


@pytest.mark.parametrize(("check", "answer", "word"), MISTAKES, ids=[f"{m[0].__name__}-{m[2]}" for m in MISTAKES])
def test_a_plausible_mistake_gets_its_own_hint(check, answer, word):
    verdict = check(answer)
    assert not verdict.passed
    assert verdict.message.startswith("not right:")
    assert word in verdict.message


def test_no_two_mistakes_share_a_hint():
    by_check = [(check.__name__, check(answer).message) for check, answer, _ in MISTAKES]
    assert len(set(by_check)) == len(by_check)


def test_a_mistake_nobody_thought_of_is_shown_with_what_was_wanted():
    wrong_value = paper_math.check_gap_at_optimum(lambda p, beta: 42.0)
    assert "case 1" in wrong_value.message
    assert "42.0" in wrong_value.message
    wrong_shape = paper_math.check_dpo_loss(lambda *a: torch.zeros(2, 2))
    assert "(2, 2)" in wrong_shape.message
    assert "(5,)" in wrong_shape.message
