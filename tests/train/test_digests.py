"""Digests see every bit and its place, and those of a run are the same however it was stopped and cut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.processes import run
from support.runs import config, steps_saved
from torch import Tensor

from accel_train.train.digests import digest

DROPOUT = {"dropout": 0.2}


def of(*tensors: Tensor) -> int:
    return int(digest(tensors))


def test_every_bit_and_its_place():
    torch.manual_seed(0)
    values = torch.randn(50_001)  # more than one chunk, and half a word
    seen = {of(values)}
    for place in (0, 1, 2, 777, 32_768, 49_999, 50_000):
        for bit in (0, 9, 22, 23, 30, 31):
            flipped = values.clone()
            flipped.view(torch.int32)[place] ^= -(2**31) if bit == 31 else 1 << bit
            seen.add(of(flipped))
    assert len(seen) == 1 + 7 * 6


@pytest.mark.parametrize(
    "values", [torch.arange(64.0), torch.tensor([1.0, 2.0, 4.0, -1.0] * 16), torch.eye(8).view(-1)]
)
def test_what_trades_places_is_seen(values: Tensor):
    """Also powers of two and signs, which differ in few high bits."""
    for i in range(64):
        for j in range(i):
            swapped = values.clone()
            swapped[i], swapped[j] = values[j].clone(), values[i].clone()
            assert (of(swapped) == of(values)) == (values[i] == values[j])
            swapped = values.clone()
            swapped[[i, j]] *= -1
            assert of(swapped) != of(values) or (values[i] == values[j] == 0 and not torch.signbit(swapped[i]))


def test_order_of_tensors_and_how_they_lie_in_memory():
    a, b = torch.arange(7.0), torch.arange(100.0, 112.0).view(3, 4)
    assert of(a, b) != of(b, a) and of(a, b) == of(a, b.t().contiguous().t())
    assert of(torch.cat([torch.zeros(1), a])[1:]) == of(a), "at an odd place of its storage"
    for dtype in (torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64):
        assert of(a.to(dtype)) == of(a.to(dtype)) != of(a.flip(0).to(dtype) * 1)
    assert of(torch.tensor(3.0)) != of(torch.tensor(4.0)) and of() == of(torch.empty(0)) == 0


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "digests.jsonl").read_text().splitlines()]


def test_a_run_that_was_stopped_has_the_same_ones(tmp_path: Path):
    """Also where a session without digests comes between, and lines behind a checkpoint are forgotten."""
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    run({"task_args": DROPOUT, "config": config(whole, digest_steps=3)})
    for stop in (5, 9, None):
        job = {"task_args": DROPOUT, "config": config(pieces, digest_steps=3)}
        run(job | {"stop_at": stop and {"step": stop}})
        if stop == 9:
            assert steps_saved(pieces)[-1] == 9
            with open(pieces / "digests.jsonl", "a") as file:
                file.write('{"step": 12, "model": ["lost", "lost"]}\n{"step": 1')
    assert [each["step"] for each in lines(whole)] == [3, 6, 9, 12, 15, 18, 21, 24]
    assert lines(whole) == lines(pieces)
    assert all(len(line) < 80 for line in (whole / "digests.jsonl").read_text().splitlines())


def test_of_several_groups_and_ranks(tmp_path: Path):
    """Rank 0 writes them; a gradient is that of all ranks. What is updated twice in a step has another digest each."""
    settings = {"max_steps": 4, "digest_steps": 2, "eval_steps": 0}
    run({"task": "Gan", "config": config(tmp_path / "gan", **settings)})
    assert [list(each) for each in lines(tmp_path / "gan")] == [["step", "critic", "generator"]] * 2
    run({"task_args": {"float64": True}, "config": config(tmp_path / "two", **settings)}, 2)
    assert [each["step"] for each in lines(tmp_path / "two")] == [2, 4]
