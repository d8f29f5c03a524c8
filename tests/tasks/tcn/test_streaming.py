"""However a record reaches the network, its logits are those of a window."""

from __future__ import annotations

import itertools
import json
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_train.errors import DataError, UserError
from accel_train.tasks.tcn import streaming
from accel_train.tasks.tcn.architecture import NORMS
from accel_train.tasks.tcn.model import TCN
from accel_train.tasks.tcn.streaming import Stream, StreamStep, overlap_save, write_program

CHANNELS, FIELD, STEPS, SHOTS, LONGEST = 3, 205, 400, 2, 20


@cache
def network(norm="weight", seed=0):
    """Dilations 1, 6, 27, in both forms of the convolution; with statistics, and dropout that must not act."""
    torch.manual_seed(seed)
    model = TCN(CHANNELS, levels=3, nhid=5, kernel_size=4, nrecept_target=200, dropout=0.5, norm=norm).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.set_statistics(torch.randn(CHANNELS), torch.rand(CHANNELS) + 0.5)
    assert model.receptive_field == FIELD
    return model


def shots(count=SHOTS, steps=STEPS):
    return torch.randn(count, CHANNELS, steps, generator=torch.Generator().manual_seed(1))


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# -- as it arrives ---------------------------------------------------------------------------------------------------


@given(chunks=st.lists(st.integers(1, LONGEST), min_size=1, max_size=12), norm=st.sampled_from(NORMS))
@settings(deadline=None, max_examples=30)
def test_any_chunks_give_the_logits_of_the_window(chunks, norm):
    """From the first sample on those of zeros before, from R - 1 on those of the window."""
    model, record = network(norm), shots()
    stream, found, first = Stream(model, SHOTS, longest=LONGEST), [], 0
    for n in itertools.cycle(chunks):
        found.append(stream.step(record[..., first : first + n]))
        first += n
        if first >= STEPS:
            break
    logits = torch.cat(found, 1)
    assert int(stream.seen) == STEPS and logits.shape == (SHOTS, STEPS)
    with torch.no_grad():
        close(logits, model.forward_all(record))
        close(logits[:, FIELD - 1 :], model(record))


@pytest.mark.parametrize("n", [1, LONGEST, LONGEST + 1, STEPS])
def test_chunks_longer_than_the_rings_allow_are_cut(n):
    stream, record = Stream(network(), SHOTS, longest=LONGEST), shots()
    logits = torch.cat([stream.step(record[..., i : i + n]) for i in range(0, STEPS, n)], 1)
    with torch.no_grad():
        close(logits, network().forward_all(record))


def test_a_shot_does_not_see_the_others():
    together, record = Stream(network(), SHOTS, longest=LONGEST), shots()
    expected = together.step(record)
    for i in range(SHOTS):
        close(Stream(network(), 1, longest=LONGEST).step(record[i : i + 1]), expected[i : i + 1])


def test_what_arrives_may_be_as_it_is_stored():
    stored = (100 * shots()).to(torch.int16)
    scale, offset = torch.rand(SHOTS, CHANNELS) / 50, torch.randn(SHOTS, CHANNELS)
    logits = Stream(network(), SHOTS, scale, offset, LONGEST).step(stored)
    with torch.no_grad():
        close(logits[:, FIELD - 1 :], network()(stored, scale, offset))


def test_a_stream_keeps_the_weights_of_its_beginning():
    """Training goes on without it, and it draws nothing from the generators."""
    model = TCN(CHANNELS, levels=2, nhid=4, kernel_size=3, nrecept_target=20, norm="channel")
    before = torch.get_rng_state()
    stream = Stream(model, SHOTS)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        expected = model.eval().forward_all(shots())
        for parameter in model.parameters():
            parameter += 1
    close(stream.step(shots()), expected)


# -- as a program ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["weight", "channel"])
def test_the_program_is_the_stream(tmp_path, norm):
    """For other numbers of shots and samples than it was made with, from its own beginning, knowing its description."""
    write_program(network(norm), tmp_path, LONGEST)
    meaning = json.loads((tmp_path / "stream.json").read_text())
    assert (meaning["channels"], meaning["receptive_field"], meaning["longest_chunk"]) == (CHANNELS, FIELD, LONGEST)
    loaded = torch.export.load(tmp_path / "stream.pt2")
    program = loaded.module()
    assert all(not ring.any() for ring in loaded.example_inputs[0][2])
    for count, n in ((1, 1), (1, LONGEST), (5, 7)):
        seen, rings = torch.zeros((), dtype=torch.int64), [torch.zeros(count, *ring) for ring in meaning["rings"]]
        record, found = shots(count), []
        for first in range(0, STEPS, n):
            logits, seen, rings = program(record[..., first : first + n], seen, rings)
            found.append(logits)
        with torch.no_grad():
            close(torch.cat(found, 1), network(norm).forward_all(record))
    with pytest.raises(Exception, match="20"):
        program(shots(2, LONGEST + 1), *StreamStep(network(norm), LONGEST).beginning(2))


def test_a_program_that_differs_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match=r"export: stream.pt2 differs from the model by \d"):
        write_program(network(), tmp_path, LONGEST)


# -- whole -----------------------------------------------------------------------------------------------------------


@given(first=st.integers(0, 60), steps=st.integers(FIELD, STEPS - 60), nsub=st.integers(FIELD, STEPS))
@settings(deadline=None, max_examples=30)
def test_windows_add_up_to_the_shot(first, steps, nsub):
    """Each step once, from stored values, for any length of window; read no more than the shot."""
    stored = (100 * shots(1)[0]).to(torch.int16).numpy()
    scale, offset = torch.tensor([0.01, 0.02, 0.03]), torch.tensor([0.3, -0.2, 0.1])
    last, lengths = first + steps, set()

    def read(a, b):
        assert first <= a < b <= last
        lengths.add(b - a)
        return stored[:, a:b]

    found = overlap_save(network(), read, first, last, nsub, scale, offset)
    with torch.no_grad():
        expected = network()(torch.from_numpy(stored[None, :, first:last]), scale, offset)[0]
    assert found.dtype == np.float32 and lengths == {min(nsub, steps)}
    close(torch.from_numpy(found), expected)


def test_what_cannot_be_scored_is_said():
    with pytest.raises(DataError, match="samples 10 to 214 are fewer than the receptive field of 205"):
        overlap_save(network(), lambda a, b: shots(1)[0, :, a:b].numpy(), 10, 214, 300)
    with pytest.raises(UserError, match="windows of 204 steps are shorter"):
        overlap_save(network(), lambda a, b: shots(1)[0, :, a:b].numpy(), 0, 300, 204)
