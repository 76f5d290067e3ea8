"""The layout holds each token once and loses none, and attention equals torch's on each sequence by itself."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dpo_kit.training import branches as module
from dpo_kit.training.branches import Branches, attend_by_tiles

pairs_of_sequences = st.lists(
    st.tuples(st.lists(st.integers(1, 3), min_size=1, max_size=6), st.lists(st.integers(1, 3), min_size=1, max_size=6)),
    min_size=1, max_size=4,
)  # fmt: skip


@given(pairs_of_sequences)
@settings(max_examples=200)
def test_the_layout_holds_every_token_once_and_every_sequence_whole(pairs):
    sequences = [torch.tensor(s) for s in [c for c, _ in pairs] + [r for _, r in pairs]]
    ids = nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    branches = Branches.of(ids, (ids > 0).long())
    row = ids.flatten()[branches.owner]
    for places, sequence in zip(branches.packed, sequences, strict=True):
        assert torch.equal(row[places[: len(sequence)]], sequence)
    common = [
        next((i for i, (a, b) in enumerate(zip(c, r, strict=False)) if a != b), min(len(c), len(r))) for c, r in pairs
    ]
    sizes = [len(c) + len(r) - n for (c, r), n in zip(pairs, common, strict=True)]
    assert len(row) == sum(sizes)
    assert branches.sizes.tolist() == sizes
    # position ids: a token stands where it stood in its own sequence
    assert torch.equal(
        (branches.owner % ids.shape[1])[branches.packed[0, : len(pairs[0][0])]], torch.arange(len(pairs[0][0]))
    )


def test_the_example_of_the_docstring():
    ids = torch.tensor([[7, 8, 1, 0], [7, 9, 9, 1]])
    branches = Branches.of(ids, (ids > 0).long())
    assert ids.flatten()[branches.owner].tolist() == [7, 8, 1, 9, 9, 1]
    assert branches.packed.tolist() == [[0, 1, 2, 0], [0, 3, 4, 5]]
    assert branches.owner.tolist() == [0, 1, 2, 5, 6, 7]


HEADS, GROUPS, WIDTH = 6, 2, 8


@pytest.fixture
def layout():
    """Three pairs: an ordinary one, one whose rejected side begins the chosen, one that shares nothing."""
    pairs = [([1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 9, 8, 7, 6, 5, 4]), ([1, 2, 3, 4], [1, 2]), ([1, 2, 3], [2, 3])]
    sequences = [torch.tensor(pair[side]) for side in (0, 1) for pair in pairs]
    ids = nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    return Branches.of(ids, (ids > 0).long())


def states(layout, dtype):
    draw = torch.Generator().manual_seed(0)
    return [
        torch.randn(len(layout.owner), heads, WIDTH, generator=draw).to(dtype).requires_grad_()
        for heads in (HEADS, GROUPS, GROUPS)
    ]


def one_by_one(query, key, value, layout):
    """Each sequence through torch's own attention, laid out in full."""
    result = torch.zeros_like(query)
    for number, (places, length) in enumerate(zip(layout.packed, layout.lengths.tolist(), strict=True)):
        places = places[:length]
        q, k, v = (t[places].transpose(0, 1)[None] for t in (query, key, value))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=True)[0]
        own = torch.ones(length, dtype=torch.bool)
        if number >= len(layout.sizes):  # what is shared is chosen's
            own = torch.arange(length) >= layout.shared[number - len(layout.sizes)]
        result = result.index_put((places[own],), attended.transpose(0, 1)[own])
    return result


@pytest.mark.parametrize(("tile", "kept"), [(256, 512), (256, 0), (2, 5), (1, 512)])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.bfloat16, 0.03)], ids=str)
def test_tiles_give_the_attention_and_the_gradient_of_whole_sequences(layout, dtype, close, tile, kept, monkeypatch):
    monkeypatch.setattr(module, "TILE", tile)
    monkeypatch.setattr(module, "KEPT", kept)
    given, exact = states(layout, dtype), [t.detach().double().requires_grad_() for t in states(layout, dtype)]
    found, expected = attend_by_tiles(*given, layout, 0.3), one_by_one(*exact, layout)
    assert found.dtype == dtype
    slope = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(found, given, slope.to(dtype)), torch.autograd.grad(expected, exact, slope.double())
    for own, truth in zip((found, *gradients[0]), (expected, *gradients[1]), strict=True):
        assert (own.double() - truth).norm() <= close * truth.norm()


def test_probabilities_of_many_keys_are_not_kept(layout, monkeypatch):
    def largest():
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            attend_by_tiles(*states(layout, torch.float32), layout, 0.3)
        return max(t.shape[-1] for t in kept if t.shape[0] == GROUPS)

    assert largest() == 9
    monkeypatch.setattr(module, "KEPT", 5)
    assert largest() == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_another_attention_is_taken_only_if_result_and_gradients_agree(dtype, monkeypatch):
    """This decides on a GPU whether torch's variable-length kernel is used."""

    def scaled(query, key, value, layout, scale):
        return 1.1 * attend_by_tiles(query, key, value, layout, scale)

    def without_keys(query, key, value, layout, scale):
        return attend_by_tiles(query, key.detach(), value, layout, scale) + 0 * key.sum()

    def wrong_result_alone(query, key, value, layout, scale):
        right = attend_by_tiles(query, key, value, layout, scale)
        return right + 0.1 * right.detach()

    with torch.no_grad():  # as it may be called
        assert module.same_attention(reference_attention, attend_by_tiles, torch.device("cpu"), dtype)
        for wrong in (scaled, without_keys, wrong_result_alone):
            assert not module.same_attention(wrong, attend_by_tiles, torch.device("cpu"), dtype)


def reference_attention(query, key, value, layout, scale):
    """`one_by_one` with the default scale of 64 numbers a head."""
    doubled = [t.double() for t in (query * (64**-0.5 / 0.3), key, value)]
    return one_by_one(*doubled, layout).to(query.dtype)
