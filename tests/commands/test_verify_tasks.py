"""Runs of all five tasks that were killed twenty times prove themselves; fifty alterations are found, each in the steps
that it changed."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support import small_tasks
from support.five import ALTERABLE, FIVE, job
from support.probe import items_of
from support.processes import kill_at_checkpoints, run

from accel_train.cli import main
from accel_train.data.loader import Loader
from accel_train.run.checkpoint import write_manifest
from accel_train.run.weights import load_tensors
from accel_train.task import Task
from accel_train.train.verifying import Recorded, check


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", FIVE)
def test_every_interval_of_a_run_that_was_killed_twenty_times(tmp_path: Path, capsys, name: str):
    settings = job(name, tmp_path, max_steps=120, save_steps=3)
    kill_at_checkpoints(settings, times=20)
    run(settings)
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "run"), "--all"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "40 of 40 intervals verified"


# -- what was altered ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, dict[int, list[int]]]]:
    """Runs of 12 steps with a checkpoint at every fourth, and the items of their steps; made once."""
    made: dict[str, tuple[Path, dict[int, list[int]]]] = {}

    def get(name: str) -> tuple[Path, dict[int, list[int]]]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            (result,) = run(job(name, folder, max_steps=12, save_steps=4))
            assert result["error"] is None
            made[name] = folder / "run", result["samples"]
        return made[name]

    return get


def a_bit(checkpoint: Path, chance: random.Random) -> None:
    """Of any tensor of models or optimisers, the manifest mended."""
    file = chance.choice([*sorted(checkpoint.glob("model*")), *sorted(checkpoint.glob("optimizer*"))])
    weights = file.suffix == ".safetensors"
    content = load_tensors(file) if weights else torch.load(file, weights_only=True)
    tensors = content.values() if weights else [each for state in content["state"].values() for each in state.values()]
    tensor = chance.choice([each for each in tensors if each.numel()])
    flat = tensor.contiguous().flatten().view(torch.uint8).clone()
    flat[chance.randrange(len(flat))] ^= 1 << chance.randrange(8)
    tensor.copy_(flat.view(tensor.dtype).view(tensor.shape))
    save_file(content, file, metadata={"format": "pt"}) if weights else torch.save(content, file)
    write_manifest(checkpoint, {"step": 8})


def a_row(patch: pytest.MonkeyPatch, name: str, item: int) -> None:
    """Wherever it is read."""
    real = Loader._finish

    def altered(self: Loader, *place: Any) -> Any:
        epoch, number, batch = real(self, *place)
        for row in [row for row, each in enumerate(items_of(batch)) if each == item]:
            field = batch[ALTERABLE[name]] = batch[ALTERABLE[name]].clone()
            field[row] += 1 if name == "collatz" else field[row] * 1e-3 + 1e-3
        return epoch, number, batch

    patch.setattr(Loader, "_finish", altered)


def a_setting(folder: Path) -> None:
    path = folder / "config.yaml"
    assert "\nlearning_rate: 0.001\n" in path.read_text()
    path.write_text(path.read_text().replace("\nlearning_rate: 0.001\n", "\nlearning_rate: 0.00101\n"))


def a_line(patch: pytest.MonkeyPatch, task: type[Task], method: str) -> None:
    """Of the loss, or of the optimiser's rate."""
    real = getattr(task, method)

    def loss_step(self: Task, *arguments: Any) -> Any:
        loss = real(self, *arguments)
        return loss._replace(value=loss.value * 1.0001)

    patch.setattr(task, method, loss_step if method == "loss_step" else lambda *_: {"lr_factor": 1.001})


def first_refuted(folder: Path) -> str:
    recorded = Recorded(folder, trust=True)
    found = (each for each in recorded.intervals() if check(recorded, each).found)
    return next((f"{each.start}:{each.end}" for each in found), "none")


CHANGES = [
    *((f"bit {n}", n) for n in range(4)), ("row", 6), ("row", 11), ("setting", 0), ("setting of a checkpoint", 0),
    ("loss_step", 0), ("parameter_options", 0),
]  # fmt: skip


def alter(change: str, number: int, name: str, folder: Path, samples: Any, patch: pytest.MonkeyPatch) -> str:
    """Change one thing; returns the first interval that must be refuted."""
    checkpoint = folder / "checkpoints" / "step-000000008"
    if change.startswith("bit"):
        a_bit(checkpoint, random.Random(f"{name} {number}"))
        return "4:8"
    if change == "row":
        item = samples[number][0]
        a_row(patch, name, item)
        first = min(step for step, items in samples.items() if item in items)
        return next(f"{end - 4}:{end}" for end in (4, 8, 12) if first <= end)
    if change == "setting":
        a_setting(folder)
        return "8:12"
    if change == "setting of a checkpoint":
        a_setting(checkpoint)
        write_manifest(checkpoint, {"step": 8})
        return "4:8"
    a_line(patch, getattr(small_tasks, FIVE[name]), change)
    return "0:4"


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: f"{change[0]} {change[1]}")
@pytest.mark.parametrize("name", FIVE)
def test_what_was_altered_is_found_in_the_right_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Any, name: str, change: tuple[str, int]
):
    original, samples = whole(name)
    shutil.copytree(original, tmp_path / "run", symlinks=True)
    expected = alter(*change, name, tmp_path / "run", samples, monkeypatch)
    assert first_refuted(tmp_path / "run") == expected
