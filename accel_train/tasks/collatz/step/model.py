"""A transformer encoder from the digits of a number to those of its long step, a digit of each at every position."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from accel_train.tasks.collatz.model import Block

_SCALE = 0.5
"""Of the first embeddings, of digits and of positions alike: attention has to tell both."""


class DigitTransformer(nn.Module):
    """digits uint8 [B, width], the lowest first -> logits of the result's digits [B, width, base]."""

    def __init__(
        self, base: int, width: int, d_model: int, num_layers: int, nhead: int, dim_feedforward: int, dropout: float
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(base, d_model)
        self.positions = nn.Parameter(_SCALE * torch.randn(width, d_model))
        self.blocks = nn.ModuleList(Block(d_model, nhead, dim_feedforward, dropout) for _ in range(num_layers))
        self.head = nn.Linear(d_model, base)
        nn.init.normal_(self.embedding.weight, std=_SCALE)

    def forward(self, digits: Tensor) -> Tensor:
        x = self.embedding(digits.int()) + self.positions
        everything = torch.ones(1, 1, 1, digits.shape[1], dtype=torch.bool, device=digits.device)
        for block in self.blocks:
            x = block(x, everything)
        return self.head(x)
