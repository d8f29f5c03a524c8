"""The network sees no future, knows what is missing from what was withheld, and has the brain in its path."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.stimuli import Film, FilmItems
from torch import nn

from accel_train.errors import UserError
from accel_train.tasks.sherlock.architecture import PRESETS, Branch, Modality, sizes_of
from accel_train.tasks.sherlock.model import Autoencoder

LAGS, W = 4, 3
SIZES = sizes_of("default", latent=8, encoder=[6], fusion=[8], decoder=[8])
NAMES = ["video", "audio", "tokens", "text"]


def network(seed=0, sizes=SIZES, **options):
    torch.manual_seed(seed)
    options = dict(subjects=3, subject_rank=2) | options
    film = Film()
    of = {name: Modality(name, about["kind"], tuple(about["shape"])) for name, about in film.modalities.items()}
    of["tokens"] = replace(of["tokens"], codes=4)
    model = Autoencoder(list(of.values()), film.voxels, sizes, LAGS, film.tr_s, **options)
    for full, values in film.statistics("stimulus_stats").items():
        name, _, part = full.rpartition("_")
        found = {"mean": values, "var": np.ones(())} if part == "mean" else {part: values}
        if part != "var":
            model.set_statistics(name, {each: torch.as_tensor(v) for each, v in found.items()})
    model.set_known_subjects([0, 1])
    with torch.no_grad():  # not the small outputs of the beginning
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model.double().eval()


def batch_of(split="train", window=W, items=(3, 4, 20), names=NAMES, lags=LAGS):
    read = FilmItems(Film(), split, window, lags, list(names)).read(np.array(items))
    return {name: torch.from_numpy(np.asarray(values)) for name, values in read.items()}


def same(one, other):
    return torch.allclose(one, other, rtol=0, atol=1e-12)


# -- what it is ------------------------------------------------------------------------------------------------------


def legacy(**options):
    modalities = [
        Modality("video", "frames", (1, 90, 160, 3)), Modality("audio", "mel", (1, 128)),
        Modality("text", "vectors", (1024,)),
    ]  # fmt: skip
    with torch.device("meta"):
        return Autoencoder(modalities, 85_810, PRESETS["legacy"], lags=14, **options)


def test_the_legacy_preset_has_the_size_of_the_guide():
    """Its encoder, voxel head included, and its decoder. What stands in for a modality is new. Nothing in it knows of
    the other items of a batch, as batch normalisation would."""
    assert not any(isinstance(module, nn.modules.batchnorm._NormBase) for module in legacy().modules())
    named = dict(legacy().named_parameters())
    stand_ins = {name for name in named if name.endswith((".absent", ".dropped"))}
    assert len(stand_ins) == 6
    decoder = sum(p.numel() for name, p in named.items() if name.startswith("decoder."))
    encoder = sum(p.numel() for name, p in named.items() if name not in stand_ins) - decoder
    assert (encoder, decoder) == (1_595_910_386, 378_157_376) and encoder + decoder == 1_974_067_762


@pytest.mark.parametrize("convolutions", [(), (4,)])
@pytest.mark.parametrize("bottleneck", ["latent", "voxels"])
def test_shapes(convolutions, bottleneck):
    branch = Branch(convolutions, (6,), (6,))
    sizes = replace(SIZES, branches={"frames": branch, "mel": branch})
    made = network(sizes=sizes, bottleneck=bottleneck)(batch := batch_of())
    assert made["latent"].shape == (3, LAGS + W, 8) and made["fmri"].shape == (3, W, 5)
    model = network(sizes=sizes)
    for name in NAMES:
        target = made[f"target/{name}"]
        codes = (4,) if name == "tokens" else ()
        assert made[name].shape == (*target.shape, *codes)
        assert model.in_units(name, made[name]).shape == batch[f"stimulus/{name}"][:, LAGS:].shape


def test_a_standardised_stimulus_goes_back_to_its_unit():
    model, batch = network(), batch_of()
    for name in NAMES:
        target = model(batch)[f"target/{name}"]
        if name != "tokens":
            stored = batch[f"stimulus/{name}"][:, LAGS:].double()
            torch.testing.assert_close(model.in_units(name, target), stored, rtol=0, atol=1e-4)


def test_checkpointing_changes_nothing():
    gradients = []
    for checkpointing in (False, True):
        model = network(checkpointing=checkpointing, dropout=0.3, bottleneck="voxels", lag="fir").train()
        torch.manual_seed(1)  # of what is dropped
        sum(values.sum() for values in model(batch_of()).values()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert same(*gradients)


def test_half_precision_changes_little():
    model, batch = network(bottleneck="voxels", lag="fir").float(), batch_of()
    with torch.no_grad():
        whole = model(batch)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(batch)
    for name, values in whole.items():
        assert (half[name] - values).abs().max() <= 0.1 * values.abs().max(), name


# -- time ------------------------------------------------------------------------------------------------------------


def changed(batch, at):
    """The batch with another stimulus at TR ``at`` of the window."""
    other = {name: values.clone() for name, values in batch.items()}
    for name in ("video", "audio", "text"):
        other[f"stimulus/{name}"][:, at] += 7
    other["stimulus/tokens"][:, at] = (other["stimulus/tokens"][:, at] + 1) % 4
    return other


@pytest.mark.parametrize("options", [{}, {"time_layers": 2, "heads": 2}], ids=["each TR", "over time"])
def test_the_latent_never_sees_the_future(options):
    model, batch = network(**options), batch_of()
    latent = model(batch)["latent"]
    for at in range(LAGS + W):
        other = model(changed(batch, at))["latent"]
        assert same(latent[:, :at], other[:, :at]) and not same(latent[:, at], other[:, at])
        if not options:
            assert same(latent[:, at + 1 :], other[:, at + 1 :])


def test_a_network_that_is_not_causal_does():
    model, batch = network(time_layers=1, heads=2, causal=False), batch_of()
    assert not same(model(batch)["latent"][:, 0], model(changed(batch, LAGS + W - 1))["latent"][:, 0])


@pytest.mark.parametrize("lag", ["hrf", "fir"])
@pytest.mark.parametrize("bottleneck", ["latent", "voxels"])
def test_a_volume_sees_the_stimulus_of_its_lags_alone(lag, bottleneck):
    model, batch = network(lag=lag, bottleneck=bottleneck), batch_of()
    bold, video = (model(batch)[name] for name in ("fmri", "video"))
    for at in range(LAGS + W):
        other = model(changed(batch, at))
        for t in range(W):
            sees = t <= at <= t + LAGS
            assert same(bold[:, t], other["fmri"][:, t]) != sees
            assert same(video[:, t], other["video"][:, t]) != (at == t + LAGS)  # its own TR, never a blurred one


def test_both_kinds_of_lag_agree_where_they_begin():
    """One filters before the widest layer, the other after it."""
    fixed, learned = network(lag="hrf", bottleneck="voxels"), network(lag="fir", bottleneck="voxels")
    values = fixed.state_dict()
    values["lag.taps"] = fixed.lag.taps.expand(5, -1)
    learned.load_state_dict(values)
    one, other = fixed(batch_of()), learned(batch_of())
    assert one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)


# -- what is missing, and what was withheld --------------------------------------------------------------------------


def test_absent_and_dropped_are_neither_zeros_nor_each_other():
    model, batch = network(), batch_of()
    keep = torch.ones_like(batch["available"])
    absent, dropped, zeros = ({name: values.clone() for name, values in batch.items()} for _ in range(3))
    absent["available"][:, 0] = False
    withheld = keep.clone()
    withheld[:, 0] = False
    zeros["stimulus/video"].zero_()
    latents = [
        model(batch)["latent"], model(absent)["latent"], model(dropped, withheld)["latent"], model(zeros)["latent"]
    ]  # fmt: skip
    for i, one in enumerate(latents):
        assert all(not torch.allclose(one, other, atol=1e-3) for other in latents[i + 1 :])
    assert same(model(batch, keep)["latent"], latents[0])


def test_what_is_absent_or_dropped_is_not_looked_at():
    model, batch = network(), batch_of()
    withheld = torch.ones_like(batch["available"])
    withheld[:, 1] = False
    other = {name: values.clone() for name, values in batch.items()}
    other["stimulus/audio"] += 5
    assert same(model(batch, withheld)["latent"], model(other, withheld)["latent"])
    assert not same(model(batch)["latent"], model(other)["latent"])


# -- subjects --------------------------------------------------------------------------------------------------------


def test_an_unknown_subject_has_the_shared_head():
    model, batch = network(), batch_of()
    keep = torch.zeros(3, dtype=torch.bool)

    def bold(subject, kept=None):
        return model(batch | {"subject": torch.full((3,), subject)}, keep_subject=kept)["fmri"]

    shared = bold(0, keep)
    assert same(bold(2), shared) and same(bold(-1), shared)  # subject 2 is not in the training data
    assert not same(bold(0), shared) and not same(bold(0), bold(1))


# -- the brain in the path -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lag", ["hrf", "fir"])
def test_a_lesion_reaches_the_reconstruction_through_voxels_alone(lag):
    lesion = torch.tensor([True, False, True, False, False])
    for bottleneck in ("latent", "voxels"):
        model, batch = network(lag=lag, bottleneck=bottleneck), batch_of()
        whole, hurt = model(batch), model(batch, lesion=lesion)
        assert (hurt["fmri"][..., lesion] == 0).all() and same(hurt["fmri"][..., ~lesion], whole["fmri"][..., ~lesion])
        for name in NAMES:
            assert same(whole[name], hurt[name]) == (bottleneck == "latent")


def test_measured_bold_is_decoded_through_voxels_alone():
    model = network(bottleneck="voxels")
    bold = torch.randn(2, W + LAGS, 5, dtype=torch.float64)
    assert model.decode_bold(bold)["audio"].shape == (2, W, 15)
    everything = torch.ones(5, dtype=torch.bool)
    assert same(model.decode_bold(bold, everything)["audio"], model.decode_bold(2 * bold, everything)["audio"])
    with pytest.raises(UserError, match="bottleneck=voxels"):
        network().decode_bold(bold)


# -- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda m: m(batch_of() | {"stimulus/text": torch.zeros(3, 7, 9)}), r"text: TRs of shape \(9,\)"),
        (lambda m: m.set_statistics("text", {"mean": torch.zeros(9), "var": torch.ones(())}), "of 9 numbers"),
        (lambda m: m.set_statistics("text", {"mean": torch.zeros(4), "var": torch.zeros(())}), "never changes"),
        (lambda m: m.set_statistics("tokens", {"counts": torch.ones(1, 4)}), r"tokens: counts of \(1, 4\)"),
        (lambda m: Autoencoder([], 5, SIZES, 1), "none of the modalities"),
        (lambda m: sizes_of("default", encoder=[]), "encoder_widths: at least one"),
        (lambda m: network(time_layers=1, heads=3), "3 heads"),
    ],
)
def test_a_mistake_is_one_clear_line(mistake, message):
    with pytest.raises(UserError, match=message) as caught:
        mistake(network())
    assert "\n" not in str(caught.value)
