"""The losses of the guide, under its names and signatures; and what each of them means."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_train.errors import UserError
from accel_train.tasks.sherlock import CombinedAutoEncoderLoss, FMRIMatchingLoss, ReconstructionLoss
from accel_train.tasks.sherlock.losses import code_rows, fmri_rows, over_time_rows, term_rows


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def stimulus(seed):
    return {name: random(4, n, seed=seed + n) for name, n in (("video", 12), ("audio", 6), ("text", 5))}


# -- the guide's -----------------------------------------------------------------------------------------------------


def test_reconstruction_loss_as_in_the_guide():
    made, target = stimulus(1), stimulus(2)
    loss_fn = ReconstructionLoss(video_weight=1.0, audio_weight=2.0, text_weight=0.5)
    loss, terms = loss_fn(
        made["video"], target["video"], made["audio"], target["audio"], made["text"], target["text"]
    )  # fmt: skip
    assert set(terms) == {"video_loss", "audio_loss", "text_loss", "reconstruction_loss"}
    errors = {name: (made[name] - target[name]).square().mean() for name in made}
    for name, error in errors.items():
        torch.testing.assert_close(terms[f"{name}_loss"], error)
    wanted = errors["video"] + 2 * errors["audio"] + 0.5 * errors["text"]
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(terms["reconstruction_loss"], wanted)


@pytest.mark.parametrize("names", [("video_recon", "audio_recon", "text_recon", "predicted_fmri"), None])
def test_combined_loss_as_in_the_guide(names):
    made, target, fmri, measured = stimulus(1), stimulus(2), random(4, 7, seed=3), random(4, 7, seed=4)
    names = names or ("video", "audio", "text", "fmri")
    outputs = dict(zip(names, [made["video"].requires_grad_(), made["audio"], made["text"], fmri], strict=True))
    loss_fn = CombinedAutoEncoderLoss(reconstruction_weight=2.0, fmri_weight=3.0)
    loss, terms = loss_fn(outputs, target["video"], target["audio"], target["text"], measured)
    assert set(terms) == {
        "video_loss", "audio_loss", "text_loss", "reconstruction_loss", "fmri_loss", "total_loss"
    }  # fmt: skip
    torch.testing.assert_close(loss, 2 * terms["reconstruction_loss"] + 3 * (fmri - measured).square().mean())
    torch.testing.assert_close(loss, terms["total_loss"])
    loss.backward()
    assert made["video"].grad is not None
    alone, terms = loss_fn(outputs, target["video"], target["audio"], target["text"])
    assert "fmri_loss" not in terms
    torch.testing.assert_close(alone, 2 * terms["reconstruction_loss"])


def test_correlation_is_pearson_and_cosine_is_not():
    x, y = random(5, 30, seed=1), random(5, 30, seed=2)
    wanted = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(x.numpy(), y.numpy(), strict=True)])
    assert float(FMRIMatchingLoss("correlation")(x, y)) == pytest.approx(wanted, rel=1e-9)
    far = 10 * torch.ones_like(x)
    assert float(FMRIMatchingLoss("correlation")(x + far, y + far)) == pytest.approx(wanted, rel=1e-6)
    assert float(FMRIMatchingLoss("cosine")(x + far, y + far)) < 0.02  # unrelated, and yet nearly parallel
    assert float(FMRIMatchingLoss("mae")(x, y)) == pytest.approx(float((x - y).abs().mean()))
    assert float(FMRIMatchingLoss("mse", "sum")(x, y)) == pytest.approx(float((x - y).square().sum()))
    assert float(FMRIMatchingLoss("cosine", "sum")(x, x)) == pytest.approx(0, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(1e-3, 1e3), offset=st.floats(-10, 10), seed=st.integers(0, 99))
def test_correlation_ignores_scale_and_offset(scale, offset, seed):
    x, y = random(3, 20, seed=seed), random(3, 20, seed=seed + 100)
    one, other = fmri_rows(x, y, "correlation"), fmri_rows(scale * x + offset, y, "correlation")
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


# -- the task's ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss_type", ["mse", "mae", "correlation", "cosine", "temporal_correlation"])
def test_the_training_mean_loses_one_in_every_term(loss_type):
    made = {"fmri": 1e-3 * random(50, 4, 40, seed=1), "text": torch.zeros(50, 4, 30, dtype=torch.float64),
            "tokens": torch.zeros(50, 4, 2, 3, 8, dtype=torch.float64)}  # fmt: skip
    codes = torch.randint(8, (50, 4, 2, 3), generator=torch.Generator().manual_seed(0))
    targets = {"text": random(50, 4, 30, seed=2), "tokens": codes}
    rows = term_rows(made, targets, random(50, 4, 40, seed=3), torch.ones(50, 4, dtype=torch.bool), loss_type)
    assert {name: values.shape for name, values in rows.items()} == dict.fromkeys(("fmri", *targets), (50, 4))
    for name, values in rows.items():
        assert float(values.mean()) == pytest.approx(1, abs=0.05), name


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), scale=st.floats(0.1, 10), missing=st.sets(st.integers(0, 8), max_size=6))
def test_over_time_is_pearson_of_what_was_measured(seed, scale, missing):
    x, y = scale * random(2, 9, 4, seed=seed) + 3, random(2, 9, 4, seed=seed + 100)
    there = torch.ones(2, 9, dtype=torch.bool)
    there[0, list(missing)] = False
    y[~there] = 0  # as data are read
    rows = over_time_rows(x.requires_grad_(), y, there)
    for b in range(2):
        seen = there[b].numpy()
        pairs = zip(x[b].detach().numpy()[seen].T, y[b].numpy()[seen].T, strict=True)
        wanted = 1 - np.mean([np.corrcoef(*pair)[0, 1] for pair in pairs])
        assert rows[b].tolist() == pytest.approx([wanted] * 9, rel=1e-6)
    rows[there].sum().backward()
    assert x.grad is not None and bool((x.grad[~there] == 0).all())


def test_what_never_changes_has_no_correlation_and_a_finite_gradient():
    x, y = torch.full((1, 5, 2), 0.3, requires_grad=True), torch.randn(1, 5, 2)
    for there in (torch.ones(1, 5, dtype=torch.bool), torch.zeros(1, 5, dtype=torch.bool)):
        rows = over_time_rows(x, y, there)
        rows.sum().backward()
        assert rows.tolist() == [pytest.approx([1.0] * 5, abs=1e-2)]
        assert x.grad is not None and bool(x.grad.isfinite().all())


def test_cross_entropy_of_codes():
    logits, codes = random(2, 3, 2, 4, 8), torch.randint(8, (2, 3, 2, 4)).to(torch.int16)
    picked = logits.log_softmax(-1).gather(-1, codes.long()[..., None])[..., 0]
    torch.testing.assert_close(code_rows(logits, codes), -picked.mean((2, 3)) / math.log(8))


# -- mistakes --------------------------------------------------------------------------------------------------------


def call(made=None, **other):
    target = stimulus(2)
    outputs = (stimulus(1) | {"fmri": random(4, 7)}) if made is None else made
    target |= other
    return CombinedAutoEncoderLoss()(outputs, target["video"], target["audio"], target["text"], random(4, 7))


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: FMRIMatchingLoss("pearson"), "'pearson' is none of mse, mae, correlation, cosine"),
        (lambda: FMRIMatchingLoss()(random(4, 7), random(4, 8)), r"fmri: predicted \(4, 7\) and target \(4, 8\)"),
        (lambda: call(audio=torch.zeros(4, 6, dtype=torch.int64)), "audio: the target is int64"),
        (lambda: call(text=random(4, 6)), r"text: predicted \(4, 5\)"),
        (lambda: call({"video": random(4, 12)}), "neither audio_recon nor audio is there, but video"),
    ],
)
def test_a_mistake_is_one_clear_line(mistake, message):
    with pytest.raises(UserError, match=message) as caught:
        mistake()
    assert "\n" not in str(caught.value)
