"""A set of sequences small enough to list: an alphabet of a few symbols, a stop symbol, and a greatest length.

A policy is a table of logits, one row per prefix that can still grow, one column per symbol: every distribution
over the sequences can be written as such a table, so what holds here holds for any policy.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
from torch import Tensor

STOP = "."


@dataclass(frozen=True)
class SequenceWorld:
    """All sequences over `alphabet` that end in a stop symbol, or without one at `length` symbols.

    >>> SequenceWorld("ab", 2).sequences
    ('.', 'a.', 'aa', 'ab', 'b.', 'ba', 'bb')
    """

    alphabet: str
    length: int

    @property
    def symbols(self) -> str:
        """The columns of a table of logits: the alphabet, then the stop symbol."""
        return self.alphabet + STOP

    @cached_property
    def prefixes(self) -> tuple[str, ...]:
        """The rows of a table of logits: everything that can still be continued, the empty prefix first."""
        return tuple("".join(letters) for n in range(self.length) for letters in product(self.alphabet, repeat=n))

    @cached_property
    def sequences(self) -> tuple[str, ...]:
        """Every finished sequence, S of them, in alphabetical order; the stop symbol is written as a full stop."""
        whole = ("".join(letters) for letters in product(self.alphabet, repeat=self.length))
        return tuple(sorted([prefix + STOP for prefix in self.prefixes] + list(whole)))

    @cached_property
    def steps(self) -> tuple[Tensor, Tensor, Tensor]:
        """`(rows, tokens, mask)`, each (S, length): which row of the table is read at each step, and which symbol."""
        rows, tokens, mask = (torch.zeros(len(self.sequences), self.length, dtype=torch.long) for _ in range(3))
        for s, sequence in enumerate(self.sequences):
            for t, symbol in enumerate(sequence):
                rows[s, t], tokens[s, t], mask[s, t] = self.prefixes.index(sequence[:t]), self.symbols.index(symbol), 1
        return rows, tokens, mask

    @property
    def lengths(self) -> Tensor:
        """The number of symbols of each sequence, the stop included: (S,)."""
        return self.steps[2].sum(dim=1)

    def token_logps(self, logits: Tensor) -> Tensor:
        """log pi(y_t | y_<t) of every sequence under a table (P, V) of logits: (S, length), zero after the end."""
        rows, tokens, mask = self.steps
        return torch.log_softmax(logits, dim=-1)[rows, tokens] * mask

    def logps(self, logits: Tensor) -> Tensor:
        """log pi(y), the sum of its token log-probs: (S,). Their exponentials add up to one."""
        return self.token_logps(logits).sum(dim=1)

    def step_logits(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """`(logits, mask)` as a model would return them on all S sequences: (S, length, V) and (S, length)."""
        rows, _, mask = self.steps
        return logits[rows], mask

    def table(self, logps: Tensor) -> Tensor:
        """Logits (P, V) of the policy whose sequence log-probs are `logps` (S,): each row is a marginal's log."""
        rows, tokens, mask = self.steps
        sums = torch.zeros(len(self.prefixes), len(self.symbols), dtype=logps.dtype)
        weights = logps.exp().unsqueeze(1).expand_as(mask)[mask.bool()]
        return sums.index_put((rows[mask.bool()], tokens[mask.bool()]), weights, accumulate=True).log()
