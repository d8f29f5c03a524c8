"""A model that has only counted: the next parity from a table of the last tokens, T from how many are odd.

It answers as the transformer does, so the same code judges both, over the same rows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from accel_train.tasks.collatz.trajectory import PAD


class Trivial(nn.Module):
    """tokens uint8 [B, L] -> (log(1 + T) [B], logits of the next parity [B, L, 2]), both fitted on training rows.

    Args:
        tokens: uint8 [N, max_len], of the training rows.
        steps: int32 [N], their T.
        order: tokens that the table sees; the next parity is as frequent as after these in the training rows, each
            counted half a time more (Krichevsky and Trofimov, IEEE Trans. Inf. Theory 27, 199, 1981).
        prefix: log(1 + T) is a quadratic in how many of the first ``prefix`` tokens are odd, by least squares over the
            rows that go on beyond them.
    """

    table: Tensor
    weights: Tensor

    def __init__(self, tokens: Tensor, steps: Tensor, order: int, prefix: int) -> None:
        super().__init__()
        self.order, self.prefix = order, prefix
        target, seen = tokens[:, 1:].long(), self._context(tokens[:, :-1])
        valid = target != PAD
        counts = torch.bincount((2 * seen + target)[valid], minlength=2 * 3**order).view(-1, 2) + 0.5
        keep = steps > prefix
        weights = self._fitted(self._odd(tokens[keep]), steps[keep].double().log1p())
        self.register_buffer("table", (counts.double() / counts.sum(1, keepdim=True)).log())
        self.register_buffer("weights", weights)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        predicted = (_powers(self._odd(tokens), self.prefix) * self.weights).sum(1)
        return predicted, self.table[self._context(tokens)]

    def _context(self, tokens: Tensor) -> Tensor:
        """int64 [B, L]: the last tokens at each position as one number, PAD where there are none yet."""
        padded = functional.pad(tokens.long(), (self.order - 1, 0), value=PAD)
        found = torch.zeros_like(tokens, dtype=torch.int64)
        for i in range(self.order):
            found = 3 * found + padded[:, i : i + tokens.shape[1]]
        return found

    def _odd(self, tokens: Tensor) -> Tensor:
        """int64 [B]: how many of the first ``prefix`` tokens are odd."""
        return (tokens[:, : self.prefix] == 1).sum(1)

    def _fitted(self, odd: Tensor, answers: Tensor) -> Tensor:
        """The quadratic, float64 [3], from sums over the rows of each count: a solver that sees all rows rounds as its
        memory happens to be aligned, and the same run would not give the same digits twice."""
        powers = _powers(torch.arange(self.prefix + 1), self.prefix)
        rows, sums = (torch.bincount(odd, weights, self.prefix + 1) for weights in (None, answers))
        products = powers.T @ (rows.double()[:, None] * powers)
        return torch.linalg.pinv(products, hermitian=True) @ (powers.T @ sums)


def _powers(odd: Tensor, prefix: int) -> Tensor:
    """float64 [B, 3]."""
    share = odd.double() / prefix
    return torch.stack([torch.ones_like(share), share, share * share], dim=1)
