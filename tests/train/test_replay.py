"""A replay from a checkpoint, or from the seed, is the run again; and the run folder does not notice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import toys
from support.processes import run
from support.runs import config, records

from accel_train.config.convert import build
from accel_train.config.schema import TrainConfig
from accel_train.run.checkpoint import CheckpointFolder
from accel_train.run.weights import load_tensors
from accel_train.train.replay import replayed

DROPOUT = {"dropout": 0.2}


def seen(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file and folder as it is, with its time of change."""
    found = {str(path): path for path in [folder, *folder.rglob("*")]}
    return {n: (path.read_bytes() if path.is_file() else b"", path.lstat().st_mtime_ns) for n, path in found.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run({"task_args": DROPOUT, "config": config(folder, save_steps=8, save_total_limit=None)})
    return folder


@pytest.mark.parametrize(("start", "end"), [(0, 8), (8, 16), (16, 24), (16, 17), (8, 8), (0, 24)])
def test_the_same_bits_and_an_untouched_folder(whole: Path, start: int, end: int):
    before, checkpoints = seen(whole), CheckpointFolder(whole / "checkpoints")
    torch.set_num_threads(1)
    settings = build(TrainConfig, config(whole, save_steps=8, save_total_limit=None))
    with replayed(toys.Toy(**DROPOUT), settings, checkpoints.path(start) if start else None, end) as loop:
        folder = loop.session.output_dir
        assert loop.state.position.step == end
        if checkpoints.path(end).is_dir():
            loop.saver.save(end, loop.state.progress())
            loop.saver.settle()
            name = f"checkpoints/step-{end:09d}/model.safetensors"
            mine, its = load_tensors(folder / name), load_tensors(whole / name)
            assert mine.keys() == its.keys() and all(torch.equal(mine[key], its[key]) for key in its)
        logged = [record for record in records(whole) if start < record["step"] <= end]
        assert records(folder) == logged
    assert seen(whole) == before and not folder.exists()
