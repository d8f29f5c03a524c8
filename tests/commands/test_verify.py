"""accel-train verify: a run that was killed proves itself, and one in which anything was altered is refuted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support import toys
from support.processes import kill_at_checkpoints, run
from support.runs import config

from accel_train.cli import main
from accel_train.run.checkpoint import CheckpointFolder, write_manifest

DROPOUT = {"dropout": 0.2}


def job(folder: Path, **more: object) -> dict:
    """28 steps, 7 in an epoch, with a checkpoint at 10 and 20."""
    settings = config(folder, max_steps=28, eval_steps=10, save_steps=10, save_total_limit=None, **more)
    return {"task_args": DROPOUT | {"slow": 0.01}, "config": settings}


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("killed") / "run"
    kill_at_checkpoints(job(folder), times=2)
    run(job(folder))
    assert CheckpointFolder(folder / "checkpoints").steps() == [10, 20, 28]
    return folder


def verify(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str]]:
    capsys.readouterr()
    code = main(["verify", *map(str, arguments)])
    said = capsys.readouterr()
    return code, [*said.out.splitlines(), *said.err.splitlines()]


def seen(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file and folder as it is, with its time of change."""
    found = {str(path): path for path in [folder, *folder.rglob("*")]}
    return {n: (path.read_bytes() if path.is_file() else b"", path.lstat().st_mtime_ns) for n, path in found.items()}


def test_every_interval_of_a_run_that_was_killed(killed: Path, capsys: pytest.CaptureFixture[str]):
    before = seen(killed)
    code, (kept, *lines) = verify(capsys, killed, "--all")
    assert kept.endswith("checkpoints of steps 10, 20, 28 and log lines to step 28; 28 steps are trained again")
    assert lines == [
        "bitwise equal, steps 0 to 10, from the seed (16 tensors, 1 optimiser, 3 log records)",
        "bitwise equal, steps 10 to 20 (16 tensors, 1 optimiser, 3 log records)",
        "bitwise equal, steps 20 to 28 (16 tensors, 1 optimiser, 3 log records)",
        "3 of 3 intervals verified",
    ]
    assert code == 0 and seen(killed) == before


# -- what was altered ------------------------------------------------------------------------------------------------


def a_bit(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """In the weights of step 20, the manifest mended."""
    checkpoint = folder / "checkpoints" / "step-000000020"
    content = bytearray((checkpoint / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (checkpoint / "model.safetensors").write_bytes(content)
    write_manifest(checkpoint, {"step": 20})


def a_bit_of_the_optimiser(folder: Path, patch: pytest.MonkeyPatch) -> None:
    checkpoint = folder / "checkpoints" / "step-000000020"
    state = torch.load(checkpoint / "optimizer.bin", weights_only=True)
    state["state"][0]["exp_avg"].view(torch.int32).flatten()[0] ^= 1
    torch.save(state, checkpoint / "optimizer.bin")
    write_manifest(checkpoint, {"step": 20})


def a_bit_unmended(folder: Path, patch: pytest.MonkeyPatch) -> None:
    path = folder / "checkpoints" / "step-000000020" / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def a_row(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """One that steps 15 to 21 train on once, as every epoch does: in its batch at step 20 at the latest."""
    read = toys.Numbers.read

    def altered(self: toys.Numbers, indices: np.ndarray) -> dict:
        batch = read(self, indices)
        batch["y"][indices == 3] += np.float32(1e-6)
        return batch

    patch.setattr(toys.Numbers, "read", altered)


def a_line(folder: Path, patch: pytest.MonkeyPatch) -> None:
    step = toys.Toy.loss_step

    def altered(self, models, batch, totals, objective):
        loss = step(self, models, batch, totals, objective)
        return loss._replace(value=loss.value * 1.0001)

    patch.setattr(toys.Toy, "loss_step", altered)


def a_setting(folder: Path, patch: pytest.MonkeyPatch) -> None:
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("learning_rate: 0.01", "learning_rate: 0.011"))


def a_logged_value(folder: Path, patch: pytest.MonkeyPatch) -> None:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    altered = [json.loads(line) for line in lines]
    next(record for record in altered if record["step"] == 15)["loss"] *= 1.0000001
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in altered))


@pytest.mark.parametrize(("alter", "steps", "says"), [
    (a_bit, "10:20", "REFUTED, steps 10 to 20: step 20: model.safetensors: model."),
    (a_bit_of_the_optimiser, "10:20", "step 20: optimizer.bin: state.0.exp_avg is"),
    (a_bit_unmended, "10:20", "step-000000020 is damaged: model.safetensors has been altered"),
    (a_row, "0:10", "REFUTED, steps 0 to 10, from the seed: metrics.jsonl: train at step"),
    (a_line, "20:28", "REFUTED, steps 20 to 28: metrics.jsonl: train at step 25: grad_norm is"),
    (a_setting, "20:28", "and of its newest checkpoint: learning_rate: 0.011 -> 0.01"),
    (a_logged_value, "10:20", "metrics.jsonl: train at step 15: loss is"),
])  # fmt: skip
def test_what_was_altered_is_found(
    killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    alter: Callable[[Path, pytest.MonkeyPatch], None], steps: str, says: str,
):  # fmt: skip
    shutil.copytree(killed, tmp_path / "run", symlinks=True)
    alter(tmp_path / "run", monkeypatch)
    code, lines = verify(capsys, tmp_path / "run", "--steps", steps)
    assert code == 1 and says in lines[1], lines


# -- what can be done ------------------------------------------------------------------------------------------------


def test_between_checkpoints_only_logged_values_are_compared(killed: Path, capsys: pytest.CaptureFixture[str]):
    code, lines = verify(capsys, killed, "--steps", "22:25")
    only = "; no checkpoint is kept there, so only logged values are compared"
    assert (code, lines[1]) == (0, f"bitwise equal, steps 20 to 25 (1 log record{only})")


def test_on_other_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Refused with the command that can, or compared up to rounding."""
    run({"config": config(tmp_path, max_steps=6, save_steps=None)}, 2)
    code, lines = verify(capsys, tmp_path)
    assert code == 2 and "were made by 2 ranks, and there are 1 here" in lines[-1]
    assert "--num_processes 2 -m accel_train verify" in lines[-1]
    code, lines = verify(capsys, tmp_path, "--topology", "any")
    assert code == 0 and lines[1].startswith("equal up to rounding (weights differ by "), lines


@pytest.mark.parametrize(("arguments", "says"), [
    (["--steps", "20"], "--steps 20: give two steps, as in --steps 12000:13000"),
    (["--steps", "20:99"], "--steps 20:99: the steps of"),
    (["--sample", "0"], "--sample 0: out of range"),
    (["--every"], "verify: unrecognized arguments: --every"),
])  # fmt: skip
def test_what_cannot_be_done_is_one_line(killed: Path, capsys: pytest.CaptureFixture[str], arguments, says):
    code, lines = verify(capsys, killed, *arguments)
    assert code == 2 and len(lines) == 1 and says in lines[0], lines


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code, lines = verify(capsys, tmp_path)
    assert code == 2 and "no run folder" in lines[0]
