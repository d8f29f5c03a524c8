"""A folder made piece by piece: each piece once, through kills, on any number of ranks and workers, by one plan."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from accel_train.data import unit_files, unit_processes, work_folder
from accel_train.data.preprocess import shard_of
from accel_train.data.units import Unit, create_rows, refuse_no_room, write_rows
from accel_train.data.work_folder import WorkFolder
from accel_train.errors import DataError, UserError

PIECES, ROWS = 5, 3


class Squares:
    """Row i of squares.npy is i^2; a unit is three rows."""

    units = [Unit(str(piece), items=ROWS) for piece in range(PIECES)]

    def __init__(self, folder: Path, fails_at: tuple[int, ...] = (), error: type[UserError] = DataError) -> None:
        self.folder, self.fails_at, self.error = folder, fails_at, error
        self.first = json.loads((folder / "first.json").read_text())

    def do(self, unit: Unit, path: Path) -> dict:
        piece = int(unit.name)
        if piece in self.fails_at:
            raise self.error(f"piece {piece} is bad")
        rows = np.arange(piece * ROWS, (piece + 1) * ROWS) + self.first
        write_rows(self.folder / "content" / "squares.npy", piece * ROWS, rows**2)
        with open(self.folder.parent / "log", "a") as log:
            log.write(f"{piece} ")
        return {"largest": int(rows[-1])}

    def merge(self, records: list[dict], folder: Path) -> dict:
        return {"largest": max(record["largest"] for record in records)}


class Dies(Squares):
    def do(self, unit: Unit, path: Path) -> dict:
        os._exit(1)


def prepare(made: Path, first: int) -> None:
    (made / "first.json").write_text(json.dumps(first))
    create_rows(made / "content" / "squares.npy", np.int64, (PIECES * ROWS,))


def squares(folder: Path, first: int = 0, open_job=Squares, **more) -> WorkFolder:
    fill = partial(prepare, first=first)
    return WorkFolder(folder / "out", {"first": first}, open_job, fill, "square", "numbers", **more)


def complete(folder: Path, first: int = 0, open_job=Squares, workers: int = 1):
    return squares(folder, first, open_job).complete(workers)


def check(folder: Path, first: int = 0) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["log", "out"]
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["meta.json", "squares.npy"]
    np.testing.assert_array_equal(np.load(folder / "out" / "squares.npy"), (np.arange(PIECES * ROWS) + first) ** 2)
    meta = json.loads((folder / "out" / "meta.json").read_text())
    assert meta == {"largest": PIECES * ROWS - 1 + first, "options": {"first": first}}


def test_all_pieces_in_one_go(tmp_path, capsys):
    finished = complete(tmp_path)
    assert finished is not None and finished.items == PIECES * ROWS
    check(tmp_path)
    assert complete(tmp_path) is None and "is already there, made with these options" in capsys.readouterr().out
    assert sorted((tmp_path / "log").read_text().split()) == list("01234")


def test_what_has_a_record_is_not_done_again(tmp_path):
    with pytest.raises(UserError, match="piece 3 is bad"):
        complete(tmp_path, open_job=partial(Squares, fails_at=(3,)))
    assert not (tmp_path / "out").exists()
    assert complete(tmp_path).items == ROWS
    check(tmp_path)
    assert (tmp_path / "log").read_text().split() == list("01243")


def test_ranks_share_the_pieces(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert complete(tmp_path) is None
    said = capsys.readouterr().out
    assert said.startswith("part 0 of 2 is done; 6 of 15 numbers are left to others. Who ends last finishes")
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
        complete(tmp_path, open_job=partial(Squares, fails_at=(0,)))
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
    monkeypatch.setattr(unit_processes, "SAY", -1.0)
    complete(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == PIECES and lines[1].startswith("rank 0: 6 of 15 numbers, ")


def test_units_that_fail_are_named_and_the_others_done(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(unit_processes, "SAY", -1.0)
    with pytest.raises(DataError) as error:
        complete(tmp_path, open_job=partial(Squares, fails_at=(1, 3)), workers=2)
    assert str(error.value).splitlines() == [
        "square: 6 of 15 numbers cannot be used; mend them and repeat the command (what is done is kept):",
        "  piece 1 is bad",
        "  piece 3 is bad",
    ]
    assert sorted(capsys.readouterr().err.splitlines()) == ["square: piece 1 is bad", "square: piece 3 is bad"]
    assert complete(tmp_path).items == 2 * ROWS
    check(tmp_path)


def test_where_all_fail_it_ends_soon(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(work_folder, "HOPELESS", 2)
    monkeypatch.setattr(unit_processes, "SAY", -1.0)
    with pytest.raises(DataError, match="6 of 15 numbers cannot be used"):
        complete(tmp_path, open_job=partial(Squares, fails_at=(0, 1, 2, 3, 4)))
    assert capsys.readouterr().err == "square: piece 0 is bad\n"


class Texts:
    """A file of letters becomes a folder that holds them twice; where a number is in it, it cannot be used."""

    def __init__(self, folder: Path, texts: Path) -> None:
        self.content, self.texts = folder / "content", texts
        self.units = [Unit(f"a/{path.name}", (path,)) for path in sorted(texts.iterdir())]

    def do(self, unit: Unit, path: Path) -> dict:
        text = unit.inputs[0].read_text()
        path.mkdir()
        (path / "twice").write_text(text * 2)
        if text.isdecimal():
            raise DataError(f"{unit.name} has a number")
        if not text:
            raise UserError(f"{unit.name} is empty")
        return {"text": text}

    def merge(self, records: list[dict], folder: Path) -> dict:
        (folder / "a").mkdir()
        (folder / "a" / "all").write_text("".join(record.get("text", "-") for record in records))
        return {"failed": [record["failed"] for record in records if "failed" in record]}


def texts(tmp_path: Path, **more) -> WorkFolder:
    return WorkFolder(tmp_path / "out", {}, partial(Texts, texts=tmp_path / "texts"), **more)


@pytest.fixture
def files(tmp_path) -> Path:
    (tmp_path / "texts").mkdir()
    for name, text in (("1", "x"), ("2", "7"), ("3", "yy")):
        (tmp_path / "texts" / name).write_text(text)
    return tmp_path / "texts"


def test_what_was_made_of_a_file_that_changed_is_made_again(tmp_path, files):
    with pytest.raises(DataError, match="2 has a number"):
        texts(tmp_path).complete()
    (files / "3").write_text("zzz")
    (files / "2").write_text("w")
    assert texts(tmp_path).missing() == ["a/2", "a/3"] and texts(tmp_path).complete().items == 2
    assert (tmp_path / "out/a/all").read_text() == "xwzzz" and (tmp_path / "out/a/3/twice").read_text() == "zzzzzz"
    assert sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file()) == [
        "all", "meta.json", "twice", "twice", "twice"
    ]  # fmt: skip


def test_a_marker_is_of_what_is_there(tmp_path, files, monkeypatch):
    """A file changes, what is made of it has its name but no marker yet at a kill, and the file changes back."""
    (files / "2").unlink()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Texts, "merge", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        texts(tmp_path).complete()
    before = (files / "3").stat()
    (files / "3").write_text("zzz")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(unit_files, "write_atomic", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        texts(tmp_path).complete()
    (files / "3").write_text("yy")
    os.utime(files / "3", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert texts(tmp_path).complete().items == 1
    assert (tmp_path / "out/a/3/twice").read_text() == "yyyy"


def test_units_that_may_be_left_out_are_known_to_all_parts(tmp_path, files):
    """But what is no fault of their data is never left out."""
    assert texts(tmp_path, shard=(1, 2), max_bad=1).complete() is None
    finished = texts(tmp_path, shard=(0, 2), max_bad=1).complete()
    assert finished.meta["failed"] == ["a/2 has a number"] and (tmp_path / "out/a/all").read_text() == "x-yy"
    assert not (tmp_path / "out/a/2").exists(), "of what could not be used nothing is there"
    (files / "1").write_text("")
    with pytest.raises(DataError, match="^preprocess: 2 of 3 units cannot be used; mend"):
        WorkFolder(tmp_path / "other", {}, partial(Texts, texts=files), max_bad=3).complete()


def test_another_scheduler_does_units_in_any_order(tmp_path):
    work = squares(tmp_path)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work.do, reversed(work.missing()))) == [None] * PIECES
    assert work.complete().items == 0
    check(tmp_path)


def test_who_comes_late_changes_nothing(tmp_path, monkeypatch, capsys):
    """Another process finishes while this one is at a unit, when it has done its units, or merges."""
    for owner, what in ((Squares, "do"), (WorkFolder, "_run"), (Squares, "merge")):
        real = getattr(owner, what)

        def late(*arguments, owner=owner, what=what, real=real):
            if what == "_run":
                real(*arguments)
            monkeypatch.setattr(owner, what, real)
            complete(tmp_path)
            return real(*arguments) if what != "_run" else (0, {})

        monkeypatch.setattr(owner, what, late)
        assert complete(tmp_path) is None
        assert capsys.readouterr().out.endswith("out is there: another process has finished it\n")
        check(tmp_path)
        shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize(
    "numbers, expected",
    [((0, 4, 0, 3), (0, 4)), ((3, 3, 1, 3), (2, 3)), ((6, 4, 0, 6), (3, 4)), ((5, 1, 5, 5), (0, 1)), ((), (0, 1))],
)
def test_a_slurm_array_says_which_part(numbers, expected, capsys):
    names = ("ID", "COUNT", "MIN", "MAX")[: len(numbers)]
    known = {f"SLURM_ARRAY_TASK_{name}": str(number) for name, number in zip(names, numbers, strict=True)}
    assert shard_of(None, known) == expected and shard_of("1/2", known) == (1, 2)
    said = f"SLURM array: part {expected[0]} of {expected[1]} (--shard=0/1 does all)\n"
    assert capsys.readouterr().out == (said if expected[1] > 1 else "")


def test_a_slurm_array_with_gaps_does_not(capsys):
    known = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "1"}
    for more in ({}, {"SLURM_ARRAY_TASK_MAX": "9"}):
        with pytest.raises(UserError, match=r"have gaps \(SLURM_ARRAY_TASK_COUNT=3, .*give --shard=I/N; 0/1 does all"):
            shard_of(None, known | more)
