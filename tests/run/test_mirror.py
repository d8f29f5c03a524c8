"""The mirror of a run: whole or not there, of one run, with one writer; and it comes back as it was."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from pathlib import Path

import fsspec
import pytest
from support.faulty_files import Fault, clear_memory, faulty

from accel_train.config.schema import TrainConfig
from accel_train.errors import UserError
from accel_train.run import mirror as mirrors
from accel_train.run.checkpoint import CheckpointFolder, verify
from accel_train.run.mirror import AheadError, Mirror, OvertakenError
from accel_train.run.mirror_folder import ForeignError

ABOUT = {"config": {"learning_rate": 0.01, "task": {"class_path": "x.Y"}}, "seed": 3}


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # as slow as the disk
    yield
    clear_memory()


@pytest.fixture(params=["path", "memory"])
def place(request, tmp_path):
    return str(tmp_path / "there") if request.param == "path" else "memory://there"


class Folder:
    """A run folder and its mirror, as one session has them."""

    def __init__(self, path: Path, place: str, about=ABOUT, limit: int | None = 3, every: int | None = None) -> None:
        self.path, self.said = path, []
        self.checkpoints = CheckpointFolder(path / "checkpoints", limit, every)
        path.mkdir(parents=True, exist_ok=True)
        self.mirror = Mirror(place, path, self.checkpoints, lambda: about, self.said.append)

    def save(self, *steps: int, best: int | None = None) -> Folder:
        for step in steps:
            temporary = self.checkpoints.begin(step)
            (temporary / "model.safetensors").write_bytes(f"weights {step} ".encode() * 40)
            (temporary / "random_states_0.pkl").write_bytes(b"states")
            progress = {"best_model": {"best": best and {"step": best, "value": 1.0}}}
            (temporary / "progress.json").write_text(json.dumps(progress))
            self.checkpoints.commit(step)
            self.checkpoints.prune()
            self.write("metrics.jsonl", "".join(f'{{"step": {n}}}\n' for n in range(step + 1)))
        return self

    def write(self, name: str, text: str) -> None:
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_text(text)

    def start(self, allow: bool = False) -> int | None:
        """As a run does; the step that it goes on from."""
        newest = self.checkpoints.newest_verified()[0]
        step = newest and self.checkpoints.step_of(newest.name)
        brought = self.mirror.bring_newer(step, allow)
        step = self.checkpoints.step_of(brought.name) if brought else step
        self.mirror.claim(step)
        return step

    def titles(self) -> str:
        return "\n".join(f"{event.kind}: {event.title}" for event in self.said)


def there(place: str, name: str = "") -> dict[str, bytes]:
    """What the mirror holds, by name."""
    fs, root = fsspec.url_to_fs(f"{place}/run")
    found = {path.removeprefix(root).lstrip("/"): path for path in (fs.find(root) if fs.exists(root) else [])}
    return {key: fs.cat_file(path) for key, path in found.items() if key.startswith(name)}


def change(place: str, name: str, data: bytes | None) -> None:
    fs, path = fsspec.url_to_fs(f"{place}/run/{name}")
    fs.rm(path) if data is None else fs.pipe_file(path, data)


def steps_there(place: str) -> list[int]:
    """Of whole checkpoints."""
    return sorted(int(re.findall(r"\d+", name)[0]) for name in there(place) if name.endswith("MANIFEST.json"))


def test_a_folder_that_is_gone_comes_back_as_it_was(tmp_path, place):
    one = Folder(tmp_path / "a" / "run", place)
    assert one.start() is None
    one.save(4, 8)
    one.write("best/model.safetensors", "the best")
    one.write("phases/0-x/config.json", "{}")
    one.write("figures/x.png", "not needed")
    assert one.mirror.copy(8) and not one.mirror.copy(8), "the second time it is there"
    other = Folder(tmp_path / "b" / "run", place)
    assert other.start() == 8
    assert other.titles() == f"note: resumed from {other.mirror.folder}, step 8"
    assert verify(other.checkpoints.path(8)) is None and other.checkpoints.linked("latest") == 8
    for name in ("metrics.jsonl", "best/model.safetensors", "phases/0-x/config.json"):
        assert (other.path / name).read_bytes() == (one.path / name).read_bytes()
    assert not (other.path / "figures").exists()
    assert mirrors.read(other.path)["run"] == mirrors.read(one.path)["run"]
    assert mirrors.read(one.path)["step"] == 8
    assert Folder(tmp_path / "b" / "run", place).start() == 8, "and what is here is not brought again"


def test_what_was_cut_off_anywhere_is_not_there(tmp_path):
    """The session ends after any number of its writes: what had been there is gone on from, log and all."""
    place, puts = str(tmp_path / "there"), 0
    while True:
        shutil.rmtree(tmp_path, ignore_errors=True)
        one = Folder(tmp_path / "a" / "run", place)
        one.start()
        one.save(4).mirror.copy(4)
        one.write("best/model.safetensors", "of step 8")
        one.save(8)
        with faulty(Fault("refused", after=puts)) as faults:
            with contextlib.suppress(UserError):
                one.mirror.copy(8)
        whole = faults.count("put_file") == puts
        other = Folder(tmp_path / "b" / "run", place)
        assert other.start() == (8 if whole else 4), puts
        assert "damaged" not in other.titles() and "weights" not in other.titles()
        assert len((other.path / "metrics.jsonl").read_text().splitlines()) >= (9 if whole else 5)
        if whole:
            break
        puts += 1
    assert puts >= 6


def test_a_flipped_bit_costs_that_checkpoint_and_it_is_made_whole_again(tmp_path, place):
    for name in ("model.safetensors", "progress.json", "random_states_0.pkl", "MANIFEST.json"):
        shutil.rmtree(tmp_path, ignore_errors=True)
        clear_memory()
        one = Folder(tmp_path / "a" / "run", place)
        one.start()
        for step in (4, 8):
            one.save(step).mirror.copy(step)
        full = f"checkpoints/step-000000008/{name}"
        data = bytearray(there(place)[full])
        data[len(data) // 2] ^= 4
        change(place, full, bytes(data))
        other = Folder(tmp_path / "b" / "run", place)
        assert other.start() == 4
        assert name == "MANIFEST.json" or f"step-000000008: {name} has been altered" in other.titles()
        assert other.checkpoints.steps() == [4] and not list(other.checkpoints.root.glob(".writing*"))
        other.save(8).mirror.copy(8)
        assert Folder(tmp_path / "c" / "run", place).start() == 8


def test_a_file_that_is_missing_and_a_manifest_that_points_elsewhere(tmp_path):
    place = str(tmp_path / "there")
    one = Folder(tmp_path / "a" / "run", place)
    one.start()
    for step in (4, 8, 12):
        one.save(step).mirror.copy(step)
    change(place, "checkpoints/step-000000012/model.safetensors", None)
    manifest = json.loads(there(place)["checkpoints/step-000000008/MANIFEST.json"])
    manifest["files"]["../../../outside"] = {"size": 1, "sha256": ""}
    change(place, "checkpoints/step-000000008/MANIFEST.json", json.dumps(manifest).encode())
    other = Folder(tmp_path / "b" / "run", place)
    assert other.start() == 4
    assert "model.safetensors is missing" in other.titles() and "names '../../../outside'" in other.titles()
    change(place, "checkpoints/step-000000004/progress.json", b"")
    with pytest.raises(UserError, match="checkpoint_mirror: every checkpoint in .* is damaged"):
        Folder(tmp_path / "c" / "run", place).start()


def test_the_retention_of_the_run_folder_holds_there_too(tmp_path, place):
    one = Folder(tmp_path / "a" / "run", place, limit=2, every=10)
    one.start()
    for step in range(2, 24, 2):
        one.save(step, best=6)
        one.checkpoints.link("best", 6) if step == 6 else None
        one.mirror.copy(step)
        one.mirror.prune()
    assert steps_there(place) == one.checkpoints.steps() == [6, 10, 20, 22]
    kept = {name.split("/")[1] for name in there(place, "checkpoints/")}
    assert len(kept) == 4, "nothing is left of the others"


def test_what_a_killed_session_left_is_removed(tmp_path):
    place = str(tmp_path / "there")
    one = Folder(tmp_path / "a" / "run", place, limit=2)
    one.start()
    one.save(4).mirror.copy(4)
    change(place, "checkpoints/step-000000004/MANIFEST.json", None)
    one.save(8).mirror.copy(8)
    one.mirror.prune()
    assert {name.split("/")[1] for name in there(place, "checkpoints/")} == {"step-000000008"}


@pytest.mark.parametrize("kind", ["another rate", "its own id", "no mirror", "a damaged mark"])
def test_what_is_another_runs_is_refused_before_anything_is_written(tmp_path, place, kind):
    one = Folder(tmp_path / "a" / "run", place)
    one.start()
    one.save(4).mirror.copy(4)
    about, allow = ABOUT, kind != "another rate"
    if kind == "another rate":
        about = ABOUT | {"config": ABOUT["config"] | {"learning_rate": 0.02}}
        says = r"belongs to another run: config.learning_rate: 0.01 -> 0.02; give another checkpoint_mirror"
    elif kind == "its own id":
        says = "belongs to another run than"
    elif kind == "no mirror":
        change(place, "mirror.json", None)
        says = "has checkpoints in it and no mirror.json, so it is no mirror"
    else:
        change(place, "mirror.json", b'{"run": ')
        says = "is damaged; remove it if"
    other = Folder(tmp_path / "b" / "run", place, about)
    if kind == "its own id":
        other.save(8)
    before, here = there(place), sorted(other.path.rglob("*"))
    with pytest.raises(ForeignError, match=says) as caught:
        other.start(allow)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("checkpoint_mirror: ")
    assert (there(place), sorted(other.path.rglob("*"))) == (before, here)
    if kind == "another rate":
        assert other.start(allow=True) == 4


def test_a_mirror_has_one_writer_the_one_that_came_last(tmp_path, place):
    one = Folder(tmp_path / "a" / "run", place)
    one.start()
    one.save(4).mirror.copy(4)
    two = Folder(tmp_path / "b" / "run", place)
    assert two.start() == 4
    before = there(place)
    with pytest.raises(ForeignError, match="is written by another session of the run since"):
        one.save(8).mirror.copy(8)
    assert there(place) == before
    assert two.save(8).mirror.copy(8)


def test_a_session_that_loses_it_in_the_middle_of_a_copy_does_not_take_it_back(tmp_path):
    place = str(tmp_path / "there")
    one = Folder(tmp_path / "a" / "run", place)
    one.start()
    two = Folder(tmp_path / "b" / "run", place)

    def go_on():
        go_on.files = getattr(go_on, "files", 0) + 1
        if go_on.files == 2:
            two.start()

    with pytest.raises(ForeignError):
        one.save(4).mirror.copy(4, go_on)
    assert steps_there(place) == []
    assert two.save(4).mirror.copy(4)


def test_a_run_that_would_go_on_from_before_is_refused(tmp_path):
    place = str(tmp_path / "there")
    one = Folder(tmp_path / "a" / "run", place)
    one.start()
    one.save(4, 8).mirror.copy(8)
    for step in (4, None):
        with pytest.raises(UserError, match=r"holds newer checkpoints \(step 8\) than this run would go on from"):
            Folder(tmp_path / "a" / "run", place).mirror.claim(step)


def test_without_an_answer_a_run_goes_on_from_here_or_not_at_all(tmp_path, place):
    with faulty(Fault("gone", "cat_file")), pytest.raises(UserError, match="it is not known what there is") as caught:
        Folder(tmp_path / "a" / "run", place).start()
    assert str(caught.value).startswith("checkpoint_mirror: ") and "\n" not in str(caught.value)
    with faulty(Fault("refused")), pytest.raises(UserError, match="Permission denied"):
        Folder(tmp_path / "a" / "run", place).start()
    one = Folder(tmp_path / "a" / "run", place).save(4)
    with faulty(Fault("gone", "cat_file")):
        assert one.start() == 4
    assert one.titles().count("warning") == 1 and "going on without it, and trying again" in one.titles()
    one.mirror.copy(4)
    assert Folder(tmp_path / "b" / "run", place).start() == 4


def test_one_that_found_no_answer_does_not_write_over_what_is_further_on(tmp_path):
    place = str(tmp_path / "there")
    one = Folder(tmp_path / "a" / "run", place)
    one.start()
    one.save(4).mirror.copy(4)
    shutil.copytree(one.path, tmp_path / "b" / "run")
    one.save(8).mirror.copy(8)
    two = Folder(tmp_path / "b" / "run", place)
    with faulty(Fault("gone", "cat_file")):
        assert two.start() == 4
    before = there(place)
    with pytest.raises(AheadError, match="start the run again to go on from there"):
        two.save(6).mirror.copy(6)
    assert there(place) == before
    two.save(10).mirror.copy(10)
    assert steps_there(place) == [4, 8, 10]


def test_no_answer_at_all_delays_a_start_only_so_long(tmp_path, monkeypatch):
    monkeypatch.setattr(mirrors, "LOOK_S", 0.1)
    one = Folder(tmp_path / "a" / "run", "memory://there").save(4)
    with faulty(Fault("hang", "cat_file")):
        assert one.start() == 4
    assert "gives no answer" in one.titles()


def test_a_write_that_is_cut_is_noticed_and_repeated(tmp_path):
    one = Folder(tmp_path / "a" / "run", "memory://there")
    one.start()
    one.save(4)
    with faulty(Fault("cut", part="model.safetensors", times=1)) as faults:
        one.mirror.copy(4)
    assert faults.count("put_file", "model.safetensors") == 2
    with faulty(Fault("cut", part="model.safetensors")), pytest.raises(UserError, match="bytes arrived instead of"):
        one.save(8).mirror.copy(8)
    assert Folder(tmp_path / "b" / "run", "memory://there").start() == 4


def test_what_is_being_copied_stays_until_that_is_done(tmp_path):
    one = Folder(tmp_path / "a" / "run", "memory://there", limit=1)
    one.start()
    one.save(4)
    one.mirror.copy(4, lambda: None if 8 in one.checkpoints.steps() else one.save(8) and None)
    assert steps_there("memory://there") == [4] and one.checkpoints.steps() == [4, 8]
    one.save(12)
    assert one.checkpoints.steps() == [12]
    with pytest.raises(OvertakenError):
        one.mirror.copy(8)


def test_a_mirror_that_somebody_emptied_is_filled_again(tmp_path):
    one = Folder(tmp_path / "a" / "run", "memory://there")
    one.start()
    one.write("best/model.safetensors", "the best")
    one.save(4).mirror.copy(4)
    clear_memory()
    one.save(8).mirror.copy(8)
    assert {"best/model.safetensors", "mirror.json"} <= there("memory://there").keys()


def test_places_that_are_refused(tmp_path):
    for place in (str(tmp_path), str(tmp_path / "run" / "x"), f"file://{tmp_path}/run"):
        with pytest.raises(UserError, match="is in the run folder; give another place"):
            Folder(tmp_path / "run", place)
    for url in ("pelican://osg-htc.org/a", "osdf:///a", "https://host/a"):
        with pytest.raises(UserError, match="checkpoint_mirror: behind .* can be neither removed"):
            TrainConfig(checkpoint_mirror=url)
    with pytest.raises(UserError, match="checkpoint_mirror: a URL with a user or password") as caught:
        TrainConfig(checkpoint_mirror="s3://me:hidden@host/a")
    assert "hidden" not in str(caught.value)
    with pytest.raises(UserError, match="checkpoint_mirror: nosuch://x/run/mirror.json: cannot be reached"):
        Folder(tmp_path / "run", "nosuch://x").start()


def test_a_place_that_cannot_be_made(tmp_path):
    with pytest.raises(UserError, match="checkpoint_mirror: /proc/nowhere/run/mirror.json cannot be written"):
        Folder(tmp_path / "run", "/proc/nowhere").start()


def test_a_mirror_that_was_copied_by_hand_is_the_run_folder(tmp_path):
    place = str(tmp_path / "there")
    one = Folder(tmp_path / "a" / "run", place)
    one.start()
    assert mirrors.describe(one.path) == f"mirror {place}/run: nothing copied yet"
    one.save(4).mirror.copy(4)
    assert mirrors.describe(one.path).startswith(f"mirror {place}/run: step 4, copied 20")
    shutil.copytree(tmp_path / "there" / "run", tmp_path / "b" / "run")
    other = Folder(tmp_path / "b" / "run", place)
    assert mirrors.describe(other.path) == "" and other.start() == 4 and other.titles() == ""
    assert mirrors.describe(tmp_path) == ""


def test_what_is_damaged_here_comes_back_from_there(tmp_path):
    one = Folder(tmp_path / "a" / "run", "memory://")
    one.start()
    for step in (4, 8):
        one.save(step).mirror.copy(step)
    (one.checkpoints.path(8) / "model.safetensors").write_text("damaged")
    assert Folder(tmp_path / "a" / "run", "memory://").start() == 8
    assert one.checkpoints.newest_verified() == (one.checkpoints.path(8), [])
