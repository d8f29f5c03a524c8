"""A machine is lost with its disk: the run goes on from its mirror as if nothing had happened."""

from __future__ import annotations

import json
import shutil

import pytest
from support.faulty_files import Fault, clear_memory, faulty
from support.processes import Child, run, wait_for
from support.runs import assert_same_run, config, steps_saved

from accel_train.run.checkpoint import CheckpointFolder
from accel_train.tracking import mirroring

DROPOUT = {"dropout": 0.2}


@pytest.fixture(autouse=True)
def memory():
    yield
    clear_memory()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    run({"config": settings(folder, None), "task_args": DROPOUT})
    return folder


def settings(folder, place, **more):
    return config(folder, max_steps=16, save_steps=4, digest_steps=2, checkpoint_mirror=place and str(place), **more)


def train(folder, place, stop=None, **more):
    job = {"config": settings(folder, place, **more), "task_args": DROPOUT, "stop_at": stop and {"step": stop}}
    (result,) = run(job)
    return result


def titles(result):
    return "\n".join(f"{kind}: {title}" for kind, title in result["events"])


def test_another_machine_goes_on_bit_for_bit(tmp_path, whole):
    """The best model is older than the checkpoint that is gone on from."""
    assert train(tmp_path / "a" / "run", "memory://there", stop=7)["outcome"] == "stopped"
    shutil.rmtree(tmp_path / "a")
    assert train(tmp_path / "b" / "run", "memory://there", stop=10)["outcome"] == "stopped"
    shutil.rmtree(tmp_path / "b")
    result = train(tmp_path / "a" / "run", "memory://there")
    assert "note: resumed from memory://there/run, step 10" in titles(result)
    assert (result["outcome"], min(result["samples"])) == ("completed", 11)
    assert_same_run(tmp_path / "a" / "run", whole)
    for name in ("metrics.jsonl", "digests.jsonl"):
        mine, other = ((each / name).read_text().splitlines() for each in (tmp_path / "a" / "run", whole))
        assert [json.loads(line)["step"] for line in mine] == [json.loads(line)["step"] for line in other]
    shutil.rmtree(tmp_path / "a")
    again = train(tmp_path / "a" / "run", "memory://there")
    assert again["outcome"] == "completed" and again["samples"] == {}
    assert_same_run(tmp_path / "a" / "run", whole)


def test_two_ranks(tmp_path):
    job = {"config": settings(tmp_path / "whole" / "run", None), "task_args": DROPOUT}
    run(job, 2)
    job["config"] = settings(tmp_path / "a" / "run", tmp_path / "there")
    run(job | {"stop_at": {"step": 7}}, 2)
    shutil.rmtree(tmp_path / "a")
    results = run(job, 2)
    assert [min(result["samples"]) for result in results] == [8, 8]
    assert_same_run(tmp_path / "a" / "run", tmp_path / "whole" / "run")


def test_a_mirror_that_fails_is_no_matter_of_the_training(tmp_path, whole, monkeypatch):
    monkeypatch.setattr(mirroring, "STOP_S", 0.2)
    for kind in ("refused", "full", "gone", "hang"):
        folder = tmp_path / kind / "run"
        with faulty(Fault(kind, after=3)):
            result = train(folder, f"memory://{kind}", stop=13)
        assert (result["outcome"], result["step"]) == ("stopped", 13), kind
        said = [title for k, title in result["events"] if k == "warning"]
        assert 1 <= len(said) <= 3 and all(title.startswith("checkpoint_mirror: ") for title in said), said
        assert "the mirror holds no checkpoint of this session" in said[-1]
        assert "abcdefgh123" not in "".join(said) + (folder / "events.jsonl").read_text()
    result = train(folder, f"memory://{kind}")
    assert result["outcome"] == "completed"
    assert_same_run(folder, whole)


@pytest.mark.slow
def test_killed_and_lost_again_and_again(tmp_path, whole):
    """With SIGKILL, wherever the copies are; the disk is lost every other time."""
    place = tmp_path / "there"
    for attempt in range(12):
        folder = tmp_path / str(attempt // 2) / "run"
        child = Child({"config": settings(folder, place), "task_args": DROPOUT, "disk": {"slow": 0.02}})
        before = steps_saved(folder)
        wait_for(lambda f=folder, b=before, c=child: steps_saved(f) != b or c.ready(), what="a checkpoint")
        child.kill()
        if CheckpointFolder(place / "run" / "checkpoints").steps()[-1:] == [16]:
            break
    result = train(tmp_path / "last" / "run", place)
    assert result["outcome"] == "completed" and "not used" not in titles(result)
    assert_same_run(tmp_path / "last" / "run", whole)


def test_the_mirror_of_another_run_is_refused(tmp_path):
    place = tmp_path / "there"
    train(tmp_path / "a" / "run", place, stop=4)
    result = train(tmp_path / "b" / "run", place, learning_rate=0.02)
    kind, text = result["error"]
    assert kind == "UserError" and "belongs to another run: config.learning_rate: 0.01 -> 0.02" in text
    assert not (tmp_path / "b").exists()
    result = train(tmp_path / "a" / "run", place, resume_from_checkpoint="never")
    assert "holds newer checkpoints (step 4) than this run would go on from" in result["error"][1]
    assert steps_saved(tmp_path / "a" / "run") == [4]
