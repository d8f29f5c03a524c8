"""VAMP scores against exact chains and other implementations; gradients against autograd, under any cut of a batch."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from accel_train.errors import UserError
from accel_train.tasks.gdynet.choices import LOSSES, MODES
from accel_train.tasks.gdynet.vamp import (
    Covariances,
    basis,
    covariances,
    loss_share,
    moments,
    scores,
    singular_values,
)


def states(rows: int, k: int, seed: int = 0, noise: float = 0.5, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Correlated probabilities at two times; ``scale`` of the logits: small means nearly uniform."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(rows, k, generator=generator, dtype=torch.float64)
    second = first.roll(1, 1) * 0.3 + first + noise * torch.randn(rows, k, generator=generator, dtype=torch.float64)
    return (scale * first).softmax(1), (scale * second + 0.2 * scale * torch.arange(k)).softmax(1)


def share_and_gradient(x, y, whole, loss, **options) -> tuple[float, Tensor]:
    """Value of a share, and its gradient by [x, y]."""
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    share = loss_share(x, y, whole, loss, **options)
    share.backward()
    return share.item(), torch.cat([x.grad, y.grad], 1)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    assert (found - expected).norm() <= tolerance * expected.norm(), float((found - expected).norm() / expected.norm())


# -- plainly written references, differentiated by autograd ------------------------------------------------------------


def centred(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Covariances without the last state, which spans the same functions."""
    x, y = (a[:, :-1] - a[:, :-1].mean(0) for a in (x, y))
    return x.T @ x / (len(x) - 1), x.T @ y / (len(x) - 1), y.T @ y / (len(x) - 1)


def reference(x: Tensor, y: Tensor, loss: str) -> Tensor:
    c00, c0t, ctt = centred(x, y)
    if loss == "vampe":
        f0, ft = c00.inverse(), ctt.inverse()
        k0, kt = f0 @ c0t, ft @ c0t.T  # the Koopman matrices forwards and backwards
        return -(2 * (k0 @ kt).trace() - (f0 @ c00 @ k0 @ ft @ ctt @ kt).trace())
    low0, low_t = torch.linalg.cholesky(c00), torch.linalg.cholesky(ctt)
    half = torch.linalg.solve_triangular(low0, c0t, upper=False)
    k = torch.linalg.solve_triangular(low_t, half.T, upper=False).T
    return -k.square().sum() if loss == "vamp2" else -torch.linalg.matrix_norm(k, "nuc")


def reference_with_mode(x: Tensor, y: Tensor, loss: str, epsilon: float, mode: str) -> Tensor:
    """Through the backward of eigh, in another basis of the complement of ones."""
    k = x.shape[1]
    q = torch.linalg.qr(torch.cat([torch.ones(k, 1), torch.eye(k)[:, :-1]], 1).double())[0][:, 1:]
    x, y = ((a - a.mean(0)) @ q for a in (x, y))

    def root(c: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(c)
        threshold = epsilon * c.trace() / (k - 1)
        if mode == "trunc":
            kept = values > threshold
            values, vectors = values[kept], vectors[:, kept]
        values = (
            values + threshold if mode == "regularize" else values.clamp(min=0).maximum(threshold * (mode == "clamp"))
        )
        return vectors / values.sqrt() @ vectors.T

    c00, c0t, ctt = x.T @ x / (len(x) - 1), x.T @ y / (len(x) - 1), y.T @ y / (len(x) - 1)
    w0, wt = root(c00), root(ctt)
    whitened = w0 @ c0t @ wt
    if loss == "vampe":
        return -(2 * whitened.square().sum() - (whitened.T @ w0 @ c00 @ w0 @ whitened @ wt @ ctt @ wt).trace())
    return -whitened.square().sum() if loss == "vamp2" else -torch.linalg.svdvals(whitened).sum()


def gradient_of(function, x: Tensor, y: Tensor) -> tuple[float, Tensor]:
    """Among probabilities: without its part along ones, which is a matter of how the null direction was removed."""
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    value = function(x, y)
    return value.item(), torch.cat([g - g.mean(1, keepdim=True) for g in torch.autograd.grad(value, (x, y))], 1)


@pytest.mark.parametrize("loss", ["vamp2", "vamp1_true", "vampe"])
@pytest.mark.parametrize("k", [2, 3, 6])
def test_the_closed_form_is_the_gradient(loss, k):
    x, y = states(200, k, seed=k)
    value, gradient = share_and_gradient(x, y, covariances(moments(x, y)), loss, epsilon=1e-10)
    expected, by_autograd = gradient_of(lambda x, y: reference(x, y, loss), x, y)
    assert value == pytest.approx(expected, rel=1e-12)
    close(gradient, by_autograd)


@pytest.mark.parametrize("loss", ["vamp2", "vamp1_true", "vampe"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("epsilon", [1e-3, 0.5, 0.9])
def test_and_with_a_mode_that_bites(loss, mode, epsilon):
    x, y = states(300, 5, seed=3)
    value, gradient = share_and_gradient(x, y, covariances(moments(x, y)), loss, epsilon=epsilon, mode=mode)
    expected, by_autograd = gradient_of(lambda x, y: reference_with_mode(x, y, loss, epsilon, mode), x, y)
    assert value == pytest.approx(expected, rel=1e-11)
    close(gradient, by_autograd, 1e-10)


# -- the guide's sharpening gradient -----------------------------------------------------------------------------------


def sharpening(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Its two parts and D, with all k states: the null eigenvalue is left out."""
    rows = len(x)
    x, y = x - x.mean(0), y - y.mean(0)
    a, s = (x.T @ x + y.T @ y) / 2 / (rows - 1), (x.T @ y + y.T @ x) / 2 / (rows - 1)
    values, vectors = np.linalg.eigh(a)
    vectors, values = vectors[:, 1:], values[1:]
    w = vectors / np.sqrt(values) @ vectors.T
    u, d, vt = np.linalg.svd(w @ s @ w)
    u, d, vt = u[:, :-1], d[:-1], vt[:-1]
    n01, n00 = w @ u @ vt @ w, -0.5 * w @ (u * d) @ u.T @ w
    return -2 / (rows - 1) * (x @ n00 + y @ n01.T), -2 / (rows - 1) * (y @ n00 + x @ n01.T), d


@pytest.mark.parametrize("k", [2, 4, 7])
def test_vamp1_is_the_gradient_of_the_guide(k):
    x, y = states(500, k, seed=k)
    value, gradient = share_and_gradient(x, y, covariances(moments(x, y)), "vamp1", epsilon=1e-10)
    by_x, by_y, d = sharpening(x.numpy(), y.numpy())
    close(gradient, torch.from_numpy(np.concatenate([by_x, by_y], 1)))
    parts = ((x - x.mean(0)) * gradient[:, :k], (y - y.mean(0)) * gradient[:, k:])
    assert value == pytest.approx(-d.sum() / (k * 500), rel=1e-12)
    assert value == pytest.approx(float(torch.cat(parts).mean()), rel=1e-12)
    assert -float(parts[0].sum() + parts[1].sum()) == pytest.approx(2 * d.sum(), rel=1e-12)  # the radial part

    # handed to the centred outputs, as in the guide, it reaches the rows unchanged
    rows = x.clone().requires_grad_()
    (rows - rows.mean(0)).backward(gradient=torch.from_numpy(by_x))
    close(gradient[:, :k], rows.grad)


def test_vamp1_is_not_the_gradient_of_a_score():
    """y counts twice against the true y - s x: their cosine falls with s, and is 0.74 to 0.71 for s of 0.88 to 0.89."""

    def symmetrised(x: Tensor, y: Tensor) -> Tensor:
        c00, c0t, ctt = centred(x, y)
        inverse = torch.linalg.inv(torch.linalg.cholesky((c00 + ctt) / 2))
        return -torch.linalg.matrix_norm(inverse @ (c0t + c0t.T) @ inverse.T / 2, "nuc")

    for noise in (0.1, 0.5, 2.0):
        x, y = states(400, 2, noise=noise)
        x, y = torch.cat([x, y]), torch.cat([y, x])
        known = share_and_gradient(x, y, covariances(moments(x, y)), "vamp1")[1]
        value, true = gradient_of(symmetrised, x, y)
        cosine = float((known * true).sum() / known.norm() / true.norm())
        assert cosine == pytest.approx(2 * math.sqrt((1 - value**2) / (4 - 3 * value**2)), rel=1e-9)
        assert abs(float((torch.cat([x, y], 1) * true).sum())) < 1e-12  # no radial part
        assert float((torch.cat([x, y], 1) * known).sum()) == pytest.approx(2 * value, rel=1e-9)


@pytest.mark.parametrize(("loss", "crisp"), [("vamp1", True), ("vamp1_true", False), ("vamp2", False)])
def test_only_vamp1_makes_states_crisp(loss, crisp):
    """Soft states that separate the true ones already have the best score, so no score makes them crisp."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(3, (2000,), generator=generator)
    second = torch.where(torch.rand(2000, generator=generator) < 0.8, first, (first + 1) % 3)
    logits = (0.5 * torch.eye(3, dtype=torch.float64)).requires_grad_()
    adam = torch.optim.Adam([logits], lr=0.05)
    for _ in range(100):
        x, y = logits.softmax(1)[first], logits.softmax(1)[second]
        loss_share(x, y, covariances(moments(x, y)), loss).backward()
        adam.step()
        adam.zero_grad()
    purest = logits.detach().softmax(1).amax(1).mean().item()
    assert purest > 0.95 if crisp else purest < 0.7, purest


# -- any cut of the batch ----------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(2, 60),
    k=st.integers(2, 6),
    seed=st.integers(0, 1000),
    loss=st.sampled_from(LOSSES),
    mode=st.sampled_from(MODES),
    cuts=st.lists(st.integers(0, 60), max_size=6),
)
def test_shares_of_any_cut_add_up_to_the_whole(rows, k, seed, loss, mode, cuts):
    x, y = states(rows, k, seed)
    edges = [0, *sorted(min(cut, rows) for cut in cuts), rows]  # equal ones: parts without rows
    parts = [(x[a:b], y[a:b]) for a, b in itertools.pairwise(edges)]
    options = {"epsilon": 0.01, "mode": mode}
    whole = covariances(moments(x, y))
    value, gradient = share_and_gradient(x, y, whole, loss, **options)

    pieces = [share_and_gradient(*part, whole, loss, **options) for part in parts]
    assert sum(piece[0] for piece in pieces) == pytest.approx(value, rel=1e-12)
    close(torch.cat([piece[1] for piece in pieces]), gradient)

    summed = sum((moments(*part) for part in parts), torch.zeros(1, dtype=torch.float64))
    close(summed, moments(x, y))
    again = covariances(summed)
    close(again.joint, whole.joint)
    assert scores(again, **options)["vamp2"] == pytest.approx(scores(whole, **options)["vamp2"], rel=1e-9)


def test_means_and_covariances_are_those_of_the_rows():
    x, y = states(50, 4)
    found = covariances(moments(x, y))
    z = torch.cat([x @ basis(4), y @ basis(4)], 1)
    assert found.rows == 50
    close(found.means, torch.stack([x.mean(0), y.mean(0)]), 1e-14)
    close(found.joint, torch.cov(z.T), 1e-13)
    close(basis(4).T @ basis(4), torch.eye(3, dtype=torch.float64), 1e-15)
    assert basis(4).sum(0).abs().max() < 1e-15


def test_a_gradient_has_no_mean_and_stays_among_probabilities():
    x, y = states(100, 4)
    for loss in LOSSES:
        gradient = share_and_gradient(x, y, covariances(moments(x, y)), loss)[1]
        assert gradient.sum(0).abs().max() < 1e-13
        assert gradient.view(100, 2, 4).sum(2).abs().max() < 1e-13


# -- known values ------------------------------------------------------------------------------------------------------


def of_chain(transition: np.ndarray, stationary: np.ndarray, lag: int) -> Covariances:
    """Exact covariances of one-hot states: every pair of states counted with its probability."""
    n = len(stationary)
    joint = torch.from_numpy(stationary[:, None] * np.linalg.matrix_power(transition, lag)).reshape(-1)
    one_hot = torch.eye(n, dtype=torch.float64) - 1 / n
    pairs = torch.cat([one_hot.repeat_interleave(n, 0), one_hot.repeat(n, 1)], 1)
    rows = torch.cat([pairs.new_ones(n * n, 1), pairs], 1)
    return covariances(1e6 * (rows.T * joint) @ rows)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 7), lag=st.integers(1, 10), seed=st.integers(0, 1000), mode=st.sampled_from(MODES))
def test_a_reversible_chain_scores_the_powers_of_its_eigenvalues(n, lag, seed, mode):
    rng = np.random.default_rng(seed)
    flows = rng.random((n, n)) + n * np.diag(rng.random(n))
    flows = flows + flows.T
    transition, stationary = flows / flows.sum(1, keepdims=True), flows.sum(1) / flows.sum()
    eigenvalues = np.sort(np.abs(np.linalg.eigvals(transition).real))[-2::-1] ** lag
    chain = of_chain(transition, stationary, lag)
    found = scores(chain, 1e-13, mode)
    assert found["vamp1"] == pytest.approx(eigenvalues.sum(), abs=1e-10)
    assert found["vamp2"] == pytest.approx((eigenvalues**2).sum(), abs=1e-10)
    assert found["vampe"] == pytest.approx((eigenvalues**2).sum(), abs=1e-10)
    np.testing.assert_allclose(singular_values(chain, 1e-13, mode), eigenvalues, atol=1e-10)


def test_the_ceilings_of_the_caged_ferro_system():
    q, p = 0.01, 0.01
    transition = np.array([[1 - q, q, 0], [p, 1 - 2 * p, p], [0, q, 1 - q]])
    for lag, vamp1, vamp2 in ((1, 1.960, 1.921), (10, 1.642, 1.3617)):
        found = scores(of_chain(transition, np.full(3, 1 / 3), lag))
        assert found["vamp1"] == pytest.approx(vamp1, abs=6e-4)
        assert found["vamp2"] == pytest.approx(vamp2, abs=6e-4)


def test_independent_states_score_the_known_bias():
    """(k-1)^2 / (R-1), exact for Gaussian states (Pillai's trace)."""
    for k, rows in ((5, 16), (5, 64), (3, 32)):
        found = []
        for seed in range(300):
            x, y = torch.randn(2, rows, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            found.append(scores(covariances(moments(x, y)))["vamp2"])
        assert abs(np.mean(found) - (k - 1) ** 2 / (rows - 1)) < 4 * np.std(found) / math.sqrt(len(found))


# -- invariances -------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(k=st.integers(2, 6), seed=st.integers(0, 1000))
def test_scores_do_not_change_when_states_are_mixed(k, seed):
    x, y = states(100, k, seed)
    generator = torch.Generator().manual_seed(seed)
    mix = torch.eye(k) + torch.rand(2, k, k, generator=generator, dtype=torch.float64) / k
    mix = mix / mix.sum(2, keepdim=True)  # strictly diagonally dominant, so invertible; rows still sum to one
    before = scores(covariances(moments(x, y)), 1e-12)
    after = scores(covariances(moments(x @ mix[0], y @ mix[1])), 1e-12)
    assert after == pytest.approx(before, rel=1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_scores_do_not_change_with_the_scale_of_the_states(mode):
    x, y = states(100, 4)
    found = scores(covariances(moments(x, y)), 0.5, mode)
    scaled = scores(covariances(moments(0.25 + 1e-4 * (x - 0.25), 0.25 + 1e-3 * (y - 0.25))), 0.5, mode)
    assert scaled == pytest.approx(found, rel=1e-9)


def test_what_the_modes_do_with_small_eigenvalues():
    """On directions that do not mix: s_i as it is, not at all, or made smaller."""
    variances, s = torch.tensor([1.96, 0.04], dtype=torch.float64), torch.tensor([0.5, 0.9], dtype=torch.float64)
    c00, c0t = variances.diag(), (variances * s).diag()
    known = Covariances(
        1000.0, torch.full((2, 3), 1 / 3), torch.cat([torch.cat([c00, c0t], 1), torch.cat([c0t, c00], 1)])
    )
    for mode, weights in {
        "trunc": torch.tensor([1.0, 0.0]),
        "regularize": variances / (variances + 0.1),
        "clamp": torch.tensor([1.0, 0.04 / 0.1]),
    }.items():
        expected = weights * s
        assert scores(known, 0.1, mode)["vamp1"] == pytest.approx(float(expected.sum()), rel=1e-7)
        assert scores(known, 0.1, mode)["vamp2"] == pytest.approx(float(expected.square().sum()), rel=1e-7)
        assert scores(known, 0.01, "trunc") == pytest.approx(scores(known, 0.01, "clamp"), rel=1e-12)


# -- precision ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1e-3])
@pytest.mark.parametrize("mode", MODES)
def test_float32_outputs_are_enough_even_if_nearly_uniform(scale, mode):
    x, y = states(512, 5, scale=scale)
    tolerance = 1e-6 if scale == 1.0 else 1e-3  # the outputs themselves are rounded: 1e-8 of a spread of 1e-4
    exact, rounded = covariances(moments(x, y)), covariances(moments(x.float(), y.float()))
    assert scores(rounded, mode=mode) == pytest.approx(scores(exact, mode=mode), rel=tolerance)
    for loss in LOSSES:
        _, expected = share_and_gradient(x, y, exact, loss, mode=mode)
        _, found = share_and_gradient(x.float(), y.float(), rounded, loss, mode=mode)
        assert found.dtype == torch.float32
        close(found.double(), expected, 10 * tolerance)


def test_nothing_cancels_while_states_are_nearly_uniform():
    directions = torch.randn(2, 400, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = scores(covariances(moments(*(d @ basis(4).T for d in directions))))
    x, y = (0.25 + 1e-9 * d @ basis(4).T for d in directions)
    assert scores(covariances(moments(x, y))) == pytest.approx(expected, rel=1e-5)  # the inputs have 7 digits


def test_autocast_changes_nothing():
    x, y = (a.float() for a in states(64, 4))
    whole = covariances(moments(x, y))
    value, gradient = share_and_gradient(x, y, whole, "vamp2")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(moments(x, y), moments(x, y).double())
        inside, by_rows = share_and_gradient(x, y, covariances(moments(x, y)), "vamp2")
    assert inside == value
    assert torch.equal(by_rows, gradient)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same():
    x, y = states(500, 5)
    on_gpu = covariances(moments(x.cuda(), y.cuda()))
    close(on_gpu.joint, covariances(moments(x, y)).joint)
    for loss in LOSSES:
        value, gradient = share_and_gradient(x[:100], y[:100], on_gpu, loss)
        with torch.autocast("cuda", dtype=torch.float16):
            found, by_rows = share_and_gradient(x[:100].cuda(), y[:100].cuda(), on_gpu, loss)
        assert found == pytest.approx(value, rel=1e-12)
        close(by_rows.cpu(), gradient)


# -- the edges ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [2, 3, 10])
def test_constant_states_score_nothing_and_have_no_gradient(mode, dtype, k):
    varying, _ = states(40, k)
    for logits in (torch.zeros(k), torch.arange(k) / 3):
        constant = logits.to(dtype).softmax(0).expand(40, k)
        for loss in LOSSES:
            value, gradient = share_and_gradient(
                constant, constant, covariances(moments(constant, constant)), loss, mode=mode
            )
            assert value == 0
            assert not gradient.any()
            value, gradient = share_and_gradient(
                varying, constant.double(), covariances(moments(varying, constant)), loss, mode=mode
            )
            assert math.isfinite(value)
            assert gradient.isfinite().all()
        half = covariances(moments(varying, constant))
        assert not half.blocks[1].any() and not half.blocks[2].any()
        assert scores(half, mode=mode) == {"vamp1": 0, "vamp2": 0, "vampe": 0}


@pytest.mark.parametrize("mode", MODES)
def test_an_unused_state_changes_nothing(mode):
    x, y = states(200, 3)
    unused = torch.zeros(200, 1, dtype=torch.float64)
    wider = covariances(moments(torch.cat([x, unused], 1), torch.cat([y, unused], 1)))
    assert scores(wider, 1e-10, mode)["vamp2"] == pytest.approx(scores(covariances(moments(x, y)))["vamp2"], rel=1e-7)


def test_no_rows_add_nothing():
    x, y = states(20, 3)
    empty = torch.zeros(0, 3)
    whole = covariances(moments(x, y) + moments(empty, empty))
    value, gradient = share_and_gradient(empty, empty, whole, "vamp2")
    assert value == 0
    assert gradient.shape == (0, 6)


def test_states_that_are_not_finite_give_nan_for_the_loop_to_skip():
    x, y = states(20, 3)
    broken = x.clone()
    broken[3, 1] = math.nan
    whole = covariances(moments(broken, y))
    assert all(math.isnan(score) for score in scores(whole).values())
    for loss in LOSSES:
        assert math.isnan(share_and_gradient(x[:5], y[:5], whole, loss)[0])


def test_bad_arguments_are_refused():
    x, y = states(20, 3)
    whole = covariances(moments(x, y))
    for message, call in {
        "at least 2 pairs": lambda: covariances(moments(x[:1], y[:1])),
        "at least 2 states": lambda: moments(x[:, :1], y[:, :1]),
        "same shape": lambda: moments(x, y[:5]),
        "rows of 2 states": lambda: loss_share(x[:, :2], y[:, :2], whole, "vamp2"),
        "unknown loss 'vamp3'": lambda: loss_share(x, y, whole, "vamp3"),
        "unknown mode 'cut'": lambda: scores(whole, mode="cut"),
        "epsilon": lambda: scores(whole, epsilon=0.0),
    }.items():
        with pytest.raises(UserError, match=message):
            call()


# -- another library ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("epsilon", [1e-9, 0.03])
def test_deeptime_gives_the_same_scores(mode, epsilon):
    """Its threshold is absolute, so both times get the same covariance; its VAMP-E also drops s below the threshold."""
    deep = pytest.importorskip("deeptime.decomposition.deep")
    x, y = states(300, 4, noise=0.2)
    x, y = torch.cat([x, y]), torch.cat([y, x])
    whole = covariances(moments(x, y))
    relative = epsilon * 3 / float(whole.blocks[0].trace())
    assert float(singular_values(whole, relative, mode)[-1]) > epsilon
    for method, found in scores(whole, relative, mode).items():
        theirs = float(deep.vamp_score(x, y, method=method.upper(), epsilon=epsilon, mode=mode)) - 1
        assert found == pytest.approx(theirs, abs=1e-6)
