"""The network is the published one, sees no future, and gives the same in each of its forms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from accel_train.errors import UserError
from accel_train.tasks.tcn.architecture import NORMS
from accel_train.tasks.tcn.model import DENSE_FROM, TCN, CausalConv1d, dense_conv1d

SMALL = dict(channels=3, levels=3, nhid=5, kernel_size=4, nrecept_target=200, dropout=0.0)
"""Dilations 1, 6, 27: 205 steps, in both forms of the convolution."""


def network(seed=0, dtype=torch.float64, **options):
    """With biases, norms and statistics that are not those of the beginning."""
    torch.manual_seed(seed)
    model = TCN(**SMALL | options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.set_statistics(torch.randn(model.channels), torch.rand(model.channels) + 0.5)
    return model.to(dtype)


def record(steps, shots=2, seed=1, dtype=torch.float64):
    return torch.randn(shots, 3, steps, dtype=dtype, generator=torch.Generator().manual_seed(seed))


# -- what it is ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "count"),
    [({}, 878_241), ({"norm": "none"}, 877_601), ({"norm": "channel"}, 878_881), ({"channels": 1}, 674_721)],
)
def test_sizes_of_the_guide(options, count):
    model = TCN(**options)
    assert sum(p.numel() for p in model.parameters()) == count
    assert model.receptive_field == 30_017 and model.dilations == [1, 10, 100, 961]


def test_names_of_the_weights():
    """Runs and exported files depend on them; neither form of the convolution nor checkpointing changes them."""
    names = set(TCN(checkpointing=True).state_dict())
    convolutions = {f"blocks.{i}.conv{j}.{name}" for i in range(4) for j in (1, 2) for name in ("g", "v", "bias")}
    assert names == convolutions | {
        "blocks.0.skip.weight",
        "blocks.0.skip.bias",
        "out.weight",
        "out.bias",
        "mean",
        "std",
    }
    plain = {name.replace(".v", ".weight") for name in names if not name.endswith(".g")}
    assert set(TCN(norm="none").state_dict()) == plain


def test_the_beginning_is_that_of_torch():
    torch.manual_seed(0)
    conv, plain = CausalConv1d(160, 80, 15, 1, True), CausalConv1d(160, 80, 15, 1, False)
    assert float(conv.v.detach().std()) == pytest.approx(0.0118, abs=1e-4)
    torch.testing.assert_close(conv.kernel(), conv.v)
    assert float(plain.weight.detach().std()) == pytest.approx(0.0118, abs=1e-4)


class Published(nn.Module):
    """As the guide describes it: zeros on both sides of every convolution, then the last steps dropped."""

    def __init__(self, model):
        super().__init__()
        self.blocks, self.out = model.blocks, model.out

    def forward(self, x):
        for block in self.blocks:
            h = x
            for conv in (block.conv1, block.conv2):
                outputs, inputs, k = conv.kernel().shape
                theirs = nn.Conv1d(inputs, outputs, k, padding=conv.reach, dilation=conv.dilation).to(x.dtype)
                if conv.weight_norm:
                    theirs = weight_norm(theirs)
                    theirs.parametrizations.weight.original0, theirs.parametrizations.weight.original1 = conv.g, conv.v
                else:
                    theirs.weight = conv.weight
                theirs.bias = conv.bias
                h = F.relu(theirs(h)[..., : -conv.reach])
            x = F.relu(h + block.skip(x))
        return self.out(x).squeeze(1)


@pytest.mark.parametrize("norm", ["weight", "none"])
def test_it_is_the_published_network(norm):
    model, x = network(norm=norm), record(300)
    expected = Published(model)(model.standardise(x))
    torch.testing.assert_close(model.forward_all(x), expected)
    torch.testing.assert_close(model(x), expected[:, model.receptive_field - 1 :])


def test_norms_that_see_the_future_are_refused():
    for norm in ("instance", "layer", "batch"):
        with pytest.raises(UserError, match=f"norm '{norm}' is none of weight, channel, none"):
            TCN(norm=norm)


def test_every_parameter_learns():
    for norm in NORMS:
        model = network(norm=norm)
        model(record(300)).square().sum().backward()
        assert all(float(p.grad.abs().max()) > 1e-9 for p in model.parameters())


# -- causality -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("form", ["forward", "forward_all"])
def test_future_edits_never_change_past_outputs(form, norm, dropout, checkpointing):
    model, x = network(norm=norm, dropout=dropout, checkpointing=checkpointing), record(300)
    edited = x.clone()
    edited[..., 260:] += 100
    outputs = []
    for signals in (x, edited):
        torch.manual_seed(3)
        outputs.append(getattr(model, form)(signals).detach())
    before = outputs[0].shape[1] - 40
    torch.testing.assert_close(outputs[0][:, :before], outputs[1][:, :before], rtol=1e-12, atol=1e-12)
    assert not torch.isclose(outputs[0][:, before:], outputs[1][:, before:]).all()


@pytest.mark.parametrize("channels", [1, 2])
def test_an_output_sees_its_receptive_field(channels):
    """Exactly 30,017 steps, all of them, its own the last; with weights that let everything through."""
    model = TCN(channels=channels, nhid=2, dropout=0.0).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    x = torch.rand(1, channels, 30_100, dtype=torch.float64, requires_grad=True)
    logits = model(x)
    assert logits.shape == (1, 30_100 - 30_017 + 1)
    logits[0, 50].backward()
    assert (x.grad[0].abs().amin(0) > 0).nonzero().flatten().tolist() == list(range(50, 50 + 30_017))


# -- two forms of one convolution ------------------------------------------------------------------------------------


@given(
    kernel_size=st.integers(2, 6), dilation=st.integers(1, 40), extra=st.integers(1, 130), shots=st.integers(1, 3),
    seed=st.integers(0, 1000), bias=st.booleans(),
)  # fmt: skip
@settings(deadline=None)
def test_the_dense_form_is_the_convolution(kernel_size, dilation, extra, shots, seed, bias):
    """Outputs and gradients of any length, to 1e-5 of the largest in single precision."""
    draw = torch.Generator().manual_seed(seed)
    shape = (shots, 3, (kernel_size - 1) * dilation + extra)
    tensors = [torch.randn(size, generator=draw) for size in (shape, (4, 3, kernel_size), (4,))]
    results = []
    for form in (dense_conv1d, lambda x, w, b, d: F.conv1d(x, w, b, dilation=d)):
        x, kernel, b = (tensor.clone().requires_grad_() for tensor in tensors)
        out = form(x, kernel, b if bias else None, dilation)
        assert out.shape == (shots, 4, extra)
        out.sin().sum().backward()
        results.append([out.detach(), x.grad, kernel.grad, *([b.grad] if bias else [])])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5 * max(1, float(theirs.abs().max())))


def test_a_rule_chooses_the_form(monkeypatch):
    """By the dilation alone."""
    columns = []
    monkeypatch.setattr(F, "conv2d", lambda x, *_: columns.append(x.shape[-1]) or x)
    for dilation in (1, DENSE_FROM - 1, DENSE_FROM, 50):
        CausalConv1d(2, 2, 3, dilation, True)(torch.zeros(1, 2, 10 * dilation + 1))
    assert columns == [DENSE_FROM, 50]


# -- what goes in ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int16, torch.float16, torch.float32])
def test_stored_signals_become_physical(dtype):
    model = network(dtype=torch.float32)
    draw = torch.Generator().manual_seed(0)
    stored = (100 * torch.randn(2, 3, 210, generator=draw)).to(dtype)
    scale, offset = torch.rand(2, 3, generator=draw) / 50, torch.randn(2, 3, generator=draw)
    physical = stored.double() * scale[:, :, None] + offset[:, :, None]
    expected = (physical - model.mean[:, None]) / model.std[:, None]
    torch.testing.assert_close(model.standardise(stored, scale, offset).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(stored, scale, offset), model(physical.float()), rtol=1e-4, atol=1e-5)
    assert model(stored).dtype == torch.float32


def test_what_does_not_fit_is_said():
    model = network()
    with pytest.raises(UserError, match="4 channels in the data, and 3 in the model"):
        model(torch.zeros(1, 4, 300))
    with pytest.raises(UserError, match="windows of 204 steps are shorter than the receptive field of 205"):
        model(torch.zeros(1, 3, 204))
    with pytest.raises(UserError, match="statistics of 2 channels for a model of 3"):
        model.set_statistics(torch.zeros(2), torch.ones(2))
    for mean, std in ((float("nan"), 1.0), (0.0, float("inf")), (0.0, -1.0)):
        with pytest.raises(UserError, match="must be finite"):
            model.set_statistics(torch.full((3,), mean), torch.full((3,), std))


def test_a_dead_channel_is_only_centred():
    model = network()
    model.set_statistics(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 0.0, 4.0]))
    assert model.standardise(torch.full((1, 3, 1), 5.0)).flatten().tolist() == [2.0, 3.0, 0.5]


# -- how it is computed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
def test_checkpointing_changes_no_gradient(norm):
    gradients = []
    for checkpointing in (False, True):
        model = network(norm=norm, dropout=0.2, checkpointing=checkpointing)
        torch.manual_seed(5)
        model(record(260)).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("options", "lengths"),
    [
        ({"checkpointing": True, "levels": 2, "kernel_size": 5, "nrecept_target": 73}, (100,)),
        pytest.param({"checkpointing": False}, (240, 257, 300), marks=pytest.mark.slow),
    ],
)
def test_compiled_it_is_the_same(options, lengths):
    """Outputs and gradients, for windows of one length and of several."""
    model, copy = (network(**options) for _ in range(2))
    assert model.dilations[-1] >= DENSE_FROM, "both forms of the convolution"
    copy.compile(backend="aot_eager")
    for steps in lengths:
        logits, theirs = (network(record(steps)) for network in (model, copy))
        torch.testing.assert_close(theirs, logits)
        logits.square().sum().backward(), theirs.square().sum().backward()
    for one, other in zip(model.parameters(), copy.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_half_the_precision_is_close():
    model, x = network(dtype=torch.float32), record(300, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(x)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, model(x), rtol=0, atol=0.1)
