"""Hashes of what was read: between sessions, processes and ranks, and while somebody changes the files."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from support.kinds import KINDS, opened, read_all
from support.silent_changes import nudge

from accel_train import mapped
from accel_train.contents import Contents
from accel_train.data.loader import Loader
from accel_train.errors import DataError
from accel_train.plan import Position
from accel_train.task import BatchSource

MAPPED = {
    "gdynet": ("data/train/nbr_dists.npy", np.s_[20:21]),
    "tcn": ("made/shots/104.npy", np.s_[:, 60:120]),
    "muon cache": ("cache/flat/flat.muons.npy", ...),
    "sherlock": ("made/fmri/*/*.npy", slice(0, 10)),
    "own, large": ("x.npy", ...),
}
"""Of each kind a file that is mapped, and a part of it that is read."""


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    @cache
    def get(kind: str) -> Path:
        folder = tmp_path_factory.mktemp("data") / "made"
        KINDS[kind][0](folder)
        opened(kind, folder)  # a cache is built by then
        return folder

    return get


@pytest.fixture
def made(kept, tmp_path, monkeypatch) -> Callable[[str], Path]:
    """A folder of one's own; its files count as old."""
    monkeypatch.setattr(mapped, "SETTLED_NS", -(10**18))

    def get(kind: str) -> Path:
        return shutil.copytree(kept(kind), tmp_path / "data")

    return get


@pytest.fixture
def hashed(monkeypatch) -> list[int]:
    """Blocks that are looked at from now on."""
    found, look = list[int](), Contents.look

    def noted(self: Contents, block: int, arrays: Iterable[np.ndarray]) -> None:
        found.append(block)
        look(self, block, arrays)

    monkeypatch.setattr(Contents, "look", noted)
    return found


def session(kind: str, folder: Path, before: dict[str, np.ndarray] | None = None) -> tuple[BatchSource, Contents]:
    source = opened(kind, folder)
    contents = source.content_hashes()
    assert contents is not None
    if before is not None:
        contents.go_on(before)
    return source, contents


def write(kind: str, folder: Path) -> Path:
    """A value into one of the mapped files, in place; the time of writing is set back."""
    pattern, where = MAPPED[kind]
    path = sorted(folder.glob(pattern))[0]
    before = path.stat()
    nudge(str(path.relative_to(folder)), where)(folder, np.random.default_rng(0))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return path


@pytest.mark.parametrize("kind", MAPPED)
def test_files_that_nobody_has_touched_are_not_hashed_again(kind, made, hashed):
    folder = made(kind)
    source, contents = session(kind, folder)
    read_all(source)
    assert hashed and contents.state()["checked"].all()
    del hashed[:]
    source, contents = session(kind, folder, contents.state())
    read_all(source)
    assert len(hashed) == 0 and contents.state()["checked"].all()
    write(kind, folder)
    source, _ = session(kind, folder, contents.state())
    with pytest.raises(DataError, match="content differs from what this run read before"):
        read_all(source)


def test_files_that_moved_or_are_new_are_hashed_again(made, hashed, monkeypatch, tmp_path):
    folder = made("gdynet")
    source, contents = session("gdynet", folder)
    read_all(source)
    shutil.copytree(folder, tmp_path / "moved")
    moved, there = session("gdynet", tmp_path / "moved", contents.state())
    assert not there.state()["checked"].any()
    moved.batch(0, 0, 0, 1)  # what was not read in this place is not known of it
    assert 0 < there.state()["checked"].sum() < there.hashes.astype(bool).sum()
    monkeypatch.setattr(mapped, "SETTLED_NS", 10**12)
    assert len(contents.state()["files"]) == 0, "a later change could have the same time"
    again, _ = session("gdynet", folder, contents.state())
    del hashed[:]
    read_all(again)
    assert len(hashed) == len(contents.hashes)


@pytest.mark.parametrize("kind", MAPPED)
def test_a_file_that_is_written_to_while_it_is_read(kind, made):
    folder = made(kind)
    source, contents = session(kind, folder)
    read_all(source)
    path = write(kind, folder)
    assert contents.look_at_files() == [], (
        "only a time of change that may mean nothing, so what is read next is compared"
    )
    with pytest.raises(DataError, match="content differs from what this run read before"):
        read_all(source)
    os.utime(path)
    with pytest.raises(DataError, match=f"{path} was written to while this run was reading") as error:
        contents.look_at_files()
    assert "\n" not in str(error.value)


def test_rights_and_links_are_no_change(made, hashed):
    folder = made("gdynet")
    source, contents = session("gdynet", folder)
    read_all(source)
    (path,) = folder.glob("data/train/nbr_dists.npy")
    path.chmod(0o600)
    os.link(path, folder / "further")
    assert contents.look_at_files() == []
    del hashed[:]
    read_all(source)
    assert len(hashed) == len(contents.hashes)
    assert len(contents.state()["files"]) == 0


@pytest.mark.parametrize("kind", MAPPED)
def test_a_file_that_another_one_replaces_is_read_on(kind, made, tmp_path):
    folder = made(kind)
    source, contents = session(kind, folder)
    read_all(source)
    path = sorted(folder.glob(MAPPED[kind][0]))[0]
    os.rename(path, tmp_path / "aside")
    shutil.copy2(tmp_path / "aside", path)
    write(kind, folder)
    (said,) = contents.look_at_files()
    assert f"{path} was replaced or removed" in said and contents.look_at_files() == []
    read_all(source)
    source, _ = session(kind, folder, contents.state())
    with pytest.raises(DataError, match="content differs"):
        read_all(source)


def test_with_changed_data_allowed_it_is_said(made):
    folder = made("gdynet")
    _, contents = session("gdynet", folder)
    contents.watch("validation data", tolerant=True)
    path = write("gdynet", folder)
    os.utime(path)
    assert contents.look_at_files() == []
    (said,) = contents.found_other()
    assert said.startswith(f"validation data, {path} was written to")


@pytest.mark.parametrize("kind", MAPPED)
def test_what_goes_to_a_process_is_looked_at_there(kind, made):
    folder = made(kind)
    source, contents = session(kind, folder)
    read_all(source)
    there = pickle.loads(pickle.dumps(source)).content_hashes()
    assert not there.due(np.arange(contents.blocks)), "what is known needs no second look"
    path = sorted(folder.glob(MAPPED[kind][0]))[0]
    os.rename(path, folder / "aside")
    shutil.copy2(folder / "aside", path)
    sent = pickle.loads(pickle.dumps(source))
    read_all(sent)
    assert len(sent.content_hashes().news()[0]) == len(contents.hashes), "other files than those of the loop"


def test_worker_processes_tell_what_they_read(made, tmp_path):
    there = made("gdynet")
    first, known = session("gdynet", there)
    read_all(first)
    nudge("data/train/nbr_dists.npy", np.s_[20:21])(there, np.random.default_rng(0))
    source, _ = session("gdynet", there, known.state())
    loader = Loader(source, torch.device("cpu"), num_workers=1, worker_type="process")
    with pytest.raises(DataError, match="train, frame 20: content differs"):
        for _ in loader.batches(Position(), last_epoch=1):
            pass


def test_ranks_tell_each_other():
    first, second = Contents(5, "block {}".format), Contents(5, "block {}".format)
    for contents, blocks in ((first, (0, 1)), (second, (1, 2))):
        contents.watch()
        for block in blocks:
            contents.look(block, [np.arange(block)])
    news = [first.news(), second.news()]
    for each in (first, second):
        for found in news:
            each.learn(found)
    assert np.array_equal(first.hashes, second.hashes) and first.about()["read"] == 3
    second.look(3, [np.arange(3)])
    second.hashes[0] += np.uint64(1)
    with pytest.raises(DataError, match="block 0: content differs"):
        second.learn(news[0])
