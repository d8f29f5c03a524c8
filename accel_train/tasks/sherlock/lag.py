"""From neural activity to BOLD: one causal filter over the volumes before and including its own.

y_t = sum_{k=0..L} h_k n_{t-k}. The stimulus is never moved, blurred or stretched: only the encoder's side knows of a
lag, and what is reconstructed stays sharp.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

LagKind = Literal["hrf", "fir"]


def hrf(tr_s: float, lags: int) -> Tensor:
    """What a volume's middle measures of activity that is constant within each TR: float64 [lags + 1], of norm 1.

    h_k is the integral of the response over the TR that lies k TRs before the volume, for the response of Glover
    (NeuroImage 9, 416, 1999) with the usual constants: a gamma density of shape 6/0.9 minus 0.35 times one of shape
    12/0.9, both of scale 0.9 s; its peak is at 5.0 s. Norm 1 means that white activity of variance 1 gives BOLD of
    variance 1.

    Args:
        tr_s: from one volume to the next, s.
        lags: L, TRs.
    """
    k = torch.arange(lags + 1, dtype=torch.float64)
    until = ((k + 0.5) * tr_s).clamp(min=0)
    since = ((k - 0.5) * tr_s).clamp(min=0)
    taps = _area(until) - _area(since)
    return taps / taps.norm()


def _area(t: Tensor, scale: float = 0.9) -> Tensor:
    """The integral of the response from 0 to t, s."""

    def gamma(delay: float) -> Tensor:
        return torch.special.gammainc(torch.full_like(t, delay / scale), t / scale)

    return gamma(6.0) - 0.35 * gamma(12.0)


class Lag(nn.Module):
    """The filter h: fixed and the same for all (``hrf``), or learned for each voxel from there (``fir``).

    Args:
        kind: hrf or fir.
        voxels: V.
        tr_s, lags: as for ``hrf``.
    """

    constant_buffers = True
    taps: Tensor

    def __init__(self, kind: LagKind, voxels: int, tr_s: float, lags: int) -> None:
        super().__init__()
        self.lags, self.per_voxel = lags, kind == "fir"
        taps = hrf(tr_s, lags).to(torch.get_default_dtype())
        if self.per_voxel:
            self.taps = nn.Parameter(taps.repeat(voxels, 1))
        else:
            self.register_buffer("taps", taps)

    def forward(self, n: Tensor) -> Tensor:
        """[B, L + W, V] to [B, W, V]. A filter that is the same for all takes any columns for voxels."""
        width = n.shape[1] - self.lags
        y = n[:, self.lags :] * self.taps[..., 0]
        for k in range(1, self.lags + 1):  # a loop keeps views alone for the backward pass
            y = y + n[:, self.lags - k : self.lags - k + width] * self.taps[..., k]
        return y

    def back(self, y: Tensor) -> Tensor:
        """The matched filter: activity from measured BOLD, n_t ~ sum_k h_k y_{t+k} / |h|^2, [B, W + L, V] to [B, W, V].

        It is the best guess from one event, and blurs what lies closer together than a response lasts.
        """
        width = y.shape[1] - self.lags
        n = sum(y[:, k : k + width] * self.taps[..., k] for k in range(self.lags + 1))
        return n / self.taps.square().sum(-1)
