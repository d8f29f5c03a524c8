"""A transformer encoder over parity sequences, with two heads: the next parity, and the total stopping time.

Honest by construction: attention is causal, so position t cannot see token t+1, which it has to predict; and the
stopping time is read from the first ``prefix`` tokens only, which every row it is trained on has in full, so that the
number of tokens says nothing about it. ``bidirectional`` gives the formulation of the guide that this task replaces
(docs/tasks/collatz.md), in which both can be read off.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from accel_train.tasks.collatz.trajectory import PAD


class Block(nn.Module):
    """Post-norm encoder layer (Vaswani et al., 2017). The same function in training and evaluation."""

    def __init__(self, d_model: int, nhead: int, dim_feedforward: int, dropout: float) -> None:
        super().__init__()
        self.nhead, self.dropout = nhead, dropout
        self.in_proj = nn.Linear(d_model, 3 * d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        self.linear1 = nn.Linear(d_model, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, d_model)
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.drop = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.in_proj.weight)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, visible: Tensor | None) -> Tensor:
        """x: [B, L, d]. visible: bool [B, 1, 1, L], which keys may be seen; None for causal attention."""
        b, length, d = x.shape
        q, k, v = self.in_proj(x).reshape(b, length, 3, self.nhead, d // self.nhead).permute(2, 0, 3, 1, 4)
        p = self.dropout if self.training else 0.0
        seen = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=visible, dropout_p=p, is_causal=visible is None
        )
        x = self.norm1(x + self.drop(self.out_proj(seen.transpose(1, 2).reshape(b, length, d))))
        return self.norm2(x + self.drop(self.linear2(self.drop(functional.relu(self.linear1(x))))))


class CollatzTransformer(nn.Module):
    """tokens uint8 [B, L] (0 even, 1 odd, 2 pad) -> (log(1 + T) [B], logits of the next parity [B, L, classes])."""

    def __init__(
        self, d_model: int, num_layers: int, nhead: int, dim_feedforward: int, dropout: float, max_len: int,
        prefix: int, bidirectional: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.prefix, self.bidirectional, self.d_model = prefix, bidirectional, d_model
        self.embedding = nn.Embedding(3, d_model)
        self.register_buffer("positions", _sinusoids(max_len, d_model), persistent=False)
        self.blocks = nn.ModuleList(Block(d_model, nhead, dim_feedforward, dropout) for _ in range(num_layers))
        self.stop_head = nn.Sequential(nn.Linear(d_model, d_model // 2), nn.ReLU(), nn.Linear(d_model // 2, 1))
        # The guide's formulation has a third class, which is never a target and so is never learned.
        self.next_head = nn.Linear(d_model, 3 if bidirectional else 2)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        valid = tokens != PAD
        x = self.embedding(tokens.int()) * math.sqrt(self.d_model) + self.positions[: tokens.shape[1]]  # type: ignore[index]
        # Pads come last, so under a causal mask no valid position ever sees one and no further mask is needed. A row
        # of pads only would have no visible key at all; its first one is left visible, and nothing is made of it.
        visible = None
        if self.bidirectional:
            visible = (valid | (torch.arange(tokens.shape[1], device=tokens.device) == 0))[:, None, None, :]
        for block in self.blocks:
            x = block(x, visible)
        pooled = (
            valid if self.bidirectional else valid & (torch.arange(tokens.shape[1], device=tokens.device) < self.prefix)
        )
        weights = pooled.to(x.dtype).unsqueeze(-1)
        mean = (x * weights).sum(1) / weights.sum(1).clamp(min=1.0)
        return self.stop_head(mean).squeeze(-1), self.next_head(x)


def _sinusoids(length: int, width: int) -> Tensor:
    """[length, width]: sine in even columns, cosine in odd ones, base 10000."""
    angle = torch.arange(length).unsqueeze(1) * torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    table = torch.zeros(length, width)
    table[:, 0::2], table[:, 1::2] = torch.sin(angle), torch.cos(angle[:, : width // 2])
    return table
