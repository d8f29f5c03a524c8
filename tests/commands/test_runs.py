"""Curated log directories: the right runs, the same again, and nothing overwritten that was not made here."""

import json
import os
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_train.commands.runs import Log, find, merge, select
from accel_train.errors import DataError, UserError

NEW_YEAR = datetime(2026, 1, 1).timestamp()


def events(
    folder: Path, content: str = "events", mtime: float = NEW_YEAR, name: str = "events.out.tfevents.1.h"
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content)
    os.utime(folder / name, (mtime, mtime))
    return folder / name


@pytest.fixture
def root(tmp_path) -> Path:
    """Run folders and plain log directories, as people have them."""
    root = tmp_path / "runs"
    events(root / "exp01" / "tensorboard")
    (root / "exp01" / "checkpoints").mkdir()
    events(root / "20260105-105330")
    events(root / "20260105-130000" / "train")
    events(root / "20260105-130000" / "validation")
    events(root / "group" / "exp02" / "tensorboard" / "deeper")
    events(root / ".hidden")
    (root / "empty" / "tensorboard").mkdir(parents=True)
    (root / "notes.txt").write_text("no run")
    return root


ALL = ["20260105-105330", "20260105-130000/train", "20260105-130000/validation", "exp01", "group/exp02"]


def names(logs) -> list[str]:
    return [log.name for log in logs]


def tree(folder: Path) -> dict[str, str | bytes]:
    """Everything below a folder, links as what they say, with the time of its last change."""
    return {
        str(p.relative_to(folder)): os.readlink(p) if p.is_symlink() else f"{p.read_text()} {p.stat().st_mtime_ns}"
        for p in sorted(folder.rglob("*"))
        if p.is_symlink() or p.is_file()
    }


def test_every_run_is_found_once(root):
    assert names(find(root)) == ALL
    (root / "loop").symlink_to(root)
    (root / "again").symlink_to(root / "exp01")
    assert names(find(root)) == sorted([*ALL, "again"])


def test_when_a_run_started(root):
    """What the run folder says, else its name, else its first event file."""
    run = root / "20260105-105330"
    started = {log.name: log.started for log in find(root)}
    assert started["20260105-105330"] == datetime(2026, 1, 5, 10, 53, 30)
    assert started["exp01"] == started["20260105-130000/train"] == datetime(2026, 1, 1)
    events(root / "exp01" / "tensorboard", mtime=NEW_YEAR + 999, name="events.out.tfevents.2.h")
    events(root / "20269999-999999")  # digits that are no time
    moment = datetime(2025, 7, 1, 12).astimezone()
    (run / "environment.json").write_text(json.dumps({"started": moment.astimezone(tz=None).isoformat()}))
    (root / "exp01" / "environment.json").write_text(json.dumps({"seed": 3}))  # of an older version
    started = {log.name: log.started for log in find(root)}
    assert started["20260105-105330"] == datetime(2025, 7, 1, 12)
    assert started["exp01"] == started["20269999-999999"] == datetime(2026, 1, 1)
    (run / "environment.json").write_text('{"started": 3}')
    with pytest.raises(DataError, match="environment.json is damaged"):
        find(root)


@pytest.mark.parametrize(
    ("conditions", "left"),
    [
        ({}, ALL),
        ({"match": "^2026"}, ALL[:3]),
        ({"match": "exp"}, ALL[3:]),
        ({"glob": "20260105-13*"}, ALL[1:3]),
        ({"glob": "exp*"}, ["exp01"]),
        ({"since": "20260105-105330"}, ["20260105-105330"]),
        ({"since": "20260105-105331"}, []),
        ({"since": "20250101-000000", "match": "0", "glob": "*2*"}, [*ALL[:3], "group/exp02"]),
    ],
)
def test_choosing(root, conditions, left):
    assert names(select(find(root), *(conditions.get(name) for name in ("since", "match", "glob")))) == left


@given(st.lists(st.tuples(st.text("ab/", min_size=1, max_size=4), st.datetimes(datetime(2000, 1, 1))), max_size=8))
def test_conditions_only_take_away_and_keep_the_order(pairs):
    logs = [Log(name, Path(name), started) for name, started in pairs]
    both = select(logs, "20260101-000000", "a", "*b*")
    assert both == [x for x in logs if x.started >= datetime(2026, 1, 1) and "a" in x.name and "b" in x.name]
    assert select(logs, None, None, None) == logs


@pytest.mark.parametrize("mode", ["symlink", "copy"])
def test_made_once_and_the_same_again(root, tmp_path, mode):
    dst = tmp_path / "combined"
    first = merge(dst, root, mode)
    assert [m.log.name for m in first] == ALL
    assert {m.action for m in first} == {"linked" if mode == "symlink" else "1 file copied"}
    for name in ALL:
        assert list((dst / name).rglob("events.out*")), name
    made = tree(dst)
    assert {m.action for m in merge(dst, root, mode)} == {"unchanged"}
    assert tree(dst) == made
    events(root / "exp01" / "tensorboard", "more events", NEW_YEAR + 5)
    events(root / "exp03")
    actions = {m.log.name: m.action for m in merge(dst, root, mode, match="exp")}
    assert actions == (
        {"exp01": "unchanged", "exp03": "linked", "group/exp02": "unchanged"}
        if mode == "symlink"
        else {"exp01": "1 file copied", "exp03": "1 file copied", "group/exp02": "unchanged"}
    )
    assert (dst / "exp01" / "events.out.tfevents.1.h").read_text() == "more events"
    assert (root / "exp01" / "tensorboard").is_dir() and not (root / "exp01" / "tensorboard").is_symlink()


def test_the_result_may_lie_among_the_runs(root):
    dst = root / "combined"
    merge(dst, root)
    assert names(merged.log for merged in merge(dst, root)) == ALL


def test_tensorboard_shows_what_was_chosen(tmp_path):
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
    from torch.utils.tensorboard import SummaryWriter

    for name in ("a", "b"):
        with SummaryWriter(str(tmp_path / "runs" / name / "tensorboard")) as writer:
            writer.add_scalar("loss", 1.0, 3)
    merge(tmp_path / "links", tmp_path / "runs")
    merge(tmp_path / "copies", tmp_path / "runs", "copy", glob="b")
    for folder, found in (("links", {"a", "b"}), ("copies", {"b"})):
        shown = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / folder)).Reload().Runs()
        assert set(shown) == found and all(tags["scalars"] == ["loss"] for tags in shown.values())


@pytest.mark.parametrize("what", ["file", "folder", "foreign link", "copy", "other run", "link above", "file above"])
def test_what_was_not_made_here_stays(root, tmp_path, what):
    dst, mode = tmp_path / "dst", "symlink"
    dst.mkdir()
    if what == "file":
        (dst / "exp01").write_text("mine")
    elif what == "folder":
        events(dst / "exp01", "mine")
    elif what == "foreign link":
        (dst / "exp01").symlink_to(tmp_path)
    elif what == "copy":
        merge(dst, root, "copy", glob="exp01")
    elif what == "other run":
        events(tmp_path / "others" / "exp01")
        merge(dst, tmp_path / "others")
    elif what == "link above":
        events(tmp_path / "others" / "group")
        merge(dst, tmp_path / "others")
        mode = "copy"  # which would write into the other run
    else:
        (dst / "group").write_text("mine")
    before, source = tree(dst), tree(tmp_path / "runs")
    with pytest.raises(UserError, match="in the way|choose another --dst") as caught:
        merge(dst, root, mode)
    assert "\n" not in str(caught.value) and str(dst) in str(caught.value)
    assert (tree(dst), tree(tmp_path / "runs")) == (before, source)


@pytest.mark.parametrize(
    ("conditions", "says"),
    [
        ({"match": "("}, "--match: '\\(' is not a regular expression"),
        ({"since": "yesterday"}, "--since: 'yesterday' is not a time; write YYYYMMDD-HHMMSS"),
        ({"match": "zzz"}, "no run under .* fits what was asked for"),
        ({"src_root": "nowhere"}, "no such folder"),
        ({"src_root": "runs/empty"}, "no TensorBoard files below it"),
        ({"src_root": "runs/exp01"}, "this is the log of one run; give the folder above it"),
        ({"dst": "runs/notes.txt"}, "in the way: it is a file"),
    ],
)
def test_what_cannot_be_asked(root, tmp_path, conditions, says):
    before = tree(tmp_path)
    given = {"src_root": "runs", "dst": "dst"} | conditions
    paths = {name: tmp_path / given.pop(name) for name in ("src_root", "dst")}
    with pytest.raises(UserError, match=says):
        merge(**paths, **given)
    assert tree(tmp_path) == before


def test_a_disk_without_links_is_named(root, tmp_path, monkeypatch):
    def refuse(path, target, **_):
        raise PermissionError(1, "Operation not permitted", str(target), None, str(path))

    monkeypatch.setattr(Path, "symlink_to", refuse)
    with pytest.raises(UserError, match="--mode symlink: .*exp01: Operation not permitted"):
        merge(tmp_path / "dst", root, glob="exp01")
