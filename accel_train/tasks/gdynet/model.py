"""The network of Xie et al. (Nat. Commun. 10, 2667, 2019), and the ferroelectric variant that also sees directions.

Every atom has M neighbours (index -1: none), so plain gathers do; no library of graphs is needed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel_train.tasks.gdynet.choices import ELEMENTS, Norm
from accel_train.tasks.gdynet.norm import make_norm


class Lobe(nn.Module):
    """From one frame to the probabilities of ``state_len`` states for every target atom.

    Args:
        atom_fea_len: features of an atom (f).
        n_conv: convolutions, each with weights of its own.
        state_len: states (k).
        cutoff: end of the Gaussian basis for distances, Angstrom; farther neighbours stay, with features near 0.
        num_gaussians: of that basis, whose centres are equally far from each other (G).
        ferro: whether atoms have directions.
    """

    def __init__(
        self,
        atom_fea_len: int,
        n_conv: int,
        state_len: int,
        cutoff: float,
        num_gaussians: int,
        ferro: bool,
        norm: Norm = "layer",
    ) -> None:
        super().__init__()
        self.basis = GaussianBasis(cutoff, num_gaussians)
        self.embedding = nn.Embedding(ELEMENTS, atom_fea_len)
        self.direction = nn.Linear(3, atom_fea_len) if ferro else None
        self.convs = nn.ModuleList(GraphConv(atom_fea_len, num_gaussians, norm) for _ in range(n_conv))
        self.hidden = nn.Linear(atom_fea_len, atom_fea_len)
        self.out = nn.Linear(atom_fea_len, state_len)
        self.targets_last = norm == "layer"

    def forward(
        self,
        atom_types: Tensor,
        target_index: Tensor,
        neighbours: Tensor,
        distances: Tensor,
        directions: Tensor | None = None,
    ) -> Tensor:
        """Probabilities float [B, n, k].

        Args:
            atom_types: int64 [N], atomic numbers.
            target_index: int64 [n].
            neighbours: int [B, N, M], -1 where there is none.
            distances: float [B, N, M], Angstrom.
            directions: float [B, N, 3] for the ferroelectric variant.
        """
        frames = neighbours.shape[0]
        mask = neighbours >= 0
        neighbours = neighbours.clamp(min=0).long()
        edges = self.basis(distances)
        h = self.embedding(atom_types).expand(frames, -1, -1)
        if self.direction is not None:
            if directions is None:
                raise ValueError("the ferroelectric variant needs directions")
            h = h + self.direction(directions.to(self.direction.weight.dtype))
        for i, conv in enumerate(self.convs):
            rows = None
            if self.targets_last and i == len(self.convs) - 1:  # the others are not asked for
                rows, neighbours, edges, mask = target_index, *(x[:, target_index] for x in (neighbours, edges, mask))
            h = conv(h, neighbours, edges, mask, rows)
        if not (self.targets_last and len(self.convs)):
            h = h[:, target_index]
        with torch.autocast(h.device.type, enabled=False):  # in half precision nearly uniform states would be equal
            h = F.relu(self.hidden(F.relu(h).to(self.hidden.weight.dtype)))
            return F.softmax(self.out(h), dim=-1)


class GaussianBasis(nn.Module):
    """exp(-(d - mu)^2 / (2 Delta^2)) for centres mu from 0 to ``cutoff``, Delta apart."""

    centres: Tensor

    def __init__(self, cutoff: float, number: int) -> None:
        super().__init__()
        self.width = cutoff / (number - 1)
        self.register_buffer("centres", torch.linspace(0, cutoff, number), persistent=False)

    def forward(self, distances: Tensor) -> Tensor:
        """float [...] to [..., G]."""
        return torch.exp(-0.5 * ((distances[..., None].to(self.centres.dtype) - self.centres) / self.width).square())


class GraphConv(nn.Module):
    """h_i + norm(mean over neighbours of alpha_ij ReLU(norm(W z_ij))), z_ij = [h_i; h_j; e_ij], alpha a softmax over
    the neighbours of i of a second linear map of z_ij; then a ReLU.
    """

    def __init__(self, atom_fea_len: int, num_gaussians: int, norm: Norm) -> None:
        super().__init__()
        self.core = nn.Linear(2 * atom_fea_len + num_gaussians, atom_fea_len)
        self.filter = nn.Linear(2 * atom_fea_len + num_gaussians, 1)
        self.norm_edge = make_norm(norm, atom_fea_len)
        self.norm_atom = make_norm(norm, atom_fea_len)
        for linear in (self.core, self.filter):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, h: Tensor, neighbours: Tensor, edges: Tensor, mask: Tensor, rows: Tensor | None = None) -> Tensor:
        """float [B, R, f] for the atoms ``rows`` (int64 [R]; by default all), which ``neighbours``, ``edges`` and
        ``mask`` are about; h is float [B, N, f]."""
        frames, atoms, f = h.shape
        own = h if rows is None else h[:, rows]
        # W z_ij = W_i h_i + W_j h_j + W_e e_ij: two of the three once per atom instead of once per edge.
        weight = torch.cat([self.core.weight, self.filter.weight])
        bias = torch.cat([self.core.bias, self.filter.bias])
        of_own = F.linear(own, weight[:, :f], bias)
        of_others = F.linear(h, weight[:, f : 2 * f])
        first = torch.arange(frames, device=h.device)[:, None, None] * atoms
        z = of_own[:, :, None] + of_others.flatten(0, 1)[neighbours + first] + F.linear(edges, weight[:, 2 * f :])
        alpha = torch.softmax(z[..., -1].masked_fill(~mask, -1e30 if z.dtype != torch.float16 else -6e4), dim=-1)
        core = F.relu(self.norm_edge(z[..., :-1], mask))
        count = mask.sum(-1, keepdim=True).clamp(min=1)
        gathered = ((alpha * mask)[..., None] * core).sum(2) / count
        return F.relu(own + self.norm_atom(gathered))
