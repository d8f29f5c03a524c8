"""Checkpoints are whole or absent, whatever a kill interrupts."""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from unittest import mock

import pytest
import xxhash

from accel_train.errors import UserError
from accel_train.run.checkpoint import MANIFEST, CheckpointFolder, verified, verify, write_manifest
from accel_train.system.writing import files_in, replace_folder


def save(root: Path, step: int, **retention) -> CheckpointFolder:
    """One checkpoint as the loop writes it."""
    folder = CheckpointFolder(root, **retention)
    temporary = folder.begin(step)
    (temporary / "model.safetensors").write_bytes(os.urandom(64))
    (temporary / "deep").mkdir()
    (temporary / "deep" / "progress.json").write_text(json.dumps({"step": step}))
    folder.commit(step)
    folder.link("latest", step)
    return folder


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


# -- one at a time ---------------------------------------------------------------------------------------------------


def test_a_checkpoint_lists_and_hashes_all_its_files(tmp_path):
    folder = save(tmp_path, 12)
    path = tmp_path / "step-000000012"
    manifest = json.loads((path / MANIFEST).read_text())
    assert manifest["step"] == 12 and sorted(manifest["files"]) == ["deep/progress.json", "model.safetensors"]
    for name, entry in manifest["files"].items():
        content = (path / name).read_bytes()
        assert entry == {"size": len(content), "xxh3_128": xxhash.xxh3_128_hexdigest(content)}
    assert verify(path) is None and verified(path) == path
    assert names(tmp_path) == ["latest", "step-000000012"] and folder.linked("latest") == 12
    assert os.readlink(tmp_path / "latest") == "step-000000012", "a relative link survives a moved run folder"


def test_other_hashes_in_a_manifest(tmp_path):
    """Checkpoints of earlier versions have SHA-256; what a later one may have is not taken for damage of a file."""
    save(tmp_path, 12)
    path = tmp_path / "step-000000012"
    manifest = json.loads((path / MANIFEST).read_text())
    for name, entry in manifest["files"].items():
        entry["sha256"] = hashlib.sha256((path / name).read_bytes()).hexdigest()
        del entry["xxh3_128"]
    (path / MANIFEST).write_text(json.dumps(manifest))
    assert verify(path) is None
    _alter(path / "model.safetensors")
    assert verify(path) == "model.safetensors has been altered (its sha256 differs)"
    (path / MANIFEST).write_text(json.dumps(manifest).replace("sha256", "md7"))
    assert "has no hash of deep/progress.json that is known here (xxh3_128, sha256)" in str(verify(path))


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def _alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)


def test_a_model_folder_is_no_damaged_checkpoint(tmp_path):
    (tmp_path / "config.json").touch()
    with pytest.raises(UserError, match="is a model folder, from which no run can go on: give a checkpoint"):
        verified(tmp_path)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda p: (p / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda p: _append(p / "model.safetensors"), "model.safetensors has 65 bytes instead of 64"),
        (lambda p: _alter(p / "model.safetensors"), "model.safetensors has been altered"),
        (lambda p: (p / "deep/new").touch(), "deep/new is not in MANIFEST.json"),
        (lambda p: (p / MANIFEST).unlink(), "MANIFEST.json is missing"),
        (lambda p: (p / MANIFEST).write_text("{"), "MANIFEST.json cannot be read"),
        (lambda p: (p / MANIFEST).write_text("[]"), "MANIFEST.json cannot be read"),
        (lambda p: (p / MANIFEST).write_text('{"files": {}}'), "MANIFEST.json lists no files"),
        (lambda p: (p / MANIFEST).write_text('{"files": {"deep/progress.json": 3}}'), "MANIFEST.json cannot be read"),
        (lambda p: (p / MANIFEST).write_bytes(b"\xff\xfe"), "MANIFEST.json cannot be read"),
        (lambda p: shutil.rmtree(p / "deep"), "deep/progress.json is missing"),
    ],
)
def test_damage_is_named_and_the_one_before_is_used(tmp_path, damage, says):
    save(tmp_path, 1)
    folder = save(tmp_path, 2)
    damage(folder.path(2))
    assert says in (verify(folder.path(2)) or "")
    path, damaged = folder.newest_verified()
    assert path == folder.path(1) and len(damaged) == 1 and says in str(damaged[0])
    with pytest.raises(UserError, match="is damaged: .*resume_from_checkpoint=auto"):
        folder.find("2")


def test_finding_one(tmp_path):
    root = tmp_path / "run" / "checkpoints"
    folder = CheckpointFolder(root)
    assert folder.newest_verified() == (None, []) and folder.steps() == [] and folder.linked("best") is None
    with pytest.raises(UserError, match="no checkpoint that can be used"):
        folder.find("latest")
    for step in (5, 10, 15):
        save(root, step)
    with pytest.raises(UserError, match="there is no best checkpoint .*; use latest"):
        folder.find("best")
    folder.link("best", 10)
    assert folder.linked("best") == 10
    for which, step in (("latest", 15), ("5", 5), ("best", 10), (str(folder.path(10)), 10), (str(root.parent), 15)):
        assert folder.find(which).resolve() == folder.path(step), which
    with pytest.raises(UserError, match="step-000000007 does not exist; there are steps 5, 10, 15"):
        folder.find("7")
    for step in (5, 10, 15):
        (folder.path(step) / MANIFEST).unlink()
    with pytest.raises(
        UserError, match="no checkpoint that can be used; step-000000015 is damaged: .*; step-000000010"
    ):
        folder.find("latest")


def test_things_that_are_not_checkpoints_are_left_alone(tmp_path):
    folder = save(tmp_path, 3)
    (tmp_path / "step-notes").mkdir()
    (tmp_path / "step-000000009").write_text("a file")
    (tmp_path / "set-aside-step-000000004").mkdir()
    (tmp_path / ".writing-000000004").mkdir()
    (tmp_path / ".writing-latest").symlink_to("nowhere")
    assert folder.steps() == [3]
    folder.tidy()
    assert names(tmp_path) == ["latest", "set-aside-step-000000004", "step-000000003", "step-000000009", "step-notes"]


# -- which ones stay -------------------------------------------------------------------------------------------------


def kept(root: Path, best: int | None = None, **retention) -> list[int]:
    for step in range(10, 80, 10):
        folder = save(root, step, **retention)
        if step == best:
            folder.link("best", step)
        folder.prune()
    return folder.steps()


def test_retention(tmp_path):
    assert kept(tmp_path / "all") == [10, 20, 30, 40, 50, 60, 70]
    assert kept(tmp_path / "two", limit=2) == [60, 70]
    assert kept(tmp_path / "one", limit=1) == [70]
    assert kept(tmp_path / "best", best=30, limit=2) == [30, 60, 70]
    assert kept(tmp_path / "every", limit=1, keep_every=30) == [30, 60, 70]
    assert kept(tmp_path / "both", best=20, limit=2, keep_every=40) == [20, 40, 60, 70]
    assert CheckpointFolder(tmp_path / "best", limit=2).prune() == []
    assert CheckpointFolder(tmp_path / "two", limit=1).prune() == [60]


def test_newer_ones_are_set_aside(tmp_path):
    for step in (1, 2, 3):
        folder = save(tmp_path, step)
    folder.link("best", 1)
    moved = folder.set_aside(1)
    assert [path.name for path in moved] == ["set-aside-step-000000002", "set-aside-step-000000003"]
    assert folder.steps() == [1] and folder.linked("latest") is None and folder.linked("best") == 1
    save(tmp_path, 2)
    assert len(folder.set_aside(0)) == 2 and folder.steps() == [] and folder.linked("best") is None
    assert all(verify(path) is None for path in tmp_path.iterdir()), "set aside, not damaged"


# -- killed between any two operations -------------------------------------------------------------------------------


class Killed(BaseException):
    """Not an Exception, so that nothing can swallow it."""


CALLS = ("replace", "rename", "symlink", "unlink", "rmdir", "mkdir", "fsync", "open")


@contextlib.contextmanager
def killed_at(k: int):
    """The process dies right before the k-th change to the disk; yields a function that says whether it did."""
    count = 0

    def dying(function):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count > k:
                raise Killed
            return function(*args, **kwargs)

        return call

    with contextlib.ExitStack() as stack:
        for name in CALLS:
            stack.enter_context(mock.patch.object(os, name, dying(getattr(os, name))))
        with contextlib.suppress(Killed):
            yield lambda: count > k


def scenario_new(root: Path) -> CheckpointFolder:
    return save(root, 200, limit=1)


def scenario_new_and_prune(root: Path) -> CheckpointFolder:
    folder = save(root, 200, limit=1)
    folder.link("best", 200)
    folder.prune()
    return folder


def scenario_same_step_again(root: Path) -> CheckpointFolder:
    return save(root, 100, limit=1)


def scenario_set_aside(root: Path) -> CheckpointFolder:
    folder = CheckpointFolder(root)
    folder.set_aside(50)
    return folder


def scenario_tidy(root: Path) -> CheckpointFolder:
    folder = CheckpointFolder(root, limit=1)
    (folder.begin(300) / "half").write_text("written")
    os.replace(folder.path(100), root / ".writing-old-000000100")
    folder.tidy()
    return folder


@pytest.mark.parametrize(
    "scenario",
    [scenario_new, scenario_new_and_prune, scenario_same_step_again, scenario_set_aside, scenario_tidy],
    ids=lambda f: f.__name__.removeprefix("scenario_"),
)
def test_a_kill_between_any_two_operations_loses_nothing(tmp_path, scenario):
    before = tmp_path / "before"
    save(before, 50)
    save(before, 100).link("best", 100)
    k, died = 0, True
    while died:
        root = tmp_path / str(k)
        shutil.copytree(before, root, symlinks=True)
        died = True
        with killed_at(k) as dead:
            scenario(root)
            died = dead()
        for _ in range(2):  # the next start, and the one after it
            folder = CheckpointFolder(root, limit=1)
            folder.tidy()
            path, damaged = folder.newest_verified()
            assert damaged == [] and path is not None, k
            assert not list(root.glob(".writing-*")), k
        step = int(path.name[-9:])
        assert step in ((50, 100) if scenario is scenario_set_aside else (100, 200)), k
        for link in ("latest", "best"):
            if folder.linked(link) is not None and scenario is not scenario_set_aside:
                assert verify(root / link) is None, (k, link)
        if scenario is scenario_set_aside:
            folder.set_aside(50)
            assert folder.newest_verified()[0] == folder.path(50) and folder.linked("latest") is None
        else:  # and it goes on from there
            save(root, 400, limit=1).prune()
            assert CheckpointFolder(root).newest_verified()[0] == folder.path(400)
        shutil.rmtree(root)
        k += 1
    assert k > 3


def test_a_swapped_folder_is_the_old_or_the_new_one(tmp_path):
    def fill(text: str):
        return lambda folder: (folder / "file").write_text(text)

    k, died = 0, True
    while died:
        final = tmp_path / str(k) / "model"
        replace_folder(final, fill("old"))
        died = True
        with killed_at(k) as dead:
            replace_folder(final, fill("new"))
            died = dead()
        copies = [path for path in (final, final.with_name(".model.old")) if (path / "file").exists()]
        assert {(path / "file").read_text() for path in copies[:1]} <= {"old", "new"} and copies, k
        replace_folder(final, fill("newest"))
        assert (final / "file").read_text() == "newest" and names(final.parent) == ["model"], k
        k += 1
    assert k > 3


def test_a_full_disk_leaves_the_old_one(tmp_path):
    folder = save(tmp_path, 1)
    (folder.begin(2) / "half").write_text("x")
    with mock.patch.object(os, "fsync", side_effect=OSError("No space left")), pytest.raises(OSError):
        folder.commit(2)
    folder.abandon(2)
    assert names(tmp_path) == ["latest", "step-000000001"] and verify(folder.path(1)) is None


def test_a_manifest_never_lists_itself(tmp_path):
    (tmp_path / "a").write_text("x")
    for _ in range(2):
        write_manifest(tmp_path, {})
        assert verify(tmp_path) is None
    assert [path.name for path in files_in(tmp_path)] == [MANIFEST, "a"]


# -- links -----------------------------------------------------------------------------------------------------------


def as_copied(root: Path) -> None:
    """By a tool that follows links."""
    for name in ("latest", "best"):
        target = (root / name).resolve()
        (root / name).unlink()
        shutil.copytree(target, root / name)


def three(root: Path) -> CheckpointFolder:
    for step in (1, 2, 3):
        folder = save(root, step, limit=1)
    folder.link("best", 2)
    return folder


def test_links_that_a_copy_made_folders_of(tmp_path):
    folder = three(tmp_path)
    as_copied(tmp_path)
    assert folder.linked("latest") == 3 and folder.linked("best") == 2
    assert folder.find("best") == folder.path(2) and folder.prune() == [1]
    done = folder.mend_links()
    assert len(done) == 2 and "latest was a copy of step-000000003: it is a link again" in done[0]
    assert (tmp_path / "best").is_symlink() and folder.linked("best") == 2
    assert folder.mend_links() == [] and names(tmp_path) == ["best", "latest", "step-000000002", "step-000000003"]


@pytest.mark.parametrize("lost", ["gone", "damaged"])
def test_a_copied_link_may_be_the_only_whole_copy(tmp_path, lost):
    folder = three(tmp_path)
    as_copied(tmp_path)
    if lost == "gone":
        shutil.rmtree(folder.path(2))
        assert folder.find("best") == tmp_path / "best"
    else:
        _alter(folder.path(2) / "model.safetensors")
    done = folder.mend_links()
    if lost == "gone":  # then it becomes the checkpoint again
        assert verify(folder.path(2)) is None and folder.linked("best") == 2
    else:
        assert verify(tmp_path / "set-aside-best") is None and "no copy of a whole checkpoint" in done[1]


def test_a_folder_that_is_called_latest_and_is_something_else_is_kept(tmp_path):
    folder = save(tmp_path, 1)
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").mkdir()
    (tmp_path / "latest" / "notes").write_text("mine")
    assert folder.linked("latest") is None
    folder.mend_links()
    assert (tmp_path / "set-aside-latest" / "notes").read_text() == "mine"
    save(tmp_path, 2)
    assert folder.linked("latest") == 2


def test_without_symbolic_links(tmp_path):
    """As SMB, exFAT and some FUSE mounts answer."""
    with mock.patch.object(os, "symlink", side_effect=OSError(95, "Operation not supported")):
        folder = three(tmp_path)
        assert (tmp_path / "best").read_text() == "step-000000002\n" and not (tmp_path / "best").is_symlink()
        assert folder.linked("latest") == 3 and folder.linked("best") == 2 and folder.prune() == [1]
        assert folder.find("best") == folder.path(2) == verified(tmp_path / "best")
        assert folder.mend_links() == [] and folder.set_aside(2) == [tmp_path / "set-aside-step-000000003"]
        assert folder.linked("latest") is None and folder.linked("best") == 2


def test_files_may_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o027)
    try:
        temporary = CheckpointFolder(tmp_path).begin(1)
        (temporary / "model.safetensors").touch(mode=0o600)
        path = CheckpointFolder(tmp_path).commit(1)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in files_in(path)} == {0o640}
