"""VAMP scores of soft states, and losses whose gradient is the same however a batch is cut.

VAMP (Wu and Noe, arXiv 1707.04659; Mardt et al., arXiv 1710.06012) rates k states by how much of the slow dynamics
their best linear propagator keeps. With the centred covariances C00, Ctt of the states at frames t and t + tau and the
cross covariance C0t, the singular values s of K = C00^-1/2 C0t Ctt^-1/2 measure it, each in [0, 1]. The constant
process (the "+ 1" of other libraries) is left out.

Everything follows from one matrix of sums, ``moments``, which adds up over micro-batches and ranks. A score is a
function of the joint covariance C of [x, y], so its gradient by the rows is their centred values times one matrix:

    d score = tr(G dC),   C = Zc' Zc / (R - 1)   =>   d score / dZ = 2 / (R - 1) Zc G

Probabilities sum to one, so C00 and Ctt have a null direction. It is removed exactly, by an orthonormal basis of what
is left; otherwise rounding decides whether an inverse sees it. The matrices have a few hundred numbers and are handled
on the CPU in float64, which autocast never touches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from accel_train.arguments import Range
from accel_train.errors import UserError
from accel_train.tasks.gdynet.choices import EPSILON, LOSSES, MODES

MODE = "trunc"
CONSTANT = 1e-12  # a variance below this part of the mean square is rounding


def moments(x: Tensor, y: Tensor) -> Tensor:
    """Sum over rows of [1, x - 1/k, y - 1/k]' [1, x - 1/k, y - 1/k]: float64 [2k+1, 2k+1], without gradient.

    Around 1/k, so that nothing cancels while the states are still nearly uniform.

    Args:
        x, y: probabilities of the k states at frame t and at t + tau, [R, k], any float dtype; R may be 0.

    Raises:
        UserError: fewer than two states, or shapes that differ.
    """
    rows, k = _checked(x, y)
    z = torch.cat([x.detach(), y.detach()], 1).double() - 1 / k
    z = torch.cat([z.new_ones(rows, 1), z], 1)
    return z.T @ z


@dataclass(frozen=True)
class Covariances:
    """What the scores and losses of a batch, or of a whole data set, follow from; on the CPU, float64.

    rows: R, the number of pairs summed over.
    means: [2, k], mean probabilities of the states at both times.
    joint: [2(k-1), 2(k-1)], unbiased covariance of both times in the ``basis`` of the k-1 free directions; exactly zero
        for outputs that do not vary.
    """

    rows: float
    means: Tensor
    joint: Tensor

    @property
    def blocks(self) -> tuple[Tensor, Tensor, Tensor]:
        """C00, C0t, Ctt, each [k-1, k-1]."""
        return _blocks(self.joint)


def covariances(summed: Tensor) -> Covariances:
    """From ``moments`` summed over everything that belongs together; the one place that waits for the device.

    Raises:
        UserError: fewer than two rows.
    """
    summed = summed.detach().double().cpu()
    rows, k = float(summed[0, 0]), len(summed) // 2
    if rows < 2:
        raise UserError(f"VAMP: a covariance needs at least 2 pairs of frames x targets, this batch has {rows:.0f}")
    mean = summed[0, 1:] / rows
    second = summed[1:, 1:] / rows
    reduce = torch.block_diag(basis(k), basis(k))
    joint = reduce.T @ (second - mean[:, None] * mean) @ reduce * (rows / (rows - 1))
    variances, squares = joint.diagonal().view(2, k - 1).sum(1), second.diagonal().view(2, k).sum(1)
    constant = (variances <= CONSTANT * squares).repeat_interleave(k - 1)
    joint = joint.masked_fill(constant[:, None] | constant, 0.0)
    return Covariances(rows, mean.view(2, k) + 1 / k, (joint + joint.T) / 2)


def basis(k: int) -> Tensor:
    """Orthonormal basis of the directions in which k probabilities can vary: float64 [k, k-1] (Helmert's)."""
    columns = torch.ones(k, k - 1, dtype=torch.float64).triu()
    columns[range(1, k), range(k - 1)] = -torch.arange(1.0, k, dtype=torch.float64)
    return columns / columns.norm(dim=0)


def singular_values(covariances: Covariances, epsilon: float = EPSILON, mode: str = MODE) -> Tensor:
    """Those of K, float64 [k-1], largest first; NaN if the states were not finite. Arguments as for ``scores``."""
    if not covariances.joint.isfinite().all():
        return torch.full((len(covariances.joint) // 2,), math.nan, dtype=torch.float64)
    c00, c0t, ctt = _blocks(_unit_trace(covariances.joint)[0])
    return torch.linalg.svdvals(_Inverse(c00, epsilon, mode).root @ c0t @ _Inverse(ctt, epsilon, mode).root)


def scores(covariances: Covariances, epsilon: float = EPSILON, mode: str = MODE) -> dict[str, float]:
    """VAMP-1, VAMP-2 and VAMP-E of the covariances, NaN if the states were not finite.

    vamp1: sum of s. vamp2: sum of s^2; both at most k-1.
    vampe: tr(2 F0 C0t Ft C0t' - F0 C00 F0 C0t Ft Ctt Ft C0t'), F the inverses: vamp2, but for the bias of
        ``regularize`` and ``clamp``.

    Args:
        epsilon: relative to the mean eigenvalue of each covariance, so that a score does not depend on its scale.
        mode: what the inverse of a covariance does with its eigenvalues l.
            ``trunc`` leaves out those up to epsilon, ``regularize`` adds epsilon to all, ``clamp`` raises those below
            to epsilon.

    Raises:
        UserError: unknown mode, or epsilon not in [1e-14, 1].
    """
    s = singular_values(covariances, epsilon, mode)
    vampe = -_loss(covariances, "vampe", epsilon, mode)[0]
    return {"vamp1": float(s.sum()), "vamp2": float(s.square().sum()), "vampe": vampe}


def loss_share(
    x: Tensor, y: Tensor, covariances: Covariances, loss: str, epsilon: float = EPSILON, mode: str = MODE
) -> Tensor:
    """The part of these rows in the loss of all rows that ``covariances`` was made of: a float64 scalar.

    Shares add up to the global loss, and their gradients by x and y are the rows of its gradient, in closed form.

    Args:
        x, y: [rows, k] as for ``moments``, with gradient; no rows give a zero with a zero gradient.
        loss: ``vamp2``, ``vamp1_true``, ``vampe``: minus that score, with its exact gradient, the dependence of the
            threshold on the data included.
            ``vamp1``: the sharpening gradient of this name in the GDyNet-ferro guide (docs/tasks/gdynet.md). It is
            the gradient of the sum of singular values D of the symmetrised K with its cross term counted twice, which
            pushes the probabilities apart and makes the states crisp. No function has this gradient; the value is
            -sum(D) / (k R) as the guide prints it, nearly zero, and no VAMP-1 score.
        epsilon, mode: as for ``scores``.

    Raises:
        UserError: unknown loss or mode, epsilon out of range, or shapes that do not fit.
    """
    rows, k = _checked(x, y)
    if k != covariances.means.shape[1]:
        raise UserError(f"VAMP: rows of {k} states, but the moments are of {covariances.means.shape[1]}")
    value, slope = _loss(covariances, loss, epsilon, mode)
    expand = torch.block_diag(basis(k), basis(k))
    matrix = 2 / (covariances.rows - 1) * expand @ slope @ expand.T
    z = torch.cat([x, y], 1).double()
    gradient = (z.detach() - covariances.means.view(-1).to(z.device)) @ matrix.to(z.device)
    linear = (z * gradient).sum()  # its gradient is ours; its value is rounding, which a singular covariance magnifies
    return rows / covariances.rows * value + (linear - linear.detach())


# -- the value of a loss and its derivative by the joint covariance ----------------------------------------------------


def _loss(covariances: Covariances, loss: str, epsilon: float, mode: str) -> tuple[float, Tensor]:
    """Global loss, and G [2(k-1), 2(k-1)], symmetric, with d loss = tr(G dC)."""
    if loss not in LOSSES:
        raise UserError(f"VAMP: unknown loss {loss!r}, choose one of {', '.join(LOSSES)}")
    joint = covariances.joint
    if not joint.isfinite().all():  # the loop skips such a step on every rank
        return math.nan, torch.full_like(joint, math.nan)
    if loss == "vamp1":
        total, slope = _sharpening(joint, epsilon, mode)
        return -total / (covariances.rows * covariances.means.shape[1]), -slope
    scaled, scale = _unit_trace(joint)
    value, slope = {"vamp2": _vamp2, "vamp1_true": _vamp1, "vampe": _vampe}[loss](scaled, epsilon, mode)
    # The threshold is a part of the trace. What it adds follows from this: the scale of x or of y changes no score.
    d = len(joint) // 2
    radial = (slope * scaled).sum(1).view(2, d).sum(1) / d
    slope = slope - radial.repeat_interleave(d).diag()
    return -value, -scale[:, None] * slope * scale


def _vamp2(c: Tensor, epsilon: float, mode: str) -> tuple[float, Tensor]:
    c00, c0t, ctt = _blocks(c)
    inverse0, inverse_t = _Inverse(c00, epsilon, mode), _Inverse(ctt, epsilon, mode)
    f0, ft = inverse0.matrix, inverse_t.matrix
    by_f0, by_ft = c0t @ ft @ c0t.T, c0t.T @ f0 @ c0t
    return float((f0 * by_f0).sum()), _joint(inverse0.slope(by_f0), 2 * f0 @ c0t @ ft, inverse_t.slope(by_ft))


def _vampe(c: Tensor, epsilon: float, mode: str) -> tuple[float, Tensor]:
    """2 VAMP-2 minus the same trace of H = F C F in place of F."""
    c00, c0t, ctt = _blocks(c)
    inverse0, inverse_t = _Inverse(c00, epsilon, mode), _Inverse(ctt, epsilon, mode)
    f0, ft = inverse0.matrix, inverse_t.matrix
    h0, ht = f0 @ c00 @ f0, ft @ ctt @ ft
    by_h0, by_ht = c0t @ ht @ c0t.T, c0t.T @ h0 @ c0t
    twice, slope = _vamp2(c, epsilon, mode)
    value, cross = float((h0 * by_h0).sum()), 2 * h0 @ c0t @ ht
    by_c00 = inverse0.slope(c00 @ f0 @ by_h0 + by_h0 @ f0 @ c00) + f0 @ by_h0 @ f0
    by_ctt = inverse_t.slope(ctt @ ft @ by_ht + by_ht @ ft @ ctt) + ft @ by_ht @ ft
    return 2 * twice - value, 2 * slope - _joint(by_c00, cross, by_ctt)


def _vamp1(c: Tensor, epsilon: float, mode: str) -> tuple[float, Tensor]:
    """Sum of the singular values, whose squares are the eigenvalues of F0 C0t Ft C0t'."""
    c00, c0t, ctt = _blocks(c)
    inverse0, inverse_t = _Inverse(c00, epsilon, mode), _Inverse(ctt, epsilon, mode)
    u, s, vh = torch.linalg.svd(inverse0.root @ c0t @ inverse_t.root)
    weight = torch.where(s > 1e-12, 0.5 / s, 0.0)
    left, right = c0t @ inverse_t.root @ vh.T, c0t.T @ inverse0.root @ u
    cross = inverse0.root @ u @ vh @ inverse_t.root
    by_f0, by_ft = left * weight @ left.T, right * weight @ right.T
    return float(s.sum()), _joint(inverse0.slope(by_f0), cross, inverse_t.slope(by_ft))


def _sharpening(c: Tensor, epsilon: float, mode: str) -> tuple[float, Tensor]:
    """Sum of D, and [[N00, N01], [N01, N00]]; the true derivative has N01 / 2."""
    c00, c0t, ctt = _blocks(c)
    mean, cross = (c00 + ctt) / 2, (c0t + c0t.T) / 2
    scale = _scale(mean)
    root = _Inverse(scale * mean, epsilon, mode).root * scale**0.5
    eigenvalues, vectors = torch.linalg.eigh(root @ cross @ root)  # symmetric, so D = |l| and U V' = sign(l)
    w = root @ vectors
    n00, n01 = -0.5 * w * eigenvalues.abs() @ w.T, w * eigenvalues.sign() @ w.T
    return float(eigenvalues.abs().sum()), _joint(n00, 2 * n01, n00)


class _Inverse:
    """The inverse F of a covariance C in one of the modes, its square root, and derivatives by C through F."""

    def __init__(self, c: Tensor, epsilon: float, mode: str) -> None:
        if mode not in MODES:
            raise UserError(f"VAMP: unknown mode {mode!r}, choose one of {', '.join(MODES)}")
        Range(1e-14, 1.0).check("epsilon", epsilon)
        values, self.vectors = torch.linalg.eigh(c)
        if mode == "regularize":
            f = 1 / (values.clamp(min=0) + epsilon)
            self.table = -f[:, None] * f
        else:
            above = values > epsilon
            f = torch.where(above, 1 / values, 0.0 if mode == "trunc" else 1 / epsilon)
            # divided differences of f: -1 / (l_i l_j) between two eigenvalues above, 0 between two below
            self.table = -f[:, None] * f * (above[:, None] & above)
            across = above[:, None] ^ above
            self.table[across] = ((f[:, None] - f) / (values[:, None] - values))[across]
        self.matrix = self.vectors * f @ self.vectors.T
        self.root = self.vectors * f.sqrt() @ self.vectors.T

    def slope(self, by_f: Tensor) -> Tensor:
        """S with tr(by_f dF) = tr(S dC), by the theorem of Daleckii and Krein."""
        return self.vectors @ (self.table * (self.vectors.T @ by_f @ self.vectors)) @ self.vectors.T


def _unit_trace(joint: Tensor) -> tuple[Tensor, Tensor]:
    """The covariance of x and y scaled to a mean eigenvalue of one, and these scales [2(k-1)]; zero stays zero."""
    c00, _, ctt = _blocks(joint)
    scale = joint.new_tensor([_scale(c00) ** 0.5, _scale(ctt) ** 0.5]).repeat_interleave(len(c00))
    return scale[:, None] * joint * scale, scale


def _scale(c: Tensor) -> float:
    trace = float(c.trace())
    return len(c) / trace if trace > 0 else 0.0


def _blocks(joint: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    d = len(joint) // 2
    return joint[:d, :d], joint[:d, d:], joint[d:, d:]


def _joint(by_c00: Tensor, by_c0t: Tensor, by_ctt: Tensor) -> Tensor:
    """The derivative by the joint covariance, in which C0t stands twice."""
    return torch.cat([torch.cat([by_c00, by_c0t / 2], 1), torch.cat([by_c0t.T / 2, by_ctt], 1)])


def _checked(x: Tensor, y: Tensor) -> tuple[int, int]:
    if x.ndim != 2 or x.shape != y.shape or x.shape[1] < 2:
        raise UserError(
            f"VAMP: x and y must be [rows, k] of the same shape with at least 2 states, not {list(x.shape)} and "
            f"{list(y.shape)}"
        )
    return len(x), x.shape[1]
