"""``preprocess`` of every task: the same bytes however the work was divided, and wherever it was killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from support.shots import write_shots
from support.viewers import small_study

from accel_train.command import Command
from accel_train.data import unit_files, work_folder
from accel_train.data.unit_files import UnitFiles
from accel_train.errors import UserError
from accel_train.tasks.gdynet.preprocess import blocks

KILLED_IN: dict[str, tuple[Any, str, Callable[[int], int]]] = {
    "a unit": (UnitFiles, "_place", lambda units: 2),
    "its marker": (unit_files, "write_atomic", lambda units: 2),
    "the merge": (work_folder, "write_atomic", lambda units: 2),  # the first is the plan
    "the rename": (Path, "rename", lambda units: 2),  # the first is that of the work folder
}
"""What is called, and at which call the process dies."""


class Case(NamedTuple):
    """``run``: the command, with these options. ``whole``: what it makes in one go, of so many units."""

    run: Callable[..., int]
    whole: dict[str, bytes]
    units: int


def gdynet(raw: Path) -> list[str]:
    random = np.random.default_rng(0)
    sites = np.stack(np.meshgrid(*3 * [np.arange(2) * 3.0]), -1).reshape(-1, 3)
    frames = sites + random.uniform(-0.3, 0.3, (9, 8, 3))
    lattices = np.tile(6 * np.eye(3), (9, 1, 1))
    np.savez(raw / "t.npz", traj_coords=frames, lattices=lattices, atom_types=np.full(8, 3), target_index=np.arange(4))
    return [str(raw / "t.npz"), "--n_nbrs=4", "--radius=5"]


def tcn(raw: Path) -> list[str]:
    write_shots(raw, count=6)
    return [f"--disrupt={raw / 'disrupt'}", f"--clear={raw / 'clear'}", "--dt_ms=1"]


def sherlock(raw: Path) -> list[str]:
    return small_study(raw, subjects=4)


@pytest.fixture(scope="module", params=[gdynet, tcn, sherlock])
def case(request, tmp_path_factory) -> Case:
    for library in {gdynet: ("scipy", "ase"), sherlock: ("nibabel",)}.get(request.param, ()):
        pytest.importorskip(library)
    folder = tmp_path_factory.mktemp("case")
    command = Command("preprocess", "", f"accel_train.tasks.{request.param.__name__}.preprocess.command")
    (folder / "raw").mkdir()
    options = request.param(folder / "raw")

    def run(out: Path, *more: str) -> int:
        return command.run([*options, f"--out={out}", *more])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "MOST_FRAMES", 2)
        done = followed(patch)
        assert run(folder / "out") == 0
        yield Case(run, content(folder / "out"), len(done))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def followed(patch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the units that are done from here on."""
    done, real = [], UnitFiles.do
    patch.setattr(UnitFiles, "do", lambda self, job, number: (done.append(number), real(self, job, number))[1])
    return done


def killed(run: Callable[[], int], owner: Any, name: str, call: int) -> None:
    """In a process of its own, with SIGKILL."""
    if (pid := os.fork()) == 0:
        calls, real = iter(range(1, 99)), getattr(owner, name)

        def die(*arguments: Any, **options: Any) -> Any:
            if next(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        setattr(owner, name, die)
        try:
            run()
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL


@pytest.mark.parametrize("where", KILLED_IN)
def test_killed_and_divided_otherwise(case, tmp_path, where, monkeypatch, capsys):
    out, (owner, name, call) = tmp_path / "out", KILLED_IN[where]
    killed(lambda: case.run(out), owner, name, call(case.units))
    assert [path.name for path in tmp_path.iterdir()] == [".out.preprocess"]
    done = followed(monkeypatch)
    for part in (2, 0, 1):
        assert case.run(out, f"--shard={part}/3") == 0
        if part != 1 and where in ("a unit", "its marker"):
            assert f"part {part} of 3 is done; " in capsys.readouterr().out and not out.exists()
    missing = range(1, case.units) if where in ("a unit", "its marker") else ()
    assert sorted(done) == list(missing), "each that is missing once"
    assert content(out) == case.whole and [path.name for path in tmp_path.iterdir()] == ["out"]
    assert case.run(out) == 0 and "is already there, made with these options" in capsys.readouterr().out


def test_jobs_of_a_slurm_array(case, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MAX", "2")
    for number in (2, 1):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(number))
        assert case.run(tmp_path / "out") == 0
        assert capsys.readouterr().out.startswith(f"SLURM array: part {number - 1} of 2 (")
    assert content(tmp_path / "out") == case.whole


@pytest.mark.slow
def test_worker_processes(case, tmp_path):
    assert case.run(tmp_path / "out", "--workers=2") == 0
    assert content(tmp_path / "out") == case.whole


@pytest.mark.parametrize("options, text", [("--workers=0", "--workers must be 1 or more"), ("--shard=3/3", "I/N")])
def test_shares_that_cannot_be(case, tmp_path, options, text):
    with pytest.raises(UserError, match=text):
        case.run(tmp_path / "out", options)
    assert not list(tmp_path.iterdir())
