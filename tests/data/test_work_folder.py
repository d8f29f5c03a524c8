"""A folder made piece by piece: each piece once, through kills, on any number of ranks and workers, by one plan."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from accel_train.data import work_folder
from accel_train.data.work_folder import WorkFolder, create_rows, refuse_no_room, write_rows
from accel_train.errors import UserError

PIECES, ROWS = 5, 3


class Squares:
    """Row i of squares.npy is i^2; a piece is three rows."""

    pieces = PIECES

    def __init__(self, folder: Path, fails_at: int | None = None) -> None:
        self.folder, self.fails_at = folder, fails_at
        self.first = json.loads((folder / "first.json").read_text())

    def items(self, piece: int) -> int:
        return ROWS

    def do(self, piece: int) -> dict:
        if piece == self.fails_at:
            raise UserError(f"piece {piece} is bad")
        rows = np.arange(piece * ROWS, (piece + 1) * ROWS) + self.first
        write_rows(self.folder / "content" / "squares.npy", piece * ROWS, rows**2)
        with open(self.folder.parent / "log", "a") as log:
            log.write(f"{piece} ")
        return {"largest": int(rows[-1])}


class Dies(Squares):
    def do(self, piece: int) -> dict:
        os._exit(1)


def complete(folder: Path, first: int = 0, open_job=Squares, workers: int = 1):
    def prepare(made: Path) -> None:
        (made / "first.json").write_text(json.dumps(first))
        create_rows(made / "content" / "squares.npy", np.int64, (PIECES * ROWS,))

    def describe(job, records):
        return {"largest": max(record["largest"] for record in records)}

    return WorkFolder(folder / "out", {"first": first}, "square", "numbers").complete(
        prepare, open_job, describe, workers
    )


def check(folder: Path, first: int = 0) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["log", "out"]
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["meta.json", "squares.npy"]
    np.testing.assert_array_equal(np.load(folder / "out" / "squares.npy"), (np.arange(PIECES * ROWS) + first) ** 2)
    meta = json.loads((folder / "out" / "meta.json").read_text())
    assert meta == {"largest": PIECES * ROWS - 1 + first, "options": {"first": first}}


@pytest.mark.parametrize("workers", [1, 2])
def test_all_pieces_in_one_go(tmp_path, capsys, workers):
    finished = complete(tmp_path, workers=workers)
    assert finished is not None and finished.items == PIECES * ROWS
    check(tmp_path)
    assert complete(tmp_path) is None and "is already there, made with these options" in capsys.readouterr().out
    assert sorted((tmp_path / "log").read_text().split()) == list("01234")


def test_what_has_a_record_is_not_done_again(tmp_path):
    with pytest.raises(UserError, match="piece 3 is bad"):
        complete(tmp_path, open_job=partial(Squares, fails_at=3))
    assert not (tmp_path / "out").exists()
    assert complete(tmp_path).items == 2 * ROWS
    check(tmp_path)
    assert (tmp_path / "log").read_text().split() == list("01234")


def test_ranks_share_the_pieces(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert complete(tmp_path) is None
    said = capsys.readouterr().out
    assert said.startswith("rank 0 of 2 has done its numbers; the last to end finishes")
    monkeypatch.setenv("RANK", "1")
    assert complete(tmp_path).items == 2 * ROWS
    check(tmp_path)
    assert (tmp_path / "log").read_text().split() == list("02413")


def test_a_rank_waits_for_rank_0_to_prepare_but_not_for_ever(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(work_folder, "WAIT", 0.3)
    with pytest.raises(UserError, match=r"square: rank 0 has not prepared .*\.out\.square"):
        complete(tmp_path)


def test_other_plans_are_refused(tmp_path):
    with pytest.raises(UserError, match="piece 0 is bad"):
        complete(tmp_path, open_job=partial(Squares, fails_at=0))
    with pytest.raises(UserError, match="unfinished work with another first .first there: 0.; repeat those options"):
        complete(tmp_path, first=2)
    complete(tmp_path)
    with pytest.raises(UserError, match="exists and was made otherwise; give another --out"):
        complete(tmp_path, first=2)
    check(tmp_path)


def test_a_worker_that_dies_is_one_line(tmp_path):
    with pytest.raises(UserError, match="square: a worker process died .*; call again with fewer --workers"):
        complete(tmp_path, open_job=Dies, workers=2)
    assert complete(tmp_path).items == PIECES * ROWS
    check(tmp_path)


def test_a_full_disk_is_refused_before_the_work(tmp_path):
    with pytest.raises(UserError, match=r"square: out will need 1000000000\.0 GB, .* GB are free"):
        refuse_no_room("square: out", tmp_path, 10**18)


def test_progress_is_said_now_and_then(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(work_folder, "SAY", -1.0)
    complete(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == PIECES and lines[1].startswith("rank 0: 6 of 15 numbers, ")
