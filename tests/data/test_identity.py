"""A hundred silent changes of data, of all tasks and of one's own: each is noticed at the start or when it is read."""

from __future__ import annotations

import json
import os
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.kinds import KINDS, opened, read_all
from support.silent_changes import CASES, CHANGES

from accel_train.data.fingerprint import changed, unknown
from accel_train.errors import UserError
from accel_train.tasks.collatz import data as collatz_data
from accel_train.tasks.collatz.step import data as step_data
from accel_train.tasks.collatz.step.task import LongStepTask
from accel_train.tasks.collatz.task import CollatzTask
from accel_train.tasks.muon.task import MuonTask


@pytest.fixture(scope="module")
def first_session(tmp_path_factory):
    """Of each kind a folder, its fingerprint and the hashes of an epoch."""

    @cache
    def get(kind: str) -> tuple[Path, dict[str, Any], np.ndarray | None]:
        folder = tmp_path_factory.mktemp("data") / "made"
        KINDS[kind][0](folder)
        source = opened(kind, folder)
        found = json.loads(json.dumps(source.fingerprint()))
        read_all(source)
        contents = source.content_hashes()
        hashes = contents.hashes.copy() if contents is not None else None
        assert unknown(source, found) == [] and (hashes is None or hashes.any() or not len(hashes))
        return folder, found, hashes

    return get


def difference(kind: str, folder: Path, before: dict[str, Any], hashes: np.ndarray | None) -> str:
    """What a session that goes on with this folder says; "" for nothing."""
    try:
        source = opened(kind, folder)
        if what := changed(before, json.loads(json.dumps(source.fingerprint()))):
            return what
        if (contents := source.content_hashes()) is not None and hashes is not None:
            contents.hashes[:] = hashes
        read_all(source)
    except UserError as error:
        assert "\n" not in str(error)
        return str(error)
    return ""


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_moved_is_the_same(kind, first_session, tmp_path):
    folder, before, hashes = first_session(kind)
    shutil.copytree(folder, tmp_path / "moved")
    assert difference(kind, tmp_path / "moved", before, hashes) == ""


@pytest.mark.parametrize("kind, name, seed", CASES)
def test_a_silent_change_is_noticed(kind, name, seed, first_session, tmp_path):
    folder, before, hashes = first_session(kind)
    there = shutil.copytree(folder, tmp_path / "data")
    times = {path: path.stat().st_mtime_ns for path in there.rglob("*") if path.is_file()}
    CHANGES[kind][name][1](there, np.random.default_rng((seed, len(name))))
    for path, time in times.items():
        if path.exists():
            os.utime(path, ns=(time, time))
    assert difference(kind, there, before, hashes) != ""


def test_held_out_bundles_are_known_by_their_files_too(tmp_path):
    KINDS["muon"][0](tmp_path)

    def found() -> dict[str, Any]:
        task = MuonTask(files=f"{tmp_path}/*1.parquet", validation_files=[f"{tmp_path}/*[02].parquet"])
        source = task.build_data("validation", 8, 0)
        assert source is not None
        return source.fingerprint()

    before = found()
    assert changed(before, found()) == ""
    random = np.random.default_rng(0)
    for _ in range(20):  # a fifth of the rows is evaluated on
        CHANGES["muon"]["a value"][1](tmp_path, random)
    assert "the set of held-out events has another content" in changed(before, found())
    (path,) = tmp_path.glob("*2.parquet")
    path.unlink()
    assert f"{path.name} is gone" in changed(before, found())


def test_there_are_a_hundred():
    assert len(CASES) >= 100


@pytest.mark.parametrize("task, module", [(CollatzTask, collatz_data), (LongStepTask, step_data)])
def test_generated_data_are_known_by_the_version_of_their_rule(task, module, monkeypatch):
    before = task().build_data("train", 8, 1).fingerprint()
    assert changed(before, task().build_data("train", 8, 1).fingerprint()) == ""
    assert "generated was" in changed(before, task().build_data("train", 8, 2).fingerprint())
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    assert "generated was" in changed(before, task().build_data("train", 8, 1).fingerprint())


def test_what_changes_on_the_way_is_one_line(first_session, tmp_path):
    folder, before, hashes = first_session("gdynet")
    there = shutil.copytree(folder, tmp_path / "data")
    array = np.lib.format.open_memmap(there / "data" / "train" / "nbr_dists.npy", "r+")
    array[7, 0, 0] = np.nextafter(array[7, 0, 0], np.float32(9))
    array.flush()
    said = difference("gdynet", there, before, hashes)
    assert "train, frame 7: content differs from what this run read before (xxh3_64 " in said
    assert "allow_changed_data" in said
